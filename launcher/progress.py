"""How far a run is, read from its folder alone, which knows it when SLURM has forgotten the job."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from elemdist.artefacts import MissingError, open_file
from elemdist.errors import UserError
from elemdist.metrics_file import is_number, record_of
from elemdist.os_errors import line_of
from elemdist.units import counted

TAIL_BYTES = 1 << 16
MOST_AT_ONCE = 1 << 24  # of what is added to a log


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


def last_figures(run_dir: Path, say: Callable[[str], None] = lambda line: None) -> dict[str, float]:
    """Return the numbers of the newest line of training in metrics.jsonl; empty without one.

    Args:
        say: gets a line about what is passed over: a file that cannot be read, or damaged lines;
            one without an end is still being written.
    """
    path, damaged = run_dir / "metrics.jsonl", 0
    try:
        lines = read_tail(path, TAIL_BYTES)
    except MissingError:
        return {}
    except (OSError, UserError) as error:
        say(str(error) if isinstance(error, UserError) else line_of(error, path))
        return {}
    found: dict[str, float] = {}
    for number, line in enumerate(reversed(lines)):
        record = record_of(line)
        damaged += record is None and number > 0 and bool(line.strip())
        if record is not None and record["kind"] == "train":
            found = {name: value for name, value in record.items() if is_number(value)}
            break
    if damaged:
        say(f"{path}: {counted(damaged, 'damaged line')} at its end passed over")
    return found


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
    """Return the last whole lines of a file, of at most so many bytes, without empty ones; none
    where it cannot be read, or is a pipe or a device."""
    try:
        return [line.decode("utf-8", "replace") for line in read_tail(path, size) if line]
    except (OSError, UserError):
        return []


def read_tail(path: Path, size: int) -> list[bytes]:
    """Return the last whole lines of a file, of at most so many bytes, and what comes after the
    last line end. Raises OSError, and UserError for a file that is missing, a pipe or a device."""
    with open(open_file(path), "rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - size))
        lines = file.read(size).split(b"\n")
    return lines[1:] if length > size else lines


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last `count` lines of a file, 0: all; as tail() does, which reads no more of it
    than it must."""
    size = TAIL_BYTES
    while len(lines := tail(path, size)) < count or not count:
        if size > path.stat().st_size:
            break
        size *= 4
    return lines[-count:]


def added(path: Path, place: int) -> tuple[str, int]:
    """Return (the lines of a log that stand after `place`, in bytes; where they end)."""
    try:
        with open(path, "rb") as file:
            file.seek(place)
            data = file.read(MOST_AT_ONCE)
    except OSError:
        return "", place
    # A line that is longer is shown in parts.
    whole = data if len(data) == MOST_AT_ONCE else data[: data.rfind(b"\n") + 1]
    return whole.decode("utf-8", "replace"), place + len(whole)
