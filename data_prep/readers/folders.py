"""Files of a folder that fit the format, and folders that are data sets of their own."""

from __future__ import annotations

import json
import os
import posixpath
import re
import stat
from dataclasses import dataclass
from typing import Any

import xxhash

from data_prep.documents import Source
from data_prep.losses import BESIDE_SET, OTHER_FORMAT, OTHER_NAME, Losses
from data_prep.readers.content import zip_advice
from data_prep.readers.files import asked, remote_version
from elemdist.errors import UserError
from elemdist.remote import filesystem, is_url, public

COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2", ".lz4")
SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "text": (".txt", ".text", ".md", ".rst"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
    "tar": (".tar",),
    "warc": (".wet", ".warc"),
}
SHORT = {f".t{short}": (".tar", f".{short}") for short in ("gz", "bz2", "xz", "zst")}
COMPRESSIBLE = ("text", "jsonl", "csv", "tsv", "tar", "warc")
# Files of data sets that hold no documents: ours, and those of Hugging Face datasets.
SET_FILES = re.compile(
    r"(index|manifest|state|dataset_info|dataset_dict)\.json|(journal|rejects)\.jsonl"
)
# Folders that are data sets, by the file that tells.
MARKS = {"state.json": "datasets", "index.json": "mds", "dataset_dict.json": "datasets"}


@dataclass(frozen=True)
class Found:
    """A file: its path within the folder that was searched, with /, its path or URL, and what the
    object store says of it."""

    relative: str
    path: str
    info: dict[str, Any] | None = None

    @property
    def folder(self) -> str:
        """The folder within the one that was searched; "" for that one itself."""
        return posixpath.dirname(self.relative)

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return posixpath.basename(self.relative)

    @property
    def order(self) -> list[tuple[bool, str]]:
        """Files come before folders, both by name."""
        *above, name = self.relative.split("/")
        return [*((True, piece) for piece in above), (False, name)]


def suffix_of(path: str) -> tuple[str, str]:
    """The suffix that tells the format and the one that tells the compression, in lower case."""
    stem, last = os.path.splitext(public(path).lower())
    if last in SHORT:
        return SHORT[last]
    if last in COMPRESSIONS:
        return os.path.splitext(stem)[1], last
    return last, ""


def told_format(path: str) -> str:
    """The format that a file's name tells; "" if it tells none."""
    suffix, compression = suffix_of(path)
    for format, suffixes in SUFFIXES.items():
        if suffix in suffixes and (not compression or format in COMPRESSIBLE):
            return format
    return ""


def source(found: Found, format: str) -> Source:
    """One file as a source; auto is what its name tells.

    Raises:
        UserError: it is unreadable, no regular file, or not of that format by its name.
    """
    path = found.path
    _, compression = suffix_of(path)
    if format == "mds":
        raise UserError(f"{public(path)} is a file: name the folder of the MDS set")
    if format == "auto":
        format = told_format(path)
        if not format and path.lower().endswith(".zip"):
            raise UserError(f"{public(path)} {zip_advice(path)}")
        if not format:
            raise UserError(
                f"{public(path)}: the name does not tell what it holds: set --input.format, as in "
                f"--input.format text or jsonl"
            )
    if compression and format not in (*COMPRESSIBLE, "datasets"):
        raise UserError(f"{public(path)}: {format} is not read compressed: unpack it first")
    size, version = _state(found)
    return Source(path, format, compression if format in COMPRESSIBLE else "", size, version)


def _state(found: Found) -> tuple[int, str]:
    """Size and version of a file."""
    path, info = found.path, found.info
    if info is None and is_url(path):
        store, inner = filesystem(path)
        info = asked(lambda: store.info(inner), path)
    if info is not None:
        if info.get("size") is None:
            raise UserError(f"cannot read {public(path)}: its size is not told; copy it first")
        return info["size"], remote_version(info)
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb"):
                pass
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file: write its content to a file first")
    return status.st_size, str(status.st_mtime_ns)


def sources_of(folder: str, files: list[Found], format: str, losses: Losses) -> list[Source]:
    """The sources in a folder, in order, out of all files in it and in the folders in it.

    Args:
        folder: the path or URL, as the user wrote it. losses: counts the files that are left out.

    Raises:
        UserError: none fits the format; one is unreadable; a data set that cannot be taken.
    """
    files = sorted(files, key=lambda found: found.order)
    sets = data_sets(files, format)
    taken: set[str] = set()
    sources: list[Source] = []
    beside: list[Found] = []
    for found in files:
        above = _set_above(found.folder, sets)
        if above is None:
            told = told_format(found.path)
            if format == "text" or (told and format in ("auto", told)):
                sources.append(source(found, format))
            else:
                losses.add(OTHER_FORMAT if told else OTHER_NAME, public(found.path))
            continue
        if above not in taken:
            taken.add(above)
            sources += sets[above]
        beside.append(found)
    own = {one.path for one in sources}
    for one in sources:
        own |= _shards_of(one) if one.format == "mds" else set()
    for found in beside:
        if found.path not in own and not SET_FILES.fullmatch(found.name):
            losses.add(BESIDE_SET, public(found.path))
    if not sources:
        raise UserError(f"folder {public(folder)} has no {_wanted(format)}")
    return sources


