"""How far a run is, read from its folder alone, which knows it when SLURM has forgotten the job."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

TAIL_BYTES = 1 << 16


def checkpoint_steps(run_dir: Path) -> list[int]:
    """The steps of the checkpoints that are there, in order; whole as far as their names tell."""
    try:
        names = os.listdir(run_dir / "checkpoints")
    except OSError:
        return []
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{8,18}", name))


def newest_step(run_dir: Path) -> int:
    """Of the newest checkpoint; 0 without one."""
    return max(checkpoint_steps(run_dir), default=0)


def last_figures(run_dir: Path) -> dict[str, Any]:
    """The newest line of training in metrics.jsonl; empty without one."""
    for line in reversed(tail(run_dir / "metrics.jsonl")):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("kind") == "train":
            return record
    return {}


def steps_done(run_dir: Path, since_s: float) -> int:
    """The last step that the figures tell of, 0 where they were not written since this time (of the
    clock): those are of an attempt before."""
    try:
        if (run_dir / "metrics.jsonl").stat().st_mtime < since_s:
            return 0
    except OSError:
        return 0
    return int(last_figures(run_dir).get("step", 0))


def tail(path: Path, size: int = TAIL_BYTES) -> list[str]:
    """The last whole lines of a file, of at most so many bytes; none where it cannot be read."""
    try:
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    whole = lines[1:] if length > size else lines
    return [line.decode("utf-8", "replace") for line in whole if line]


def added(path: Path, place: int) -> tuple[str, int]:
    """(the lines of a log that stand after `place`, in bytes; where they end)."""
    try:
        with open(path, "rb") as file:
            file.seek(place)
            data = file.read()
    except OSError:
        return "", place
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode("utf-8", "replace"), place + len(whole)
