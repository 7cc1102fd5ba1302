"""A writer of MosaicML Streaming shards (MDS) for fixed-size columns: whole blocks at a time.

Byte for byte what streaming's own MDSWriter makes of the same samples, without importing it (and
with it torch). A shard file is: the number of samples and where each sample starts (uint32, little
endian), the columns as JSON, then all samples as one contiguous C-ordered matrix.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import xxhash

from data_prep.store import Store
from elemdist.compression import compress, extension
from elemdist.errors import UserError, nearest
from elemdist.json_text import json_text

DEFAULT_HASH = "xxh3_128"
XX_HASHES = ("xxh32", "xxh64", "xxh128", "xxh3_64", "xxh3_128")


def columns_of(n: int, v: int, labels: int) -> list[tuple[str, str, int]]:
    """Name, encoding and bytes of each column, in the order they have within a sample."""
    columns = [("rows", f"ndarray:uint8:{n},{v}", n * v)]
    if labels:
        bitmap_bytes = (labels + 7) // 8
        columns.append(("labels", f"ndarray:uint8:{bitmap_bytes}", bitmap_bytes))
    return sorted(columns)


def hash_names(text: str) -> list[str]:
    """The hashes that a setting names between commas, sorted, as hashlib and xxhash call them.

    Raises:
        UserError: an unknown one.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = sorted(set(XX_HASHES) | {n for n in hashlib.algorithms_available if "shake" not in n})
    for name in names:
        if name not in known:
            raise UserError(
                f"hashes: unknown '{name}'{nearest(name, known)}; known are {', '.join(known)}"
            )
    return sorted(set(names))


def new_digest(algorithm: str) -> Any:
    """A hash object, with update() and hexdigest()."""
    return getattr(xxhash, algorithm)() if algorithm in XX_HASHES else hashlib.new(algorithm)


def digest_of(algorithm: str, *parts: bytes | memoryview) -> str:
    """The hexadecimal hash of parts that belong together."""
    digest = new_digest(algorithm)
    for part in parts:
        digest.update(part)
    return str(digest.hexdigest())


class MdsWriter:
    """Writes blocks of samples as shards PREFIX.00000.mds, PREFIX.00001.mds, ... of one folder.

    A file appears under its name only when it is complete. It may not be on the disk yet: that is
    made sure of before the index is written, so that the system can write while the work goes on.

    Attributes:
        samples_per_shard: samples of a full shard; a block never holds more.
        sample_bytes: bytes of a sample, its label bitmap before its rows.
        shards: one entry of index.json for each shard written.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        n: int,
        v: int,
        labels: int,
        size_limit: int,
        compression: str | None = None,
        hashes: tuple[str, ...] = (DEFAULT_HASH,),
    ) -> None:
        """Prepares to write; touches no file.

        Args:
            n, v: rows of a sample, bytes of a row. labels: how many label names there are.
            size_limit: bytes of a full shard, uncompressed.
            compression: as ShardSettings.compression. hashes: of each file, for the index.

        Raises:
            UserError: a shard of size_limit bytes cannot hold a single sample.
        """
        columns = columns_of(n, v, labels)
        self._store, self._prefix = store, prefix
        self._compression, self._hashes = compression, hashes
        self._config: dict[str, Any] = {
            "version": 2,
            "format": "mds",
            "compression": compression,
            "hashes": list(hashes),
            "size_limit": size_limit,
            "column_names": [name for name, _, _ in columns],
            "column_encodings": [encoding for _, encoding, _ in columns],
            "column_sizes": [size for _, _, size in columns],
        }
        self._config_json = json_text(self._config, sort_keys=True).encode()
        self.shards: list[dict[str, Any]] = []
        self.sample_bytes = sum(size for _, _, size in columns)
        fixed = 8 + len(self._config_json)  # the count, the end of the last sample, the columns
        self.samples_per_shard = (size_limit - fixed) // (self.sample_bytes + 4)
        if self.samples_per_shard < 1:
            raise UserError(
                f"a shard of {size_limit:,} bytes cannot hold one sample of n * v = {n} * {v} "
                f"bytes: set shard_mb higher, or n or v lower"
            )

    def write(self, block: np.ndarray) -> None:
        """Writes one shard out of a block (samples, sample_bytes), uint8, C order.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        samples = len(block)
        begin = 4 + 4 * (samples + 1) + len(self._config_json)
        offsets = begin + self.sample_bytes * np.arange(samples + 1, dtype=np.int64)
        header = b"".join(
            [
                np.array([samples], "<u4").tobytes(),
                offsets.astype("<u4").tobytes(),
                self._config_json,
            ]
        )
        basename = f"{self._prefix}.{len(self.shards):05d}.mds"
        raw = self._info(basename, header, block.data)
        packed = None
        if self._compression is None:
            self._store.write(basename, header, block.data)
        else:
            content = compress(self._compression, b"".join([header, block.data]))
            packed = self._info(f"{basename}.{extension(self._compression)}", content)
            self._store.write(packed["basename"], content)
        entry = {"samples": samples, "raw_data": raw, "zip_data": packed}
        self.shards.append(entry | self._config)

    def _info(self, basename: str, *parts: bytes | memoryview) -> dict[str, Any]:
        size = sum(memoryview(part).nbytes for part in parts)
        hashes = {name: digest_of(name, *parts) for name in self._hashes}
        return {"basename": basename, "bytes": size, "hashes": hashes}


def stored(entry: dict[str, Any]) -> dict[str, Any]:
    """Of an entry of index.json: basename, bytes and hashes of the file that is stored."""
    found: dict[str, Any] = entry["zip_data"] or entry["raw_data"]
    return found


def write_index(store: Store, shards: list[dict[str, Any]]) -> None:
    """Writes index.json, which makes the shards of the folder a set. Comes last of all.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    text = json_text({"version": 2, "shards": shards}, sort_keys=True)
    store.write("index.json", text.encode(), flush=True)