def _wanted(format: str) -> str:
    """What a folder lacks that has nothing of a format."""
    if format == "text":
        return "visible files"
    if format in ("datasets", "mds"):
        mark = next(name for name, kind in MARKS.items() if kind == format)
        return f"{mark}, nor has a folder in it: it is no {format} data set"
    suffixes = SUFFIXES[format] if format != "auto" else [some[0] for some in SUFFIXES.values()]
    return (
        f"files *{', *'.join(suffixes)} (also {', '.join(COMPRESSIONS)}); with --input.format text "
        f"every file is taken"
    )


def _set_above(folder: str, sets: dict[str, list[Source]]) -> str | None:
    """The data set that a folder is, or is in."""
    if not sets:
        return None
    while folder not in sets:
        if not folder:
            return None
        folder = posixpath.dirname(folder)
    return folder


def data_sets(files: list[Found], format: str) -> dict[str, list[Source]]:
    """The folders, relative to the searched one, that are data sets, with what is in them.

    Args:
        files: all files that were found, in order.

    Raises:
        UserError: one that has to be named more closely, lacks a file, or cannot be read.
    """
    sets: dict[str, list[Source]] = {}
    if format not in ("auto", "datasets", "mds"):
        return sets
    folders: dict[str, dict[str, Found]] = {}
    for found in files:
        folders.setdefault(found.folder, {})[found.name] = found
    for folder, names in folders.items():
        for mark, kind in MARKS.items():
            if mark in names and format in ("auto", kind) and _set_above(folder, sets) is None:
                told = _json_of(names[mark])
                sources = _data_set(mark, told, names) if isinstance(told, dict) else None
                if sources is not None:
                    sets[folder] = sources
    return sets


def _shards_of(source: Source) -> set[str]:
    """The paths or URLs of the shards that an index names."""
    try:
        shards = json.loads(contents(f"{source.path}/index.json"))["shards"]
        files = [shard.get(key) for shard in shards for key in ("raw_data", "zip_data")]
        return {f"{source.path}/{file['basename']}" for file in files if file}
    except (ValueError, LookupError, TypeError, AttributeError):
        return set()  # its reader says what is wrong


def _json_of(found: Found) -> Any:
    """What a JSON file holds; None if it is none."""
    try:
        return json.loads(contents(found.path))
    except (ValueError, RecursionError):
        return None


def contents(path: str) -> bytes:
    """All bytes of a small file, local or in an object store.

    Raises:
        UserError: it is missing or cannot be read.
    """
    if is_url(path):
        store, inner = filesystem(path)
        found: bytes = asked(lambda: store.cat_file(inner), path)
        return found
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _data_set(mark: str, told: dict[str, Any], names: dict[str, Found]) -> list[Source] | None:
    """The sources of a folder that has a file which may tell a data set; None if it tells none."""
    path = os.path.dirname(names[mark].path)
    if mark == "dataset_dict.json" and isinstance(told.get("splits"), list):
        splits = ", ".join(f"{public(path)}/{split}" for split in told["splits"])
        raise UserError(f"{public(path)} holds several splits: name one of {splits}")
    if mark == "state.json" and isinstance(told.get("_data_files"), list):
        return _datasets_files(path, told, names)
    if mark == "index.json" and isinstance(told.get("shards"), list):
        try:
            stored = [shard.get("zip_data") or shard["raw_data"] for shard in told["shards"]]
            size = sum(int(file["bytes"]) for file in stored)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(f"{public(names[mark].path)} is damaged: copy it again") from None
        version = xxhash.xxh3_128_hexdigest(contents(names[mark].path))
        return [Source(path, "mds", "", size, version)]
    return None


def _datasets_files(path: str, state: dict[str, Any], names: dict[str, Found]) -> list[Source]:
    """One source for each file of a data set that datasets saved, in its order."""
    if state.get("_indices_data_files"):
        raise UserError(f"{public(path)} is a selection of rows: flatten_indices() and save again")
    sources = []
    for entry in state["_data_files"]:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or posixpath.basename(name) != name:
            raise UserError(f"{public(path)}/state.json names a file outside its folder: {name}")
        if name not in names:
            raise UserError(f"{public(path)}/{name} is missing: copy the data set again")
        sources.append(source(names[name], "datasets"))
    return sources
