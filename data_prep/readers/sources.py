"""Which files are meant by the inputs, what they hold, and the parts they are cut into."""

from __future__ import annotations

import glob
import os
import re
from typing import Any

from data_prep.documents import Part, Source
from data_prep.losses import FOLDER_LINK, HIDDEN, MATCHED_FOLDER, TWICE, Losses
from data_prep.readers import folders
from data_prep.readers.files import Stored, asked
from data_prep.readers.folders import Found
from data_prep.settings import InputSettings
from elemdist.errors import UserError
from elemdist.remote import filesystem, is_url, public

LOOK_BYTES = 1 << 16  # for the end of a line
LINE_END = re.compile(rb"\n")
BLANK_LINE = re.compile(rb"\n[ \t\r\f\v]*\n")


def find_sources(
    inputs: list[str], settings: InputSettings, losses: Losses | None = None, out: str = ""
) -> list[Source]:
    """The files and data sets that the inputs name, in order, each one once.

    Args:
        inputs: files, folders, globs, and URLs of object stores.
        losses: counts what is found there and left out; None: it is not counted.
        out: the folder that is written, which is no input where it lies in one.

    Raises:
        UserError: an input that is missing, empty, unreadable, or of a format that does not show.
    """
    losses = Losses() if losses is None else losses
    found = []
    for entry in inputs:
        if is_url(entry):
            found += _remote(entry, settings.format, losses)
        else:
            found += _local(entry, settings.format, losses, out)
    sources = _once(found, losses)
    if not any(source.size for source in sources):
        names = ", ".join(map(public, inputs[:3])) + (" ..." if len(inputs) > 3 else "")
        raise UserError(f"{names}: empty, there is nothing to convert")
    return sources


def _once(sources: list[Source], losses: Losses) -> list[Source]:
    """Leave out files and folders that come a second time, by whatever name."""
    taken: set[object] = set()
    kept = []
    for source in sources:
        key = identity(source.path)
        if key in taken:
            losses.add(TWICE, public(source.path))
        else:
            kept.append(source)
        taken.add(key)
    return kept


def identity(path: str) -> object:
    """What is the same for all names of a file or folder."""
    if is_url(path):
        return path.rstrip("/")
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _local(entry: str, format: str, losses: Losses, out: str) -> list[Source]:
    """The sources of one input: itself, the files of a folder, or what a glob matches."""
    if os.path.isdir(entry):
        return folders.sources_of(entry, _walk(entry, losses, out), format, losses)
    if os.path.lexists(entry):
        return [one_file(entry, format)]
    if not glob.has_magic(entry):
        raise UserError(f"no such file or folder: {entry}")
    paths = sorted(glob.glob(entry, recursive=True))
    if not paths:
        raise UserError(f"no file matches {entry}")
    sources = []
    for path in paths:
        if not os.path.isdir(path):
            sources.append(one_file(path, format))
            continue
        inner = [Found(name, os.path.join(path, name)) for name in sorted(os.listdir(path))]
        data_set = folders.data_sets(inner, format).get("", [])
        if not data_set:
            losses.add(MATCHED_FOLDER, path)
        sources += data_set
    if not sources:
        raise UserError(f"{entry} matches only folders: name files, or one of the folders")
    return sources


def _walk(folder: str, losses: Losses, out: str) -> list[Found]:
    """All files in a folder and the folders in it; hidden ones, links to folders, OUT left out."""
    own = os.path.realpath(out) if out and not is_url(out) else ""

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read folder {error.filename}: {error.strerror}")

    found = []
    for here, inner, names in os.walk(folder, onerror=fail):
        walked = []
        for name in sorted(inner):
            path = os.path.join(here, name)
            if own and os.path.realpath(path) == own:
                continue
            if name.startswith("."):
                losses.add(HIDDEN, path)
            elif os.path.islink(path):
                losses.add(FOLDER_LINK, path)
            else:
                walked.append(name)
        inner[:] = walked
        for name in sorted(names):
            path = os.path.join(here, name)
            if name.startswith("."):
                losses.add(HIDDEN, path)
            else:
                found.append(Found(os.path.relpath(path, folder).replace(os.sep, "/"), path))
    return found


def one_file(path: str, format: str) -> Source:
    """One file as a source. Raises UserError as folders.source."""
    return folders.source(Found(os.path.basename(path), path), format)


def _remote(entry: str, format: str, losses: Losses) -> list[Source]:
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
        if not name.startswith(root) or folder:
            continue
        if hidden:
            losses.add(HIDDEN, f"{public(entry).rstrip('/')}/{relative}")
        else:
            found.append(Found(relative, f"{entry.rstrip('/')}/{relative}", info))
    return folders.sources_of(entry, found, format, losses)


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
