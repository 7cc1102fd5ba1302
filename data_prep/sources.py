"""Input files: which ones are meant, what they hold, and their bytes as a stream.

Memory stays bounded by a few MiB, whatever the size of the file or of what it unpacks to.
"""

from __future__ import annotations

import glob
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import xxhash
import zstandard

from data_prep.settings import InputSettings
from elemdist.errors import UserError

COMPRESSIONS = (".gz", ".zst")
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
# What a folder is searched for; None takes every file that is not hidden.
FOLDER_SUFFIXES: dict[str, tuple[str, ...] | None] = {
    "auto": (".jsonl", ".txt"),
    "jsonl": JSONL_SUFFIXES,
    "text": None,
}
READ_BYTES = 1 << 20
UNPACK_BYTES = 1 << 16  # of packed input at a time: a few of its bytes can hold a MiB of text
LARGEST_WINDOW = 1 << 31  # zstd --long=31


@dataclass(frozen=True)
class Source:
    """One input file: its path as the user wrote it, its format and size in bytes."""

    path: str
    format: str
    compression: str
    size: int


@dataclass(frozen=True)
class Part:
    """The bytes from start to end of a source: whole lines of it, or all of it."""

    source: Source
    start: int
    end: int


def find_sources(inputs: list[str], settings: InputSettings) -> list[Source]:
    """The files that the inputs name, in order.

    Raises:
        UserError: an input that is missing, empty, unreadable, or of a format that does not show.
    """
    sources = []
    for entry in inputs:
        for path in _expand(entry, settings.format):
            sources.append(_source(path, settings.format))
    if not any(source.size for source in sources):
        names = ", ".join(inputs[:3]) + (" ..." if len(inputs) > 3 else "")
        raise UserError(f"{names}: empty, there is nothing to convert")
    return sources


def _expand(entry: str, format: str) -> list[str]:
    """The files of one input: itself, the files of a folder, or what a glob matches."""
    if os.path.isdir(entry):
        return _files_of(entry, format)
    if os.path.lexists(entry):
        return [entry]
    if not glob.has_magic(entry):
        raise UserError(f"no such file or folder: {entry}")
    paths = sorted(glob.glob(entry, recursive=True))
    if not paths:
        raise UserError(f"no file matches {entry}")
    files = [path for path in paths if not os.path.isdir(path)]
    if not files:
        raise UserError(f"{entry} matches only folders: name files, or one of the folders")
    return files


def _files_of(folder: str, format: str) -> list[str]:
    """Files of a folder and the folders in it that fit the format, sorted, hidden ones left out."""

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read folder {error.filename}: {error.strerror}")

    suffixes = FOLDER_SUFFIXES[format]
    found = []
    for here, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            suffix, _ = suffix_of(name)
            if not name.startswith(".") and (suffixes is None or suffix in suffixes):
                found.append(os.path.join(here, name))
    if not found:
        wanted = "visible files" if suffixes is None else "files *" + ", *".join(suffixes)
        raise UserError(
            f"folder {folder} has no {wanted} (also .gz, .zst); with --input.format text every "
            f"file is taken"
        )
    return found


def suffix_of(path: str) -> tuple[str, str]:
    """The suffix that tells the format and the one that tells the compression, in lower case."""
    stem, last = os.path.splitext(path.lower())
    if last in COMPRESSIONS:
        return os.path.splitext(stem)[1], last
    return last, ""


def _source(path: str, format: str) -> Source:
    suffix, compression = suffix_of(path)
    if format == "auto":
        if suffix in JSONL_SUFFIXES:
            format = "jsonl"
        elif suffix in TEXT_SUFFIXES:
            format = "text"
        else:
            raise UserError(
                f"{path}: the name does not tell what it holds: set --input.format text or jsonl"
            )
    try:
        status = os.stat(path)
        with open(path, "rb") if stat.S_ISREG(status.st_mode) else open(os.devnull):
            pass
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file: write its content to a file first")
    return Source(path, format, compression, status.st_size)


class PartReader:
    """Reads a part of a source once, as a stream of unpacked bytes.

    Attributes:
        digest: xxh3_128 of the raw bytes read so far.
    """

    def __init__(self, part: Part, progress: Callable[[int], None]) -> None:
        """`progress` is called with the number of raw bytes after each read."""
        self._part, self._progress = part, progress
        self.digest = xxhash.xxh3_128()

    def chunks(self) -> Iterator[bytes]:
        """The bytes, unpacked, in pieces.

        Raises:
            UserError: the file cannot be read, is damaged or cut short, or changed since the plan.
        """
        compression = self._part.source.compression
        path = self._part.source.path
        try:
            if compression == ".gz":
                yield from self._unpacked(lambda: zlib.decompressobj(wbits=31))
            elif compression == ".zst":
                context = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
                yield from self._unpacked(context.decompressobj)
            else:
                yield from self._raw(READ_BYTES)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except (zlib.error, zstandard.ZstdError) as error:
            raise UserError(f"{path} is damaged, or no {compression} file: {error}") from error

    def _raw(self, size: int) -> Iterator[bytes]:
        path, left = self._part.source.path, self._part.end - self._part.start
        with open(path, "rb", buffering=0) as file:
            file.seek(self._part.start)
            while left:
                chunk = file.read(min(size, left))
                if not chunk:
                    raise UserError(f"{path} became shorter while it was read: run again")
                left -= len(chunk)
                self.digest.update(chunk)
                self._progress(len(chunk))
                yield chunk

    def _unpacked(self, start_frame: Callable[[], Any]) -> Iterator[bytes]:
        """Unpacks frame after frame: both formats allow several in one file."""
        frame = None
        for chunk in self._raw(UNPACK_BYTES):
            while chunk:
                if frame is None:
                    chunk = chunk.lstrip(b"\0")  # gzip allows zeros behind its members
                    if not chunk:
                        break
                    frame = start_frame()
                text = frame.decompress(chunk)
                if text:
                    yield text
                if not frame.eof:
                    break
                chunk, frame = frame.unused_data, None
        if frame is not None:
            path = self._part.source.path
            raise UserError(f"{path} is cut short: its compressed data has no end; copy it again")
