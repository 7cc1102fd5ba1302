"""Which documents came before: 128-bit hashes of all documents, sorted and merged range by range.

The first pass writes the hashes of each work item as a sorted table, with the place where each of
256 ranges of hash values begins. Then the same few ranges of all tables are merged at a time, so
that memory holds one bit for each document and the hashes of those ranges, whatever the corpus.
The first document in the order of the input is the one that stays.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from data_prep.documents import Batch
from data_prep.store import Store

RANGE_BITS = 8
RANGES = 1 << RANGE_BITS
HEAD_BYTES = 4 * (RANGES + 1)
HASHES_AT_ONCE = 1 << 20  # about 100 MB while they are merged
# 128 bits of hash, and the document's number within its item.
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<u4")])


def normalized(text: bytes) -> bytes:
    """Text in Unicode form NFKC, without case, with one space for each run of white space."""
    plain = text.decode()
    if not plain.isascii():
        plain = unicodedata.normalize("NFKC", plain).casefold()
    return " ".join(plain.lower().split()).encode()


class Hasher:
    """Hashes documents, batch by batch.

    Args:
        normalize: hash the normalised form. Documents that come in several batches are so large
            that they are compared as they are.
    """

    def __init__(self, normalize: bool) -> None:
        self._normalize = normalize
        self._open = xxhash.xxh3_128()
        self._found: list[bytes] = []

    def add(self, batch: Batch) -> None:
        """Hashes the documents of a batch."""
        data = batch.data.data  # as a buffer: hashing copies nothing
        last = len(batch) - 1
        spans = zip(batch.starts.tolist(), batch.ends.tolist(), strict=True)
        for document, (start, end) in enumerate(spans):
            begun, more = batch.begun and document == 0, batch.open and document == last
            text = data[start:end]
            if begun or more:
                if not begun:
                    self._open.reset()
                self._open.update(text)
                if not more:
                    self._found.append(self._open.digest())
            else:
                whole = normalized(bytes(text)) if self._normalize else text
                self._found.append(xxhash.xxh3_128_digest(whole))

    def table(self) -> bytes:
        """The sorted table of all hashes, behind where each range begins."""
        halves = np.frombuffer(b"".join(self._found), ">u8").reshape(-1, 2)
        entries = np.empty(len(halves), ENTRY)
        entries["high"], entries["low"] = halves[:, 0], halves[:, 1]
        entries["document"] = np.arange(len(halves))
        entries = entries[np.lexsort((entries["low"], entries["high"]))]
        bounds = np.arange(1, RANGES, dtype=np.uint64) << np.uint64(64 - RANGE_BITS)
        starts = np.searchsorted(entries["high"], bounds)
        head = np.concatenate([[0], starts, [len(entries)]]).astype("<u4")
        return head.tobytes() + entries.tobytes()


@dataclass
class Tables:
    """The tables of all items.

    Args:
        store: where they lie. names: of each item's table. documents: of each item.
    """

    store: Store
    names: list[str]
    documents: list[int]

    def duplicates(self) -> list[bytes | None]:
        """For each item packed bits, a one for each document that came before; None for none."""
        bits: list[np.ndarray | None] = [None] * len(self.names)
        heads = np.stack(
            [
                np.frombuffer(self.store.read_range(name, 0, HEAD_BYTES), "<u4")
                for name in self.names
            ]
        ).astype(np.int64)
        for first, last in self._groups(heads):
            item_of, entries = self._load(heads, first, last)
            order = np.lexsort((entries["document"], item_of, entries["low"], entries["high"]))
            item_of, entries = item_of[order], entries[order]
            again = np.flatnonzero(
                (entries["high"][1:] == entries["high"][:-1])
                & (entries["low"][1:] == entries["low"][:-1])
            )
            again += 1
            for item in np.unique(item_of[again]).tolist():
                held = bits[item]
                if held is None:
                    held = bits[item] = np.zeros((self.documents[item] + 7) // 8, np.uint8)
                numbers = entries["document"][again[item_of[again] == item]]
                masks = (128 >> (numbers & 7)).astype(np.uint8)  # in the order of np.unpackbits
                np.bitwise_or.at(held, numbers >> 3, masks)
        return [None if held is None else held.tobytes() for held in bits]

    def _groups(self, heads: np.ndarray) -> Iterator[tuple[int, int]]:
        """Consecutive ranges that together hold a bounded number of hashes."""
        sizes = np.diff(heads, axis=1).sum(0).tolist()
        first, held = 0, 0
        for number, size in enumerate(sizes):
            if held and held + size > HASHES_AT_ONCE:
                yield first, number
                first, held = number, 0
            held += size
        yield first, RANGES

    def _load(self, heads: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Item numbers and entries of some ranges."""
        parts, items = [], []
        for item, name in enumerate(self.names):
            begin, end = (HEAD_BYTES + ENTRY.itemsize * int(heads[item, k]) for k in (first, last))
            if end > begin:
                part = np.frombuffer(self.store.read_range(name, begin, end), ENTRY)
                parts.append(part)
                items.append(np.full(len(part), item, np.int64))
        if not parts:
            return np.zeros(0, np.int64), np.zeros(0, ENTRY)
        return np.concatenate(items), np.concatenate(parts)
