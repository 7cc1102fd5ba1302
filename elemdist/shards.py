"""A shard set, opened for reading: every shard one memory-mapped matrix, a batch one gather.

A set is a folder with index.json (MosaicML Streaming's), manifest.json (ours) and MDS shards of
fixed-size columns, on this machine or in an object store. Nothing in it is trusted: names stay
within the folder, sizes and headers are compared before a byte is used, and verify() compares the
hashes. Compressed shards, and shards of a store, are unpacked or fetched into a cache first.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import numpy as np

from elemdist import shard_cache
from elemdist.errors import UserError
from elemdist.file_info import FileInfo
from elemdist.os_errors import reason_of
from elemdist.remote import public
from elemdist.shard_cache import Ahead, LocalFolder, check_size, is_whole, open_folder
from elemdist.shard_index import Shard, check_header, columns_of, read_manifest, read_set
from elemdist.shard_maps import Views, map_file, refuse_cut

__all__ = ["Shard", "ShardSet", "read_manifest"]

AT_ONCE = 256  # samples, so that a batch needs no more maps than that


class ShardSet:
    """A shard set, for reading.

    Attributes:
        path: its folder or URL. manifest: its manifest.
        n, v: materials of a sample, elements of a material.
        labels: label names in the order of the bits, or None.
        samples: how many samples. text_bytes: bytes of text in them.
        fingerprint: hexadecimal hash of the index and the manifest: another set has another one,
            a copy of this one elsewhere has the same.
    """

    def __init__(self, path: str, cache: str | None = None) -> None:
        """Opens a set. Reads no shard, but compares the size of every file on this machine.

        Args:
            path: a folder, or a URL such as s3://bucket/folder.
            cache: the folder for what is fetched or unpacked, under the set's fingerprint; None:
                $ELEMDIST_CACHE, else ~/.cache/elemdist.

        Raises:
            UserError: it is no shard set, or a shard is missing or of the wrong size.
        """
        self.path = path
        self._folder = open_folder(path)
        index, self.manifest, self.fingerprint = read_set(self._folder)
        self._cache = shard_cache.cache_folder(cache, self.fingerprint)
        try:
            self.n, self.v = int(self.manifest["n"]), int(self.manifest["v"])
            self.labels: list[str] | None = self.manifest["labels"]
            counts = self.manifest["counts"]
            self.text_bytes = int(counts["text_bytes"]) - int(counts["dropped_bytes"])
            promised = int(counts["samples"])
            self._shards = [self._shard(entry) for entry in index["shards"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self._folder.name}: index.json or manifest.json is damaged ({error!r})"
            ) from error
        self._head = (len(self.labels or ()) + 7) // 8
        self._sample_bytes = self._head + self.n * self.v
        samples = np.array([shard.samples for shard in self._shards], np.int64)
        self._ends = np.cumsum(samples)
        self._starts = self._ends - samples
        self.samples = int(samples.sum())
        if self.samples != promised:
            raise UserError(
                f"{self._folder.name}: index.json and manifest.json disagree, {self.samples:,} and "
                f"{promised:,} samples: copy the set again, or run an append again that was killed"
            )
        self._all_here = not any(self._in_cache(shard) for shard in self._shards)
        self._views = Views()
        self._ahead = Ahead(self._make_local)

    def __len__(self) -> int:
        return self.samples

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes, which map the shards themselves."""
        return self.__dict__ | {"_views": None, "_ahead": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _views=Views(), _ahead=Ahead(self._make_local))

    def label_shares(self) -> list[float]:
        """For each label the share of the documents that have it, from 0 to 1."""
        documents = max(1, int(self.manifest["counts"]["documents"]))
        counts = self.manifest["label_counts"] or {}
        return [counts.get(label, 0) / documents for label in self.labels or []]

    def _shard(self, entry: dict[str, Any]) -> Shard:
        raw = FileInfo.of(entry["raw_data"], self._folder.name)
        packed = entry.get("zip_data") and FileInfo.of(entry["zip_data"], self._folder.name)
        columns = (entry["column_names"], entry["column_encodings"], entry["column_sizes"])
        samples = int(entry["samples"])
        if samples < 0 or columns != columns_of(self.n, self.v, self.labels):
            raise UserError(
                f"{self._folder.name}: index.json or manifest.json is damaged, they disagree on "
                f"the columns of {raw.name}: copy the set again"
            )
        path = os.path.join(self._cache, raw.name.replace("/", "%2F"))
        if isinstance(self._folder, LocalFolder):
            here = os.path.join(self._folder.path, raw.name)
            # A reader that unpacks beside the compressed file may have done the work before.
            if packed is None or is_whole(here, raw.size):
                path = here
            check_size(self._folder, raw if path == here or packed is None else packed)
        return Shard(path, samples, raw, packed, str(entry["compression"] or ""), columns)

    def _in_cache(self, shard: Shard) -> bool:
        return os.path.dirname(shard.path) == self._cache

    def _make_local(self, number: int) -> None:
        """Fetches or unpacks a shard, unless it lies on this machine.

        Raises:
            UserError: it is missing or damaged, the store fails, or the cache cannot be written.
        """
        shard = self._shards[number]
        if not self._in_cache(shard) or is_whole(shard.path, shard.raw.size):
            return

        def write(path: str) -> None:
            if shard.packed is None:
                shard_cache.fetch(self._folder, shard.raw, path)
            else:
                shard_cache.unpack(self._folder, shard.packed, shard.raw, shard.compression, path)

        shard_cache.make_once(shard.path, shard.raw.size, write)

    def _make_anew(self, number: int, error: UserError) -> None:
        """Replace a damaged file in the cache, out of the set itself, which is compared with the
        index while it is read. Raises `error` where the file is one of the set."""
        shard = self._shards[number]
        if not self._in_cache(shard):
            raise error
        print(f"{shard.path}: damaged in the cache; it is made anew from the set", file=sys.stderr)
        with contextlib.suppress(OSError):  # another process does the same
            os.unlink(shard.path)
        self._make_local(number)

    def _view(self, number: int) -> memoryview:
        """The samples of one shard, back to back, mapped: bytes, read only."""
        views = self._views
        try:
            views.move_to_end(number)
            return views[number]
        except KeyError:
            pass
        self._make_local(number)
        shard = self._shards[number]
        size = shard.samples * self._sample_bytes
        begin = shard.raw.size - size
        try:
            try:
                check_header(shard, begin, self._sample_bytes)
            except UserError as error:
                self._make_anew(number, error)
                check_header(shard, begin, self._sample_bytes)
            view = map_file(shard.path, begin, size, checked=True).data
        except (FileNotFoundError, ValueError) as error:  # ValueError: it ends too early
            raise UserError(
                f"{public(self.path)}: a shard cannot be read any more ({error}); copy it again"
            ) from error
        except OSError as error:
            raise UserError(f"cannot read {shard.path}: {reason_of(error)}") from error
        views.open(number, view)
        return view

    def _numbers(self, ids: np.ndarray) -> np.ndarray:
        """The shards of these samples, int64."""
        if len(ids) and (ids.min() < 0 or ids.max() >= self.samples):
            raise IndexError(f"sample numbers must be from 0 to {self.samples - 1}")
        return np.searchsorted(self._ends, ids, side="right")

    def prefetch(self, ids: np.ndarray) -> None:
        """Starts to fetch or unpack the shards of these samples, those of the first ones first, a
        few at a time; returns at once. What fails, fails where it is needed."""
        if self._all_here:
            return
        numbers, first = np.unique(self._numbers(ids), return_index=True)
        self._ahead.ask(numbers[np.argsort(first)].tolist())

    def fetch(self, ids: np.ndarray) -> None:
        """Makes sure that the shards of these samples lie on this machine.

        Args:
            ids: (B,) int64 sample numbers.

        Raises:
            IndexError: a number out of range.
            UserError: a shard is missing or damaged, the store fails, or the cache is full.
        """
        self.prefetch(ids)
        for number in np.unique(self._numbers(ids)):
            self._make_local(int(number))

    def blocks(self, ids: np.ndarray) -> np.ndarray:
        """The samples with these numbers, in this order, as the shards hold them.

        Args:
            ids: (B,) int64, each from 0 to samples - 1, in any order, repeats allowed.

        Returns:
            (B, label bytes + n * v) uint8: the label bitmap, if any, before the rows.

        Raises:
            IndexError: a number out of range.
            UserError: a shard cannot be had, or its header is not what the index says.
        """
        if not len(ids):
            return np.empty((0, self._sample_bytes), np.uint8)
        if len(ids) > AT_ONCE:
            parts = [ids[first : first + AT_ONCE] for first in range(0, len(ids), AT_ONCE)]
            return np.concatenate([self.blocks(part) for part in parts])
        shard_of = self._numbers(ids)
        places = ids - self._starts[shard_of]
        numbers, size = shard_of.tolist(), self._sample_bytes
        views = {number: self._view(number) for number in set(numbers)}
        if len(views) == 1:  # half the work of what follows
            found = np.frombuffer(views[numbers[0]], np.uint8).reshape(-1, size)[places]
            self._refuse_cut(views)
            return found
        # One copy by join() takes half the time of a numpy gather for each shard.
        firsts = (places * size).tolist()
        pieces = [
            views[number][first : first + size]
            for number, first in zip(numbers, firsts, strict=True)
        ]
        found = np.frombuffer(bytearray().join(pieces), np.uint8).reshape(-1, size)
        self._refuse_cut(views)
        return found

    def _refuse_cut(self, views: dict[int, memoryview]) -> None:
        try:
            refuse_cut(views.values())
        except UserError:
            self._views.clear()  # a set that was mended is read again
            raise

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The samples with these numbers, in this order.

        Args:
            ids: (B,) int64, each from 0 to samples - 1, in any order, repeats allowed.

        Returns:
            rows_BNV: (B, n, v) uint8. labels_BL: (B, L) uint8 of 0 and 1, or None.

        Raises:
            IndexError: a number out of range.
            UserError: a shard cannot be had, or its header is not what the index says.
        """
        block = self.blocks(ids)
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
        """Reads every shard that lies on this machine and compares its hash with the index. What
        has yet to be fetched or unpacked is compared when that happens.

        Args:
            part, parts: check only every `parts`-th shard from number `part` on, so that several
                processes can share the work.

        Raises:
            UserError: a shard that cannot be read or whose content changed.
        """
        for number in range(part, len(self._shards), parts):
            shard = self._shards[number]
            packed = shard.packed
            if not self._in_cache(shard) or is_whole(shard.path, shard.raw.size):
                try:
                    shard.raw.check(shard.path)
                except UserError as error:
                    self._make_anew(number, error)
            elif packed is not None and isinstance(self._folder, LocalFolder):
                packed.check(os.path.join(self._folder.path, packed.name))
