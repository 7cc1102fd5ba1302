"""A shard set, opened for reading: every shard one memory-mapped matrix, a batch one gather.

A set is a folder with index.json (MosaicML Streaming's), manifest.json (ours) and MDS shards of
fixed-size columns. Nothing in it is trusted: names stay within the folder, sizes and headers are
compared before a byte is used, and verify() compares the hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from elemdist.errors import UserError

FORMAT, FORMAT_VERSION = "elemdist-shards", 1
OPEN_MAPS = 512  # each holds a file descriptor, of which a process has 1,024 by default
MAKE_ONE = "make one with `elemdist shard`"


def read_json(folder: str, name: str) -> tuple[dict[str, Any], bytes]:
    """A JSON object out of a shard folder, and its bytes.

    Raises:
        UserError: the file is missing, unreadable, or not a JSON object.
    """
    path = os.path.join(folder, name)
    try:
        with open(path, "rb") as file:
            text = file.read()
        value = json.loads(text)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: not a JSON object")
    return value, text


def read_manifest(folder: str) -> dict[str, Any]:
    """The manifest of a shard set.

    Raises:
        UserError: no shard set, a set without a manifest, or one of another version.
    """
    if not os.path.isdir(folder):
        raise UserError(f"no shard folder {folder}: {MAKE_ONE}")
    if not os.path.exists(os.path.join(folder, "index.json")):
        inner = [
            os.path.join(folder, name)
            for name in ("train", "val")
            if os.path.exists(os.path.join(folder, name, "index.json"))
        ]
        hint = f"name {' or '.join(inner)}" if inner else MAKE_ONE
        raise UserError(f"{folder} is no complete shard set, it has no index.json: {hint}")
    if not os.path.exists(os.path.join(folder, "manifest.json")):
        raise UserError(f"{folder} has no manifest.json, it is no elemdist shard set: {MAKE_ONE}")
    manifest, _ = read_json(folder, "manifest.json")
    if manifest.get("format") != FORMAT or manifest.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{folder}/manifest.json is {manifest.get('format')} version "
            f"{manifest.get('version')}; this elemdist reads {FORMAT} version {FORMAT_VERSION}"
        )
    return manifest


@dataclass(frozen=True)
class Shard:
    """One shard file: its path, samples and bytes, its first sample's place in it, its hash."""

    path: str
    samples: int
    size: int
    xxh3_128: str
    columns: tuple[Any, ...]


