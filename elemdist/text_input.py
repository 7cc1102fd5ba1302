"""Documents out of files of lines, or standard input: for verbs that take text as it is."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elemdist.errors import UserError


@dataclass(frozen=True)
class Document:
    """A document as it was read.

    Attributes:
        number: from 1 on, over all files. place: file and line. fields: of its record; empty for
            plain text.
    """

    number: int
    place: str
    text: str
    fields: dict[str, Any]


def open_lines(path: str) -> Any:
    """A file of bytes, unpacked where its name ends in .gz or .zst; - is standard input. Raises
    UserError."""
    if path == "-":
        return sys.stdin.buffer
    try:
        if path.endswith(".gz"):
            return gzip.open(path, "rb")
        file = open(path, "rb")  # noqa: SIM115  # its reader closes it
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if path.endswith(".zst"):
        from io import BufferedReader

        from zstandard import ZstdDecompressor

        return BufferedReader(ZstdDecompressor().stream_reader(file, read_across_frames=True))
    return file


def is_jsonl(path: str, stated: str) -> bool:
    """Whether the lines of a file are records; `stated`: jsonl, text, or auto: by its name."""
    name = Path(path).name.removesuffix(".gz").removesuffix(".zst")
    return stated == "jsonl" or (stated == "auto" and name.endswith((".jsonl", ".ndjson", ".json")))


def documents(paths: list[str], stated: str, text_field: str) -> Iterator[Document | UserError]:
    """The documents of some files, line by line; in place of a line that is none the error that
    names it. Raises UserError where a file cannot be read."""
    number = 0
    for path in paths or ["-"]:
        records = is_jsonl(path, stated)
        with open_lines(path) as file:
            lines = iter(file)
            at = 0
            while True:
                try:
                    line = next(lines, None)
                except Exception as error:  # what its decompressor raises
                    told = f"cannot read {path} behind line {at}: {error}"
                    raise UserError(told) from None
                if line is None:
                    break
                at, number = at + 1, number + 1
                place = f"{'standard input' if path == '-' else path}:{at}"
                try:
                    yield document(line, number, place, records, text_field)
                except ValueError as error:
                    yield UserError(f"{place}: {error}")


def document(line: bytes, number: int, place: str, is_record: bool, text_field: str) -> Document:
    """Raises ValueError on a line that is no document."""
    text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "strict")
    if not is_record:
        return Document(number, place, text, {})
    try:
        record = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict) or not isinstance(record.get(text_field), str):
        raise ValueError(f"no record with text in '{text_field}'; --text-field names the field")
    return Document(number, place, record[text_field], record)
