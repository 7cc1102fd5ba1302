"""Arguments of training as launchers and other programs write them, in the words of this one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from elemdist.commandline import as_word, leaf_types, split_arguments
from elemdist.config import TrainSettings
from elemdist.deepspeed_overrides import OURS, flat
from elemdist.errors import UserError
from elemdist.yaml_text import TRUE


def understood(argv: list[str], say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Return the arguments without what launchers add to them, and with the recipe of a run that is
    only to go on: ``--run-dir RUN --resume``. `say` gets a line about what was assumed.

    Raises:
        UserError: a file of DeepSpeed's own settings is given.
    """
    kept, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        if name == "__local_rank":  # LOCAL_RANK says it, too
            rest = rest if equals else rest[1:]
        elif name == "__deepspeed" and not equals and (not rest or rest[0].startswith("--")):
            continue  # as other programs are told to use it: this one always does
        elif name == "__deepspeed_config":
            raise UserError(in_our_words(value if equals else "".join(rest[:1])))
        else:
            kept.append(word)
    return with_recipe(kept, say)


def with_recipe(argv: list[str], say: Callable[[str], None]) -> list[str]:
    """Return the arguments, with a run's own settings as the recipe where nothing but the run is
    named."""
    if any(word in ("-h", "--help") for word in argv):
        return argv
    recipes, values = split_arguments(argv, leaf_types(TrainSettings))
    given = {key: as_word(value) for key, value in values.items()}
    own = Path(given.get("run_dir", "")) / "settings.yaml"
    named = recipes or "data.train" in given or "data.mixture" in given
    if named or given.get("resume", "").lower() not in TRUE or not own.is_file():
        return argv
    say(f"resuming with the settings of the run, {own}")
    return [str(own), *argv]


def in_our_words(path: str) -> str:
    """Return what to write in place of a file of DeepSpeed's settings."""
    begin = "deepspeed_config: DeepSpeed's configuration follows from the settings of the run"
    end = """what has no setting: --deepspeed '{"zero_optimization.overlap_comm": true}'"""
    try:
        tree = flat(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return f"{begin}; {end} ({os.path.basename(path)} cannot be read: {error})"
    found = {}
    for key in tree:
        if ours := next((OURS[one] for one in OURS if f"{key}.".startswith(f"{one}.")), None):
            found[key.partition(".")[0] if ours == "optim" else key] = f"--{ours}"
    pairs = ", ".join(f"{key} is {ours.replace('_', '-')}" for key, ours in found.items())
    return f"{begin}: {pairs}; {end}" if pairs else f"{begin}; {end}"
