"""A folder of MDS shards of any columns, opened for reading: ours, or what another tool wrote.

Nothing in it is trusted: names stay within the folder, sizes and headers are compared before a
byte is used, and each file's hash when asked. Neither streaming nor torch is imported. A shard that
is compressed, or in an object store, is held in memory while it is read: nothing is cached.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.mds import columns_of
from elemdist.compression import decompress
from elemdist.errors import UserError
from elemdist.file_info import FileInfo
from elemdist.os_errors import reason_of
from elemdist.shard_cache import Folder, LocalFolder, check_size, open_folder, read_existing
from elemdist.shard_index import FORMAT, FORMAT_VERSION, missing_index, read_json
from elemdist.shard_maps import map_file

OPEN_MAPS = 256  # mapped shards that stay open
OPEN_COPIES = 2  # shards that are held in memory

Columns = tuple[tuple[str, str, int | None], ...]


@dataclass(frozen=True)
class Shard:
    """One entry of index.json.

    Attributes:
        stored: the file. raw: the same unpacked. compression: of the file, or "".
        samples: how many. columns: name, encoding and bytes (None: it varies) of each.
    """

    stored: FileInfo
    raw: FileInfo
    compression: str
    samples: int
    columns: Columns


class MdsFolder:
    """A folder or URL with MDS shards.

    Attributes:
        path: as given. name: the same without what may be secret in it.
        shards: the entries of the index. ends: (shards,) int64, the samples up to the end of each.
        samples: how many there are. last: the last entry of the index, as it is; {} for none.
        manifest: of a set of byte rows, else None. labels: its label names, or None.
        n, v: materials of a sample, bytes of a material; 0 without a manifest.
        head: bytes of the label bitmap before a sample's rows.
        fingerprint: hexadecimal hash of the index and the manifest, as ShardSet has it.
    """

    def __init__(self, path: str) -> None:
        """Reads index.json and manifest.json, no shard.

        Raises:
            UserError: no MDS folder, or a damaged one.
        """
        self.path = path
        self._folder = open_folder(path)
        self.name = self._folder.name
        try:
            index, text = read_json(self._folder, "index.json")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise missing_index(self._folder) from error
        self.manifest: dict[str, Any] | None = None
        self.labels: list[str] | None = None
        self.n = self.v = self.head = 0
        try:
            self.shards = [_shard(entry, self._folder) for entry in index["shards"]]
            self.last: dict[str, Any] = index["shards"][-1] if self.shards else {}
            if self._folder.exists("manifest.json"):
                manifest, more = read_json(self._folder, "manifest.json")
                if manifest.get("format") == FORMAT:  # other tools write such files, too
                    self._take(manifest)
                    text += b"\0" + more
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.name}: index.json or manifest.json is damaged ({error!r})"
            ) from error
        self.fingerprint = hashlib.sha256(text).hexdigest()[:32]
        self.ends = np.cumsum([shard.samples for shard in self.shards], dtype=np.int64)
        self.samples = int(self.ends[-1]) if self.shards else 0
        self._open: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample of byte rows, its label bitmap included."""
        return self.head + self.n * self.v

    @property
    def mapped(self) -> bool:
        """Whether every shard is a local file as it is used, so that a sample costs nothing."""
        local = isinstance(self._folder, LocalFolder)
        return local and not any(shard.compression for shard in self.shards)

    def stored_bytes(self, start: int, end: int) -> int:
        """About the stored bytes of the samples from start to end."""
        samples = np.concatenate([[0], self.ends])
        sizes = np.concatenate([[0], np.cumsum([shard.stored.size for shard in self.shards])])
        low, high = np.interp([start, end], samples, sizes)
        return int(high) - int(low)

    def _take(self, manifest: dict[str, Any]) -> None:
        """Makes this a set of byte rows."""
        if manifest["version"] != FORMAT_VERSION:
            raise UserError(
                f"{self.name}/manifest.json is {FORMAT} version {manifest['version']}; "
                f"this elemdist reads version {FORMAT_VERSION}"
            )
        self.n, self.v = int(manifest["n"]), int(manifest["v"])
        if manifest["labels"] is not None:
            self.labels = [str(name) for name in manifest["labels"]]
        wanted = tuple(columns_of(self.n, self.v, len(self.labels or ())))
        if any(shard.columns != wanted for shard in self.shards):
            raise UserError(f"{self.name}: index.json and manifest.json are of two sets")
        samples = sum(shard.samples for shard in self.shards)
        if samples != manifest["counts"]["samples"]:
            raise UserError(f"{self.name}: index.json and manifest.json disagree: copy it again")
        self.head = (len(self.labels or ()) + 7) // 8
        self.manifest = manifest

    def samples_of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """One shard.

        Returns:
            data: (bytes,) uint8, the whole file, unpacked, read only. offsets: (samples + 1,)
            int64, where each sample starts in it, and the last one ends.

        Raises:
            UserError: it is missing, damaged, or not what the index says.
        """
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        shard = self.shards[number]
        data = self._stored(shard)
        if not self.mapped:
            self._compare(shard, data)
        if shard.compression:
            try:
                data = np.frombuffer(
                    decompress(shard.compression, data.data, shard.raw.size), np.uint8
                )
            except ValueError as error:
                where = f"{self.name}/{shard.stored.name}"
                raise UserError(f"{where} cannot be unpacked: {error}") from error
        found = data, self._offsets(shard, data)
        self._open[number] = found
        while len(self._open) > (OPEN_MAPS if self.mapped else OPEN_COPIES):
            self._open.popitem(last=False)
        return found

    def rows_of(self, number: int) -> np.ndarray:
        """One shard of byte rows: (samples, label bytes + n * v) uint8, read only.

        Raises:
            UserError: as samples_of.
        """
        data, offsets = self.samples_of(number)
        return data[offsets[0] : offsets[-1]].reshape(-1, self.sample_bytes)

    def verify(self, number: int) -> None:
        """Compares the hash of a mapped shard with the index, if that has one. Any other shard is
        compared whenever it is read.

        Raises:
            UserError: the file is missing, or its content changed.
        """
        if self.mapped:
            self._compare(self.shards[number], self._stored(self.shards[number]))

    def _compare(self, shard: Shard, data: np.ndarray) -> None:
        digest, expected = shard.stored.digest()
        if digest is not None:
            digest.update(data)
            if digest.hexdigest() != expected:
                raise UserError(
                    f"{self.name}/{shard.stored.name} is damaged, its hash differs: copy it again"
                )

    def _stored(self, shard: Shard) -> np.ndarray:
        """The file of a shard, mapped where it can be: (bytes,) uint8."""
        info = shard.stored
        if isinstance(self._folder, LocalFolder):
            check_size(self._folder, info)
            path = os.path.join(self._folder.path, info.name)
            if not info.size:
                return np.zeros(0, np.uint8)  # nothing to map
            try:
                return map_file(path, 0, info.size)
            except OSError as error:
                raise UserError(f"cannot read {path}: {reason_of(error)}") from error
            except ValueError as error:
                raise UserError(f"{path} was cut short, {error}: copy it again") from error
        data = read_existing(self._folder, info.name, 0, info.size + 1)
        if len(data) != info.size:
            raise UserError(
                f"{self.name}/{info.name} does not have {info.size:,} bytes: copy it again"
            )
        return np.frombuffer(data, np.uint8)

    def _offsets(self, shard: Shard, data: np.ndarray) -> np.ndarray:
        """Where the samples start, checked against the index and the file."""
        begin = 4 * (shard.samples + 2)
        good = len(data) == shard.raw.size and begin <= len(data)
        if good:
            numbers = data[:begin].view("<u4").astype(np.int64)
            offsets = numbers[1:]
            good = bool(
                numbers[0] == shard.samples
                and begin <= offsets[0]
                and offsets[-1] <= len(data)
                and (np.diff(offsets) >= 0).all()
            )
        if good:
            try:
                good = columns_in(json.loads(data[begin : offsets[0]].tobytes())) == shard.columns
            except (ValueError, KeyError, TypeError, RecursionError):
                good = False
        if good and self.manifest is not None:
            good = bool((np.diff(offsets) == self.sample_bytes).all())
        if not good:
            raise UserError(
                f"{self.name}/{shard.stored.name} is damaged, its header is not that of the set: "
                f"copy it again"
            )
        return offsets


