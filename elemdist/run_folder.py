"""A run folder reproduces itself: the resolved settings, the environment and the git state.

RUN/settings.yaml       every setting, as resolved; a recipe for the same run
RUN/environment.json    versions, devices, commit; nothing secret
RUN/deepspeed.json      DeepSpeed's configuration, as derived
RUN/metrics.jsonl       see elemdist/metrics.py
RUN/end.json            how the run stands, or ended; see elemdist/stop.py
RUN/tensorboard/
RUN/checkpoints/        see elemdist/checkpoint.py
"""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from elemdist.atomic import TEMPORARY, remove_leftovers, write_atomically
from elemdist.commandline import parse
from elemdist.config import TrainSettings
from elemdist.deepspeed_config import config_text
from elemdist.errors import UserError
from elemdist.json_text import json_text
from elemdist.os_errors import reason_of
from elemdist.remote import public
from elemdist.stop import read_end, write_end
from elemdist.yaml_text import yaml_text

# Settings of a start, which may differ from one to the next.
OF_A_START = ("run_dir", "resume", "ranks", "stop_step")
PACKAGES = ["elemdist", "torch", "deepspeed", "mosaicml-streaming", "numpy", "safetensors"]


def prepare(settings: TrainSettings) -> Path:
    """The run folder, made if need be. Raises UserError where it holds a run already."""
    path = Path(settings.run_dir or "")
    if path.exists() and not path.is_dir():
        raise UserError(f"run_dir: {path} is a file; name a folder")
    end = read_end(path)
    # A start that failed before its first step left nothing to go on with, at most its number.
    fresh = end is not None and end["state"] == "failed" and end["step"] == 0
    used = path.is_dir() and any(
        child.name != "attempts" and not TEMPORARY.fullmatch(child.name) for child in path.iterdir()
    )
    if used and not (settings.resume or fresh):
        raise UserError(
            f"run_dir: {path} is not empty; add --resume to go on with that run, or name another"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
    except OSError as error:
        raise UserError(f"run_dir: cannot make {path}: {reason_of(error)}") from None
    return path


def public_settings(settings: TrainSettings) -> dict[str, Any]:
    """The settings as a tree, without what URLs can hold: passwords and signatures."""
    tree = dataclasses.asdict(settings)
    places = [(tree["data"], "train"), (tree["data"], "eval")]
    places += [(source, "path") for source in tree["data"]["mixture"]]
    for part, key in places:
        if part[key] is not None:
            part[key] = public(part[key])
    return tree


def changes(path: Path, settings: TrainSettings) -> list[str]:
    """Return what differs from the settings that the run was begun with, "KEY OLD -> NEW" each, in
    order; none where there are no such settings to be read."""

    def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in tree.items():
            is_group = isinstance(value, dict) and prefix + name != "deepspeed"
            found |= flat(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
        return found

    try:
        before = parse(TrainSettings, [str(path / "settings.yaml")], "elemdist train")
    except UserError:
        return []
    old, new = flat(public_settings(before)), flat(public_settings(settings))
    return [
        f"{name} {old[name]} -> {value}"
        for name, value in new.items()
        if name not in OF_A_START and value != old[name]
    ]


def describe(
    path: Path,
    settings: TrainSettings,
    facts: dict[str, Any],
    deepspeed: dict[str, Any],
    step: int,
    attempt: int,
) -> None:
    """Writes what is needed to do the run again, and that it runs, from `step` on.

    Raises UserError where that cannot be written.
    """
    text = yaml_text(public_settings(settings))
    files = {
        "settings.yaml": text,
        "environment.json": json_text({**environment(), **facts}, indent=2) + "\n",
        "deepspeed.json": config_text(deepspeed),
    }
    try:
        for name, content in files.items():
            write_atomically(path / name, content)
        write_end(path, "running", step, attempt=attempt)
    except OSError as error:
        raise UserError(f"run_dir: cannot write into {path}: {reason_of(error)}") from None


def environment() -> dict[str, Any]:
    """Versions and devices. Never environment variables: they hold keys and tokens."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "git": git_state(),
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpu_threads": torch.get_num_threads(),
        "cpu_cores": os.cpu_count(),
    }


def version(name: str) -> str | None:
    """The version of an installed distribution; None without one."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this code runs from, and whether it was changed; None outside one."""

    def git(*words: str) -> str:
        folder = Path(__file__).resolve().parent
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
