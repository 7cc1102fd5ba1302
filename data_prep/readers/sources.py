"""Which files are meant by the inputs, what they hold, and the parts they are cut into."""

from __future__ import annotations

import glob
import os
import re
from typing import Any

from data_prep.documents import Part, Source
from data_prep.readers import folders
from data_prep.readers.files import Stored, asked
from data_prep.readers.folders import Found
from data_prep.settings import InputSettings
from elemdist.errors import UserError
from elemdist.remote import filesystem, is_url, public

LOOK_BYTES = 1 << 16  # for the end of a line
LINE_END = re.compile(rb"\n")
BLANK_LINE = re.compile(rb"\n[ \t\r\f\v]*\n")


def find_sources(inputs: list[str], settings: InputSettings) -> list[Source]:
    """The files and data sets that the inputs name, in order.

    Args:
        inputs: files, folders, globs, and URLs of object stores.

    Raises:
        UserError: an input that is missing, empty, unreadable, or of a format that does not show.
    """
    sources = []
    for entry in inputs:
        find = _remote if is_url(entry) else _local
        sources += find(entry, settings.format)
    if not any(source.size for source in sources):
        names = ", ".join(map(public, inputs[:3])) + (" ..." if len(inputs) > 3 else "")
        raise UserError(f"{names}: empty, there is nothing to convert")
    return sources


def _local(entry: str, format: str) -> list[Source]:
    """The sources of one input: itself, the files of a folder, or what a glob matches."""
    if os.path.isdir(entry):
        return folders.sources_of(entry, _walk(entry), format)
    if os.path.lexists(entry):
        return [_file(entry, format)]
    if not glob.has_magic(entry):
        raise UserError(f"no such file or folder: {entry}")
    paths = sorted(glob.glob(entry, recursive=True))
    if not paths:
        raise UserError(f"no file matches {entry}")
    sources = []
    for path in paths:
        if not os.path.isdir(path):
            sources.append(_file(path, format))
        else:
            inner = [Found(name, os.path.join(path, name)) for name in sorted(os.listdir(path))]
            sources += folders.data_sets(inner, format).get("", [])
    if not sources:
        raise UserError(f"{entry} matches only folders: name files, or one of the folders")
    return sources


def _walk(folder: str) -> list[Found]:
    """All files in a folder and the folders in it, hidden ones left out."""

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read folder {error.filename}: {error.strerror}")

    found = []
    for here, inner, names in os.walk(folder, onerror=fail):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                path = os.path.join(here, name)
                found.append(Found(os.path.relpath(path, folder).replace(os.sep, "/"), path))
    return found


def _file(path: str, format: str) -> Source:
    return folders.source(Found(os.path.basename(path), path), format)


def _remote(entry: str, format: str) -> list[Source]:
    """The same for a URL."""
    store, path = filesystem(entry)
    # A signed address has a ? in it, which is no pattern.
    magic = glob.has_magic(path) and not entry.startswith(("http://", "https://"))
    if magic and not asked(lambda: store.exists(path), entry):
        listing = asked(lambda: store.glob(path, detail=True), entry)
        hidden = "/." in path  # such names only if the pattern has one, as locally
        objects = [
            info
            for name, info in listing.items()
            if info["type"] == "file" and (hidden or "/." not in name)
        ]
        if not objects:
            raise UserError(f"no file matches {public(entry)}")
        urls = sorted((store.unstrip_protocol(info["name"]), info) for info in objects)
        return [_object(url, info, format) for url, info in urls]
    info = asked(lambda: store.info(path), entry)
    if info["type"] != "directory":
        return [_object(entry, info, format)]
    listing = asked(lambda: store.find(path, detail=True), entry)
    root = path.rstrip("/") + "/"
    found = []
    for name, info in listing.items():
        relative = name[len(root) :]
        # Stores keep empty objects that stand for folders.
        folder = not relative or relative.endswith("/")
        hidden = any(piece.startswith(".") for piece in relative.split("/"))
        if name.startswith(root) and not folder and not hidden:
            found.append(Found(relative, f"{entry.rstrip('/')}/{relative}", info))
    return folders.sources_of(entry, found, format)


def _object(url: str, info: dict[str, Any], format: str) -> Source:
    return folders.source(Found(url.rpartition("/")[2], url, info), format)


def cut(source: Source, limit: int, settings: InputSettings) -> list[Part]:
    """Cuts a source into parts of about `limit` stored bytes, if its format allows it.

    Raises:
        UserError: the source cannot be read.
    """
    if source.format == "mds":
        from data_prep.readers import mds as mds_read

        return mds_read.cut(source, limit)
    if source.format in ("parquet", "arrow", "datasets"):
        from data_prep.readers import columns  # loads pyarrow

        return columns.cut(source, limit, settings)
    if not source.compression and source.size > limit:
        if source.format == "jsonl" or (source.format == "text" and settings.document == "line"):
            return _cut_behind(LINE_END, source, limit)
        if source.format == "text" and settings.document == "block":
            return _cut_behind(BLANK_LINE, source, limit)
    return [Part(source, 0, source.size, source.size)]


def _cut_behind(mark: re.Pattern[bytes], source: Source, limit: int) -> list[Part]:
    """Parts that each end behind the first match of `mark` that ends at or after `limit` bytes.

    Args:
        mark: begins with a newline, behind which only white space stands.
    """
    parts = []
    start = 0
    with Stored(source) as stored:
        while source.size - start > limit:
            end = _mark_end(mark, stored, start + limit - 1, source.size)
            parts.append(Part(source, start, end, end - start))
            start = end
        stored.check()
    if start < source.size:
        parts.append(Part(source, start, source.size, source.size - start))
    return parts


def _mark_end(mark: re.Pattern[bytes], stored: Stored, at: int, size: int) -> int:
    """Where the first match behind byte `at` ends; the size if there is none."""
    held = b""
    while chunk := stored.read(at, LOOK_BYTES):
        at += len(chunk)
        text = held + chunk
        if found := mark.search(text):
            return at - len(text) + found.end()
        newline = text.rfind(b"\n")
        held = b"" if newline < 0 or text[newline:].strip() else text[newline:]
    return size
