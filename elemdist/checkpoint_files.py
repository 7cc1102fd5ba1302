"""A checkpoint's folder on the disk: what its manifest lists, and whether that is there.

Nothing in it is trusted: a manifest may have been written, or edited, by anyone.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from elemdist.artefacts import MissingError, read_json
from elemdist.checkpoint_parts import WEIGHTS
from elemdist.errors import UserError
from elemdist.json_types import Step, misfit

FORMAT = "elemdist-checkpoint"
VERSION = 3
READABLE = (2, 3)  # the optimizer's state of 2 was DeepSpeed's, for one number of ranks
KINDS: dict[str, Any] = {
    "step": Step, "files": dict, "facts": dict, "settings": dict, "state": dict,
    "optimizer_steps": Step,
}  # fmt: skip
STEP_FOLDER = re.compile(r"step-(\d{8,18})")


def digest(path: Path) -> str:
    """xxh3_128 of a file's bytes, in hexadecimal."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def step_folders(folder: Path) -> dict[int, Path]:
    """Step -> checkpoint folder, whole or not, in a run's folder of checkpoints."""
    named = ((STEP_FOLDER.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return {int(match[1]): path for match, path in named if match}


def read_manifest(path: Path, to_resume: bool = False) -> tuple[dict[str, Any], str | None]:
    """(the manifest of a checkpoint folder, what is wrong with it or None); `to_resume`: what only
    a resumed run asks for must be there, too."""
    try:
        manifest = read_json(path / "manifest.json", dict[str, Any])
        if manifest["format"] != FORMAT or manifest["version"] not in READABLE:
            return {}, f"format {manifest['format']} {manifest['version']} is not known"
    except MissingError:
        return {}, "its manifest.json is missing or cannot be read"
    except (UserError, KeyError, TypeError) as error:
        return {}, f"its manifest.json is missing or cannot be read ({error})"
    needed = {"step", "files"}
    if to_resume and manifest["version"] == VERSION:
        needed |= KINDS.keys()
    for key, kind in KINDS.items():
        if key in needed | manifest.keys() and misfit(manifest.get(key), kind) is not None:
            return {}, f"its manifest.json says no {key}"
    files = manifest["files"]
    if missing := {WEIGHTS, "config.json"} - set(files):
        return {}, f"its manifest.json lists no {min(missing)}"
    for name, entry in files.items():
        if misfit(entry, tuple[Step, str]) is not None:
            return {}, f"its manifest.json says no size and hash of {name}"
    return manifest, None


def damage(path: Path, files: Iterable[tuple[str, list[Any]]]) -> str | None:
    """What is wrong with the files (name, [size, hash]) of a checkpoint folder, or None."""
    for name, (size, expected) in files:
        file = path / name
        try:
            if not file.resolve().is_relative_to(path.resolve()):
                return f"{name} points out of the checkpoint"
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes instead of {size}"
            if digest(file) != expected:
                return f"{name} does not have the bytes that were written"
        except (OSError, ValueError, RuntimeError) as error:
            return f"{name} cannot be read ({error})"
    return None


def flaw(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if it is complete and unharmed."""
    manifest, reason = read_manifest(path)
    return reason or damage(path, manifest["files"].items())


def outdated(steps: list[int], newest: int, keep_last: int, keep_every: int) -> list[int]:
    """The steps whose checkpoints go once that of `newest` is there. A later one was passed over
    as not whole when the run was resumed: it must not take the place of a whole one."""
    earlier = sorted(step for step in steps if step <= newest)
    old = earlier[: max(0, len(earlier) - keep_last)]
    return [s for s in old if not keep_every or s % keep_every] + [s for s in steps if s > newest]


def remove(path: Path) -> None:
    """Removes a checkpoint: first out of sight, so that nothing takes what is left for whole."""
    hidden = path.with_name(f".removing-{path.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)
