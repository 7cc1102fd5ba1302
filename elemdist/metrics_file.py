"""A run's metrics.jsonl, read line by line and cut at its end: it may have millions of lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import orjson

from elemdist.artefacts import MissingError, open_file
from elemdist.errors import UserError
from elemdist.os_errors import reason_of

LINE_BYTES = 1 << 20  # what is longer is no line of metrics
BLOCK_BYTES = 1 << 20


def is_number(value: Any) -> TypeGuard[float]:
    """Return True for a finite number that a float can hold."""
    return type(value) in (int, float) and abs(value) < 1e300


def record_of(line: bytes) -> dict[str, Any] | None:
    """Return a line of metrics: an object with a text as kind and a number as step; None where it
    is none."""
    try:
        record = orjson.loads(line)
    except ValueError:
        try:
            record = json.loads(line)  # reads NaN and infinity, too
        except (ValueError, RecursionError):
            return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    step = record.get("step")
    return record if type(step) is int and abs(step) < 1 << 63 else None


def lines_of(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield each line with its end; None for one of more than LINE_BYTES."""
    while line := file.readline(LINE_BYTES):
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line


def records_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a run's metrics.jsonl; a torn last line, of a run that was killed, is left
    out.

    Raises:
        UserError: it is not there, cannot be read, or has another line that is none of metrics.
    """
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such run folder")
    try:
        with open(open_file(path), "rb") as file:
            for number, line in enumerate(lines_of(file), 1):
                record = record_of(line) if line is not None else None
                if record is not None:
                    yield record
                elif line is None or (line.strip() and line.endswith(b"\n")):
                    told = "not a metrics line (JSON with kind, step)"
                    raise UserError(f"{path}:{number}: {told}")
    except MissingError:
        raise UserError(f"{path.parent}: no {path.name} in it; is it a run folder?") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason_of(error)}") from None


def last_evaluation(folder: Path, step: int = sys.maxsize) -> dict[str, Any]:
    """Return the last evaluation of a run up to a step; empty where there is none. Raises
    UserError."""
    found: dict[str, Any] = {}
    for record in records_of(folder / "metrics.jsonl"):
        if record["kind"] == "eval" and found.get("step", -1) <= record["step"] <= step:
            found = record
    return found


def drop_after(path: Path, step: int) -> tuple[float, int]:
    """Drop the lines of later steps from metrics.jsonl, and what is no line of metrics among them,
    as the torn last one of a killed run. Only the end of the file is read and written: back to a
    line of training or evaluation that stays.

    Returns:
        The seconds of training so far, and how many lines were dropped that are none of metrics.

    Raises:
        UserError: it cannot be read, or not be written.
    """
    if not path.exists():
        return 0.0, 0
    try:
        os.close(open_file(path))  # a pipe would be waited for
        with open(path, "r+b") as file:
            return cut_end(file, step)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read and written ({error.strerror}); see to the folder's disk and"
            " its permissions"
        ) from None


def cut_end(file: BinaryIO, step: int) -> tuple[float, int]:
    """Do what drop_after() says. Raises OSError."""
    kept: list[bytes] = []  # the last first
    time_s, foreign, place = None, 0, 0
    for begin, lines in blocks_from_end(file):
        place, stays = begin, False
        for line in reversed(lines):
            record = timed(line)
            if line is None or record is None:
                foreign += line is None or bool(line.strip())
            elif record["step"] <= step:
                kept.append(line + b"\n")
                time_s = record["time_s"] if time_s is None else time_s
                stays = stays or record.get("kind") != "event"
        if stays:
            break
    text = b"".join(reversed(kept))
    file.seek(place)
    if text != file.read(len(text) + 1):
        file.seek(place)
        file.write(text)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    return time_s or 0.0, foreign


def timed(line: bytes | None) -> dict[str, Any] | None:
    """Return record_of() a line, if it has a number as time_s, too."""
    record = record_of(line) if line is not None else None
    return record if record is not None and is_number(record.get("time_s")) else None


def blocks_from_end(file: BinaryIO) -> Iterator[tuple[int, list[bytes | None]]]:
    """Yield blocks of whole lines, the last first: where the first line begins, and the lines
    without their ends, None for one of more than LINE_BYTES."""
    end = file.seek(0, os.SEEK_END)
    rest, is_long = b"", False  # of a line that begins before what was read
    while end:
        start = max(0, end - BLOCK_BYTES)
        file.seek(start)
        first, *others = (file.read(end - start) + rest).split(b"\n")
        lines: list[bytes | None] = [*others]
        if lines and is_long:
            lines[-1], is_long = None, False
        place = start + len(first) + 1
        if not start:
            lines, place = [None if is_long else first, *lines], 0
        elif len(first) > LINE_BYTES:
            first, is_long = b"", True
        rest, end = first, start
        if lines:
            yield place, lines
