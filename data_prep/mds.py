"""A writer of MosaicML Streaming shards (MDS) for fixed-size columns: whole blocks at a time.

Byte for byte what streaming's own MDSWriter makes of the same samples, without importing it (and
with it torch). A shard file is: the number of samples and where each sample starts (uint32, little
endian), the columns as JSON, then all samples as one contiguous C-ordered matrix.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from typing import Any

import numpy as np
import xxhash

from elemdist.errors import UserError

HASH = "xxh3_128"
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def columns_of(n: int, v: int, labels: int) -> list[tuple[str, str, int]]:
    """Name, encoding and bytes of each column, in the order they have within a sample."""
    columns = [("rows", f"ndarray:uint8:{n},{v}", n * v)]
    if labels:
        bitmap_bytes = (labels + 7) // 8
        columns.append(("labels", f"ndarray:uint8:{bitmap_bytes}", bitmap_bytes))
    return sorted(columns)


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
        self, folder: str, prefix: str, *, n: int, v: int, labels: int, size_limit: int
    ) -> None:
        """Prepares to write; touches no file.

        Raises:
            UserError: a shard of size_limit bytes cannot hold a single sample.
        """
        columns = columns_of(n, v, labels)
        self._folder, self._prefix = folder, prefix
        self._config: dict[str, Any] = {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": [HASH],
            "size_limit": size_limit,
            "column_names": [name for name, _, _ in columns],
            "column_encodings": [encoding for _, encoding, _ in columns],
            "column_sizes": [size for _, _, size in columns],
        }
        self._config_json = json.dumps(self._config, sort_keys=True).encode()
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
        write_file(os.path.join(self._folder, basename), header, block.data, flush=False)
        digest = xxhash.xxh3_128(header)
        digest.update(block.data)
        info = {
            "basename": basename,
            "bytes": int(offsets[-1]),
            "hashes": {HASH: digest.hexdigest()},
        }
        self.shards.append({"samples": samples, "raw_data": info, "zip_data": None} | self._config)


def write_file(path: str, *parts: bytes | memoryview, flush: bool = True) -> None:
    """Writes a file under a temporary name, flushes it to the disk, and gives it its name.

    Raises:
        UserError: the disk is full, or the file cannot be written; nothing is left of it.
    """
    temporary = f"{path}.tmp"
    needed = sum(memoryview(part).nbytes for part in parts)
    try:
        with open(temporary, "wb", buffering=0) as file:
            for part in parts:
                rest = memoryview(part).cast("B")
                while rest:  # one write call takes at most 2 GiB
                    rest = rest[file.write(rest) :]
            if flush:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise write_error(path, needed, error) from error


def write_error(path: str, needed: int, error: OSError) -> UserError:
    """What a user is told when `needed` bytes could not be written to `path`."""
    if error.errno not in OUT_OF_SPACE:
        return UserError(f"cannot write {path}: {error.strerror}")
    folder = os.path.dirname(path) or "."
    free = shutil.disk_usage(folder).free if os.path.isdir(folder) else 0
    needs = f"the file needs {needed:,} bytes" if needed else "it needs more"
    return UserError(
        f"no space for {path}: {error.strerror}; {needs} and the disk has {free:,} bytes free. "
        f"Nothing incomplete is left behind: make room and run again"
    )


def write_index(folder: str, shards: list[dict[str, Any]]) -> None:
    """Writes index.json, which makes the shards of the folder a set. Comes last of all.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    text = json.dumps({"version": 2, "shards": shards}, sort_keys=True)
    write_file(os.path.join(folder, "index.json"), text.encode())
