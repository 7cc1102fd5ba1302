"""What a shard set says of itself, judged: index.json and manifest.json, every fault of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_prep.journal import STATE
from data_prep.mds import columns_of, hash_names
from data_prep.store import Store
from elemdist.artefacts import parse_json
from elemdist.compression import check as check_compression
from elemdist.errors import UserError
from elemdist.file_info import is_inside
from elemdist.remote import public
from elemdist.shard_index import FORMAT, FORMAT_VERSION

INDEX, MANIFEST = "index.json", "manifest.json"
LARGEST_SHARD = 1 << 32  # a shard says in 32 bits where its samples start

Problem = Callable[[str], None]


@dataclass(frozen=True)
class Geometry:
    """The shape of the samples of a set, and how documents lie in them.

    Attributes:
        n, v: rows of a sample, bytes of a row. labels: how many label names there are.
        packed: documents lie back to back. truncate: a document loses what a sample cannot hold.
        torn: samples were taken without their documents, so that none goes on with another.
    """

    n: int
    v: int
    labels: int
    packed: bool
    truncate: bool
    torn: bool

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample, its label bitmap included."""
        return sum(size for _, _, size in self.columns)

    @property
    def columns(self) -> list[tuple[str, str, int]]:
        """Name, encoding and bytes of each column of the shards."""
        return columns_of(self.n, self.v, self.labels)


@dataclass(frozen=True)
class File:
    """A file as the index lists it: name in the folder, bytes, and hexadecimal hashes by name."""

    name: str
    size: int
    hashes: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """One shard as the index lists it.

    Attributes:
        raw: the shard as it is read. packed: the compressed file, if that is what is stored.
        compression: how; "" for none. columns: name, encoding and bytes of each.
    """

    samples: int
    raw: File
    packed: File | None
    compression: str
    columns: list[tuple[str, str, int]]

    @property
    def holds_rows(self) -> bool:
        """Return True if a column is named as the rows of a set of ours are."""
        return any(name == "rows" for name, _, _ in self.columns)

    @property
    def stored(self) -> File:
        """The file that lies in the folder."""
        return self.packed or self.raw


class WrongError(Exception):
    """Something in a JSON file that cannot be; the message says what."""


def read_object(store: Store, name: str, problem: Problem) -> dict[str, Any] | None:
    """A JSON object out of a folder; None, and a problem, if there is none to be had."""
    try:
        value = parse_json(store.read(name), name)
    except FileNotFoundError:
        problem("it is missing")
    except (OSError, UserError) as error:
        problem(f"it cannot be read: {error}")
    else:
        if isinstance(value, dict):
            return value
        problem("it is damaged: not a JSON object")
    return None


def entries_of(index: dict[str, Any], problem: Problem) -> list[Entry]:
    """The shards that an index lists, without those entries that are told as problems."""
    listed = index.get("shards")
    if index.get("version") != 2 or not isinstance(listed, list):
        problem("it is no index of MDS shards, version 2")
        return []
    entries = []
    taken: set[str] = set()
    for number, value in enumerate(listed):
        try:
            entry = _entry(value)
            if entry.stored.name in taken:
                raise WrongError(f"it names {entry.stored.name!r}, as one before does")
        except WrongError as error:
            problem(f"entry {number}: {error}")
            continue
        taken.add(entry.stored.name)
        entries.append(entry)
    return entries


def _entry(value: Any) -> Entry:
    if not isinstance(value, dict) or value.get("format") != "mds":
        raise WrongError("it is no MDS shard")
    keys = ("column_names", "column_encodings", "column_sizes")
    lists: list[Any] = [value.get(key) for key in keys]
    if not all(isinstance(one, list) for one in lists) or len({len(one) for one in lists}) != 1:
        raise WrongError("its columns are damaged")
    samples, compression = value.get("samples"), value.get("compression")
    if type(samples) is not int or samples < 0:
        raise WrongError(f"samples is {samples!r}")
    packed = None
    if value.get("zip_data") is not None:
        packed = _file(value["zip_data"])
        try:
            check_compression(str(compression))
        except UserError as error:
            raise WrongError(str(error)) from error
    columns = list(zip(*lists, strict=True))
    name = str(compression) if packed else ""
    return Entry(samples, _file(value.get("raw_data")), packed, name, columns)


def _file(value: Any) -> File:
    if not isinstance(value, dict):
        raise WrongError("it names no file")
    name, size, hashes = value.get("basename"), value.get("bytes"), value.get("hashes")
    if not isinstance(name, str) or not is_inside(name):
        raise WrongError(f"it names a file outside the folder, {name!r}; that is not opened")
    if type(size) is not int or not 0 <= size < LARGEST_SHARD:
        raise WrongError(f"{name!r} has {size!r} bytes")
    if isinstance(hashes, dict):
        hashes = {key: hash for key, hash in hashes.items() if hash is not None}
    hashes = {} if hashes is None else hashes
    if not isinstance(hashes, dict) or not all(isinstance(hash, str) for hash in hashes.values()):
        raise WrongError(f"the hashes of {name!r} are damaged")
    try:
        hash_names(",".join(hashes))
    except UserError as error:
        raise WrongError(f"{name!r}: {error}") from error
    return File(name, size, hashes)


def geometry_of(manifest: dict[str, Any], problem: Problem) -> Geometry | None:
    """The shape that a manifest tells; None, and a problem, if it tells none."""
    try:
        return _geometry(manifest)
    except WrongError as error:
        problem(str(error))
        return None


def _geometry(manifest: dict[str, Any]) -> Geometry:
    kind, version = manifest.get("format"), manifest.get("version")
    if (kind, version) != (FORMAT, FORMAT_VERSION):
        raise WrongError(f"it is {kind!r} version {version!r}, not {FORMAT} {FORMAT_VERSION}")
    sizes = {name: manifest.get(name) for name in ("n", "v")}
    for name, size in sizes.items():
        if type(size) is not int or not 0 < size < LARGEST_SHARD:
            raise WrongError(f"{name} is {size!r}")
    for name, known in (("packing", ("document", "packed")), ("overlong", ("split", "truncate"))):
        if manifest.get(name) not in known:
            raise WrongError(f"{name} is {manifest.get(name)!r}")
    labels = manifest.get("labels")
    if labels is not None:
        texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        if not texts or len(set(labels)) != len(labels):
            raise WrongError("labels is no list of different names")
    packed = manifest["packing"] == "packed"
    truncate = manifest["overlong"] == "truncate" and not packed
    torn = bool(manifest.get("torn"))
    return Geometry(manifest["n"], manifest["v"], len(labels or ()), packed, truncate, torn)


def strangers(store: Store, entries: list[Entry]) -> list[str]:
    """Files of the folder that are no part of the set."""
    known = {INDEX, MANIFEST, "journal.jsonl", "rejects.jsonl"}
    known |= {file.name for entry in entries for file in (entry.raw, entry.packed) if file}
    return sorted(set(store.sizes()) - known)


def no_set(store: Store) -> UserError:
    """Why a folder is none, or not yet."""
    place, names = public(store.path), store.names()
    if STATE in names:
        return UserError(f"{place} is unfinished: run the command that makes it again, it goes on")
    inner = [name for name in names if store.size(f"{name}/{INDEX}") is not None]
    if inner:
        named = " or ".join(f"{place}/{name}" for name in inner)
        return UserError(f"{place} is no shard set, its folders are: name {named}")
    return UserError(f"{place} is no shard set: make one with `elemdist shard`")
