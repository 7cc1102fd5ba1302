"""What a shard set says of itself: index.json, manifest.json, and the headers of its shards."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from elemdist.artefacts import AGAIN, parse_json
from elemdist.errors import UserError
from elemdist.file_info import FileInfo
from elemdist.json_types import misfit
from elemdist.other_words import shards_here
from elemdist.set_types import Index, Manifest, contradiction
from elemdist.shard_cache import Folder, LocalFolder, open_folder

FORMAT, FORMAT_VERSION = "elemdist-shards", 1
MAKE_ONE = "make one with `elemdist shard`"
UNFINISHED = ".elemdist"  # what `elemdist shard` keeps in a folder until it has ended


def read_json(folder: Folder, name: str) -> tuple[dict[str, Any], bytes]:
    """A JSON object out of a shard folder, and its bytes.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file cannot be read, or is not a JSON object.
    """
    text = folder.read(name)
    value = parse_json(text, f"{folder.name}/{name}")
    if not isinstance(value, dict):
        raise UserError(f"{folder.name}/{name} is damaged: not a JSON object; {AGAIN}")
    return value, text


def missing_index(folder: Folder) -> UserError:
    """Why a folder has no index.json, and what to do about it."""
    # A run that makes several sets keeps its own files beside their folders.
    if folder.exists(UNFINISHED) or folder.exists_beside(UNFINISHED):
        return UserError(
            f"{folder.name} is unfinished: run the same `elemdist shard` command again, it goes on"
        )
    if isinstance(folder, LocalFolder) and not os.path.isdir(folder.path):
        return UserError(f"no shard folder {folder.name}: {shards_here(folder.path) or MAKE_ONE}")
    inner = [
        f"{folder.name}/{name}"
        for name in ("train", "val", "test")
        if folder.exists(f"{name}/index.json")
    ]
    named = f"name {' or '.join(inner)}" if inner else ""
    hint = named or (isinstance(folder, LocalFolder) and shards_here(folder.path)) or MAKE_ONE
    return UserError(f"{folder.name} is no complete shard set, it has no index.json: {hint}")


def read_set(folder: Folder) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The index and the manifest of a set, and its fingerprint.

    Raises:
        UserError: no shard set, an unfinished one, or one of another version.
    """
    try:
        index, index_bytes = read_json(folder, "index.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing_index(folder) from error
    try:
        manifest, manifest_bytes = read_json(folder, "manifest.json")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder.name} has no manifest.json, it is no elemdist shard set: {MAKE_ONE}"
        ) from error
    if manifest.get("format") != FORMAT or manifest.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{folder.name}/manifest.json is {manifest.get('format')} version "
            f"{manifest.get('version')}; this elemdist reads {FORMAT} version {FORMAT_VERSION}"
        )
    for name, value, kind in (("manifest", manifest, Manifest), ("index", index, Index)):
        wrong = misfit(value, kind) or (contradiction(value) if name == "manifest" else None)
        if wrong is not None:
            raise UserError(f"{folder.name}/{name}.json is damaged: {wrong}; {AGAIN}")
    fingerprint = hashlib.sha256(index_bytes + b"\0" + manifest_bytes).hexdigest()[:32]
    return index, manifest, fingerprint


def read_manifest(path: str) -> dict[str, Any]:
    """The manifest of a shard set, by its folder or URL.

    Raises:
        UserError: no shard set, an unfinished one, or one of another version.
    """
    return read_set(open_folder(path))[1]


@dataclass(frozen=True)
class Shard:
    """One shard: where its file lies or will lie, its samples, and what the index says of it.

    Attributes:
        packed: the compressed file, if there is one. compression: how, by streaming's names.
        columns: names, encodings and sizes of the columns, as the header must have them.
    """

    path: str
    samples: int
    raw: FileInfo
    packed: FileInfo | None
    compression: str
    columns: tuple[Any, ...]


def columns_of(n: int, v: int, labels: list[str] | None) -> tuple[list[Any], ...]:
    """Names, encodings and sizes of the columns that a set of this shape has."""
    names, encodings, sizes = ["rows"], [f"ndarray:uint8:{n},{v}"], [n * v]
    if labels:
        bitmap_bytes = (len(labels) + 7) // 8
        names.insert(0, "labels")
        encodings.insert(0, f"ndarray:uint8:{bitmap_bytes}")
        sizes.insert(0, bitmap_bytes)
    return names, encodings, sizes


def check_header(shard: Shard, begin: int, sample_bytes: int) -> None:
    """Compares a shard's own header with what the index and the manifest say of it.

    Args:
        begin: where the first sample must start. sample_bytes: bytes of a sample.

    Raises:
        UserError: they differ, so that the file is damaged or of another set.
    """
    with open(shard.path, "rb") as file:
        header = file.read(begin) if begin > 0 else b""
    places = 4 * (shard.samples + 1)
    good = len(header) >= 4 + places
    if good:
        numbers = np.frombuffer(header, "<u4", shard.samples + 2)
        offsets = begin + sample_bytes * np.arange(shard.samples + 1)
        good = numbers[0] == shard.samples and np.array_equal(numbers[1:], offsets)
    if good:
        try:
            config = json.loads(header[4 + places :])
            names = ("column_names", "column_encodings", "column_sizes")
            good = tuple(config[name] for name in names) == shard.columns
        except (ValueError, KeyError, TypeError):
            good = False
    if not good:
        raise UserError(
            f"{shard.path} is damaged, its header is not that of the set: copy it again"
        )