def opened(path: str, version: str) -> MdsFolder:
    """A folder, of which a process parses the index only once.

    Args:
        version: changes when the set is replaced; "": not known, so that it is parsed anew.

    Raises:
        UserError: as MdsFolder.
    """
    folder = copy.copy(_parsed(path, version) if version else MdsFolder(path))
    folder._open = OrderedDict()  # the files may still have been replaced since
    return folder


@functools.lru_cache(maxsize=4)
def _parsed(path: str, version: str) -> MdsFolder:
    return MdsFolder(path)


def _shard(entry: dict[str, Any], folder: Folder) -> Shard:
    """An entry of the index of a folder."""
    where = folder.name
    if entry.get("format", "mds") != "mds":
        raise UserError(f"{where}: its shards are {entry['format']}, only mds is read")
    raw = FileInfo.of(entry["raw_data"], where)
    packed = entry.get("zip_data") and FileInfo.of(entry["zip_data"], where)
    # A reader that unpacks may have kept the unpacked file alone.
    if packed and isinstance(folder, LocalFolder) and not folder.exists(packed.name):
        packed = None if folder.exists(raw.name) else packed
    samples = int(entry["samples"])
    if samples < 0:  # streaming writes an empty shard in front of a sample that is too large
        raise ValueError(f"{raw.name}: {samples} samples")
    compression = str(entry["compression"]) if packed else ""
    return Shard(packed or raw, raw, compression, samples, columns_in(entry))


def columns_in(config: dict[str, Any]) -> Columns:
    """Name, encoding and bytes of each column, as an index entry or a header lists them."""
    names = ("column_names", "column_encodings", "column_sizes")
    return tuple(zip(*(config[name] for name in names), strict=True))