class ShardSet:
    """A shard set, for reading.

    Attributes:
        path: the folder. manifest: its manifest.
        n, v: materials of a sample, elements of a material.
        labels: label names in the order of the bits, or None.
        samples: how many samples. text_bytes: bytes of text in them.
        fingerprint: hexadecimal hash of the index and the manifest: another set has another one.
    """

    def __init__(self, path: str) -> None:
        """Opens a set. Reads no shard, but compares every shard's size.

        Raises:
            UserError: the folder is no shard set, or a shard is missing or of the wrong size.
        """
        self.path = path
        self.manifest = read_manifest(path)
        index, index_bytes = read_json(path, "index.json")
        _, manifest_bytes = read_json(path, "manifest.json")
        self.fingerprint = hashlib.sha256(index_bytes + b"\0" + manifest_bytes).hexdigest()[:32]
        try:
            self.n, self.v = int(self.manifest["n"]), int(self.manifest["v"])
            self.labels: list[str] | None = self.manifest["labels"]
            counts = self.manifest["counts"]
            self.text_bytes = int(counts["text_bytes"]) - int(counts["dropped_bytes"])
            self._shards = [self._shard(entry) for entry in index["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: index.json or manifest.json is damaged ({error!r})"
            ) from error
        self._head = (len(self.labels or ()) + 7) // 8
        self._sample_bytes = self._head + self.n * self.v
        self._ends = np.cumsum([shard.samples for shard in self._shards], dtype=np.int64)
        self.samples = int(self._ends[-1]) if self._shards else 0
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return self.samples

    def label_shares(self) -> list[float]:
        """For each label the share of the documents that have it, from 0 to 1."""
        documents = max(1, int(self.manifest["counts"]["documents"]))
        counts = self.manifest["label_counts"] or {}
        return [counts.get(label, 0) / documents for label in self.labels or []]

    def _shard(self, entry: dict[str, Any]) -> Shard:
        info = entry["raw_data"]
        name = info["basename"]
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise UserError(f"{self.path}/index.json names a file outside its folder: {name!r}")
        path = os.path.join(self.path, name)
        size = os.path.getsize(path) if os.path.isfile(path) else None
        if size is None:
            raise UserError(f"{path} is missing: the shard set is not complete, copy it again")
        if size != info["bytes"]:
            raise UserError(
                f"{path} has {size:,} bytes instead of {info['bytes']:,}: copy it again"
            )
        columns = (entry["column_names"], entry["column_encodings"], entry["column_sizes"])
        return Shard(path, int(entry["samples"]), size, info["hashes"]["xxh3_128"], columns)

    def _map(self, number: int) -> np.ndarray:
        """The samples of one shard: (samples, label bytes + n * v) uint8, read only."""
        if number in self._maps:
            self._maps.move_to_end(number)
            return self._maps[number]
        shard = self._shards[number]
        begin = shard.size - shard.samples * self._sample_bytes
        check_header(shard, begin, self._sample_bytes)
        shape = (shard.samples, self._sample_bytes)
        # A plain view: np.memmap's own bookkeeping costs more than a small gather.
        found = np.memmap(shard.path, np.uint8, "r", begin, shape).view(np.ndarray)
        self._maps[number] = found
        if len(self._maps) > OPEN_MAPS:
            self._maps.popitem(last=False)
        return found

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The samples with these numbers, in this order.

        Args:
            ids: (B,) int64, each from 0 to samples - 1, in any order, repeats allowed.

        Returns:
            rows_BNV: (B, n, v) uint8. labels_BL: (B, L) uint8 of 0 and 1, or None.

        Raises:
            IndexError: a number out of range.
            UserError: a shard's header is not what the index says.
        """
        if len(ids) and (ids.min() < 0 or ids.max() >= self.samples):
            raise IndexError(f"sample numbers must be from 0 to {self.samples - 1}")
        block = np.empty((len(ids), self._sample_bytes), np.uint8)
        shard_of = np.searchsorted(self._ends, ids, side="right")
        for number in np.unique(shard_of):
            here = np.flatnonzero(shard_of == number)
            first = self._ends[number] - self._shards[number].samples
            block[here] = self._map(int(number))[ids[here] - first]
        rows_BNV = block[:, self._head :].reshape(len(ids), self.n, self.v)
        if self.labels is None:
            return rows_BNV, None
        labels_BL = np.unpackbits(block[:, : self._head], axis=1, count=len(self.labels))
        return rows_BNV, labels_BL

    def some_rows(self, samples: int = 1000) -> np.ndarray:
        """The rows of at most so many samples, spread evenly over the set: (rows, v) uint8."""
        ids = np.linspace(0, self.samples - 1, min(samples, self.samples)).astype(np.int64)
        return self.gather(ids)[0].reshape(-1, self.v)

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Reads every shard and compares its hash with the index.

        Args:
            part, parts: check only every `parts`-th shard from number `part` on, so that several
                processes can share the work.

        Raises:
            UserError: a shard that cannot be read or whose content changed.
        """
        import xxhash  # only this method needs it

        for shard in self._shards[part::parts]:
            digest = xxhash.xxh3_128()
            try:
                with open(shard.path, "rb", buffering=0) as file:
                    while chunk := file.read(1 << 20):
                        digest.update(chunk)
            except OSError as error:
                raise UserError(f"cannot read {shard.path}: {error.strerror}") from error
            if digest.hexdigest() != shard.xxh3_128:
                raise UserError(f"{shard.path} is damaged, its hash differs: copy it again")


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
