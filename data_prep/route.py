"""Where each document of an item goes: to which set, or nowhere as a duplicate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import xxhash

from data_prep.documents import Batch, batch_of
from data_prep.plan import Job
from data_prep.settings import ShardSettings, shares_of

SPLIT_BYTES = 1 << 16  # of a document are hashed for its side
NOWHERE = -1


@dataclass
class Routed:
    """Some documents of a batch, for one set.

    Attributes:
        set: number of the set. batch: the documents. chosen: their numbers in the whole batch.
    """

    set: int
    batch: Batch
    chosen: np.ndarray


class Router:
    """Follows the documents of one item, in order.

    Attributes:
        duplicates: for each set how many documents, and how many bytes, came before: (sets, 2).
    """

    def __init__(self, job: Job, settings: ShardSettings) -> None:
        self._sets = len(job.sets)
        self._by_id = settings.split_by == "id"
        shares = shares_of(settings.split) if settings.split else {}
        self._bounds = np.cumsum(list(shares.values()) or [1.0])
        self._first = job.first
        self._dropped = None
        if job.dropped is not None:
            self._dropped = np.unpackbits(np.frombuffer(job.dropped, np.uint8)).astype(bool)
        self._seen = self._kept = 0
        self._last = NOWHERE  # where the last document went: the pieces of an open one follow
        self._last_dropped = False
        self.duplicates = np.zeros((self._sets, 2), np.int64)

    def sort(self, batch: Batch, refused: np.ndarray | None = None) -> Iterator[Routed]:
        """The documents of a batch, set by set.

        Args:
            refused: (D,) bool, documents that go nowhere for a fault of their own.
        """
        if self._sets == 1 and self._dropped is None and refused is None:
            self._last = 0
            yield Routed(0, batch, np.arange(len(batch)))
            return
        sides = self._sides(batch, refused)
        for side in range(self._sets):
            chosen = np.flatnonzero(sides == side)
            if len(chosen):
                yield Routed(side, part_of(batch, chosen), chosen)

    def _sides(self, batch: Batch, refused: np.ndarray | None) -> np.ndarray:
        """The set of each document, (D,), or NOWHERE."""
        sides = np.zeros(len(batch), np.int64)
        for document in range(len(batch)):
            if document == 0 and batch.begun:
                if self._last_dropped:
                    self._count_duplicate(batch, 0, begun=True)
                    sides[0] = NOWHERE
                else:
                    sides[0] = self._last
                continue
            bad = refused is not None and bool(refused[document])
            self._last_dropped = self._dropped is not None and bool(self._dropped[self._seen])
            self._seen += 1
            self._last = NOWHERE if bad else self._side(batch, document)
            sides[document] = self._last
            if bad:
                self._last_dropped = False
            elif self._last_dropped:
                self._count_duplicate(batch, document, begun=False)
                sides[document] = NOWHERE
            else:
                self._kept += 1
        return sides

    def _side(self, batch: Batch, document: int) -> int:
        if self._first is not None:
            return int(self._kept >= self._first)
        if self._sets == 1:
            return 0
        if self._by_id:
            key: bytes | memoryview = batch.ids[document].encode(errors="surrogatepass")
        else:
            start, end = int(batch.starts[document]), int(batch.ends[document])
            key = batch.data[start : min(end, start + SPLIT_BYTES)].data
        place = xxhash.xxh3_64_intdigest(key) / 2**64
        return min(int(np.searchsorted(self._bounds, place, side="right")), self._sets - 1)

    def _count_duplicate(self, batch: Batch, document: int, begun: bool) -> None:
        self.duplicates[self._last, 0] += not begun
        self.duplicates[self._last, 1] += int(batch.ends[document] - batch.starts[document])


def part_of(batch: Batch, chosen: np.ndarray) -> Batch:
    """Some documents of a batch; `chosen` are their numbers, in order."""
    starts, ends = batch.starts[chosen], batch.ends[chosen]
    data = batch.data
    if 2 * int((ends - starts).sum()) < len(data):  # marking the rest would cost more
        few = batch_of([data[a:b].tobytes() for a, b in zip(starts, ends, strict=True)])
        data, starts, ends = few.data, few.starts, few.ends
    return replace(
        batch,
        data=data,
        starts=starts,
        ends=ends,
        labels=[batch.labels[k] for k in chosen] if batch.labels else [],
        ids=[batch.ids[k] for k in chosen] if batch.ids else [],
        places=[batch.places[k] for k in chosen] if batch.places else [],
        begun=batch.begun and chosen[0] == 0,
        open=batch.open and chosen[-1] == len(batch) - 1,
    )
