"""The commands that README.md shows, as its readers copy them."""

from __future__ import annotations

import re
import shlex

from tests.conftest import REPOSITORY

FIRST = re.compile(
    r"^    ((?:[A-Z]+=\S+ )?(?:make|source|cp|elemdist|deepspeed|torchrun|sbatch)\b.*)"
)
# What a reader would type, up to a comment.
COMMENT = re.compile(r"\s+# .*$")
SLURM = {"cp", "sbatch", "launch", "status", "logs", "cancel", "resume"}  # tests/cluster runs these


def shown() -> list[str]:
    """Every command of README.md's blocks, each once, on one line and without its comment."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = [match.group(1) for line in text.splitlines() if (match := FIRST.match(line))]
    commands = [" ".join(COMMENT.sub("", command).split()) for command in found]
    return list(dict.fromkeys(commands))


def kind(command: str) -> str:
    """What runs it: a verb of elemdist, or else the program."""
    first, *rest = [word for word in shlex.split(command) if "=" not in word or word[0] == "-"]
    return rest[0] if first == "elemdist" else first
