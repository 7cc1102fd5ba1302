"""The one place where files are read back that the product, or anyone, wrote: with bounds.

A name may stand for an endless device, a pipe, a folder, or a file of any size; JSON may nest
without end, hold a key twice, or no number that is one. Each ends in one line: which file, where
in it, what is wrong, what to do.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from pathlib import Path
from typing import Any

from elemdist.errors import UserError
from elemdist.json_types import WHOLE, misfit
from elemdist.os_errors import reason_of

MOST_BYTES = 1 << 28  # of a file of JSON: an index of 200,000 shards has a tenth of that
PIECE = 1 << 16
DEEPEST = 100  # levels of JSON within one another
LARGEST = {bool: 2, int: WHOLE, float: math.inf}
AGAIN = "copy it again, or make it again"


class MissingError(UserError, FileNotFoundError):
    """There is no such file."""


def open_file(path: str | Path) -> int:
    """Open a regular file for reading; return its descriptor.

    Raises:
        MissingError: there is none. UserError: it is no regular file, or cannot be opened.
    """
    try:
        # Without O_NONBLOCK a pipe that nobody writes to would hold the process for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(f"cannot read {path}: there is no such file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from error
    except ValueError as error:  # a NUL in the path
        raise UserError(f"cannot read {str(path)!r}: {error}") from error
    if not stat.S_ISREG(mode := os.fstat(handle).st_mode):
        os.close(handle)
        names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        found = names.get(stat.S_IFMT(mode), "a device")
        raise UserError(f"cannot read {path}: it is {found}, not a file")
    return handle


def read_bytes(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """Return what a regular file holds.

    Raises:
        MissingError: there is none.
        UserError: it cannot be read, is no file, or has over `most` bytes.
    """
    with open(open_file(path), "rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            # No more at a time than there is: memory is taken for all that is asked for.
            data = file.read(size + 1) if size <= most else b""
            while len(data) > size and len(data) <= most and (more := file.read(PIECE)):
                data += more  # it grows, or says no size, as those of /proc
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason_of(error)}") from error
    if max(size, len(data)) > most:
        raise UserError(f"cannot read {path}: it has {size:,} bytes, {most:,} at most are expected")
    return data


def read_text(path: str | Path, most: int = MOST_BYTES) -> str:
    """Return the text of a file. Raises as read_bytes; UserError where it is not valid UTF-8."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not valid UTF-8, byte {error.start} is 0x{error.object[error.start]:02x};"
            " save it as UTF-8"
        ) from None


def read_json(
    path: str | Path, kind: Any = Any, most: int = MOST_BYTES, remedy: str = AGAIN
) -> Any:
    """Return the JSON of a file, which is of a type: see json_types.misfit.

    Raises:
        MissingError: there is none. UserError: it cannot be read, or is not what it should be.
    """
    return parse_json(read_text(path, most), str(path), kind, remedy)


def parse_json(text: str | bytes, place: str, kind: Any = Any, remedy: str = AGAIN) -> Any:
    """Return the value of a JSON text, which is of a type. Raises UserError that names `place`."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, object_pairs_hook=once, parse_constant=no_number)
        check_numbers(value)
    except RecursionError:
        raise UserError(f"{place} is damaged: it nests too deep; {remedy}") from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{place} is damaged: not valid JSON ({reason}); {remedy}") from None
    if (wrong := misfit(value, kind)) is not None:
        raise UserError(f"{place} is damaged: {wrong}; {remedy}")
    return value


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError where a key stands in it twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise ValueError(f"the key {twice[:40]!r} stands twice")
    return found


def no_number(name: str) -> Any:
    """Raise ValueError on NaN, Infinity and -Infinity, which Python's reader would take."""
    raise ValueError(f"{name} is no number")


def check_numbers(value: Any) -> None:
    """Raise ValueError on numbers beyond 64 bits, and RecursionError on values that nest deep."""
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, (int, float)) and not abs(one) < LARGEST[type(one)]:
                raise ValueError("a number is too large")
        if not inner:
            return
        level = inner
    raise RecursionError


def optional_json(path: str | Path, kind: Any) -> dict[str, Any] | None:
    """Return as read_json, an object; None where there is none, or, after a line on standard error,
    where it is not what it should be: for facts that a run goes on without."""
    try:
        found: dict[str, Any] = read_json(path, kind)
    except MissingError:
        return None
    except UserError as error:
        print(f"elemdist: {error}; it counts as missing", file=sys.stderr)
        return None
    return found
