"""Which samples of shard sets are copied, and in what order: decided for any range by itself.

A document is taken or left as a whole, by the number of its first sample, so that no plan of all
samples is ever held: every process works out its own range.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from data_prep.readers.mds_files import MdsFolder
from data_prep.readers.mds_rows import goes_on
from elemdist.json_text import json_text
from elemdist.rows import DOC

COPY = "copy"
AT_ONCE = 1 << 16  # samples whose first bytes are looked at
ROUNDS = 6  # of the permutation


@dataclass(frozen=True)
class Choice:
    """What of the samples of each set, counted from 0, is copied.

    Attributes:
        start, end: those from start to end (None: to the last). every: of these each so many-th.
        share, seed: of these a share, by a hash of the number and the seed.
        labels: of these the documents with at least one of these labels; empty: all.
        shuffle: the seed of a random order; None: as they are.
        tear: take or move single samples of packed sets, which tears documents apart.
        verify: compare the hash of every shard that is read.
    """

    start: int = 0
    end: int | None = None
    every: int = 1
    share: float = 1.0
    seed: int = 0
    labels: list[str] = field(default_factory=list)
    shuffle: int | None = None
    tear: bool = False
    verify: bool = True

    @property
    def some(self) -> bool:
        """Whether samples may be left out."""
        bounds = self.start > 0 or self.end is not None
        return bounds or self.every > 1 or self.share < 1 or bool(self.labels)

    def to_text(self) -> str:
        """As the settings of a run keep it: "copy", and whatever is not the default."""
        default = asdict(Choice())
        own = {key: value for key, value in asdict(self).items() if value != default[key]}
        return f"{COPY} {json_text(own, sort_keys=True)}" if own else COPY

    @staticmethod
    def of_text(text: str) -> Choice:
        """What to_text() was given."""
        return Choice(**json.loads(text.removeprefix(COPY) or "{}"))


def chosen(folder: MdsFolder, low: int, high: int, choice: Choice) -> np.ndarray:
    """The samples from low to high of a set that are copied: their numbers in the set, int64."""
    numbers = np.arange(low, high, dtype=np.int64)
    if not choice.some or low >= high:
        return numbers
    owners = numbers
    if goes_on(folder) and not choice.tear:
        owners = first_samples(folder, low, high)
    end = np.iinfo(np.int64).max if choice.end is None else choice.end
    keep = (owners >= choice.start) & (owners < end)
    keep &= (owners - choice.start) % choice.every == 0
    if choice.share < 1:
        keep &= scattered(owners, choice.seed) < np.uint64(int(choice.share * 2.0**53) << 11)
    if choice.labels and keep.any():
        wanted = np.packbits([name in choice.labels for name in folder.labels or []])
        keep &= (leading_bytes(folder, low, high, folder.head) & wanted).any(axis=1)
    return numbers[keep]


def leading_bytes(folder: MdsFolder, low: int, high: int, width: int) -> np.ndarray:
    """The first bytes of samples, their label bitmaps first: (high - low, width) uint8."""
    found = np.empty((high - low, width), np.uint8)
    for number, first, last in runs(folder, low, high):
        start = int(folder.ends[number]) - folder.shards[number].samples
        rows = folder.rows_of(number)[first - start : last - start]
        found[first - low : last - low] = rows[:, :width]
    return found


def runs(folder: MdsFolder, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """The shards of some samples: number, and the first sample in it and the one behind it."""
    while low < high:
        number = int(np.searchsorted(folder.ends, low, side="right"))
        last = min(high, int(folder.ends[number]))
        yield number, low, last
        low = last


def first_samples(folder: MdsFolder, low: int, high: int) -> np.ndarray:
    """For each sample from low to high, the one in which its document starts; -1 for none."""
    starts = leading_bytes(folder, low, high, folder.head + 1)[:, -1] == DOC
    owners = np.where(starts, np.arange(low, high), -1)
    before, step = low, 1
    while owners[0] < 0 and before > 0:
        behind, before = before, max(0, before - step)
        step = min(2 * step, AT_ONCE)
        found = leading_bytes(folder, before, behind, folder.head + 1)[:, -1] == DOC
        if found.any():
            owners[0] = before + int(np.flatnonzero(found)[-1])
    return np.maximum.accumulate(owners)


def scattered(numbers: np.ndarray, seed: int) -> np.ndarray:
    """A hash of each number: uint64, the same everywhere (splitmix64)."""
    with np.errstate(over="ignore"):
        found = numbers.astype(np.uint64) + np.uint64(seed % 2**64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
        return found


def shuffled(positions: np.ndarray, total: int, seed: int) -> np.ndarray:
    """What stands at these positions of a random order of the numbers below `total`: int64.

    A Feistel network over the next power of four; what falls outside goes through again.
    """
    half = max(1, (int(total - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    found = positions.astype(np.uint64)
    left = np.arange(len(found))
    while len(left):
        now = found[left]
        high, low = now >> shift, now & mask
        for round in range(ROUNDS):
            high, low = low, high ^ (scattered(low, seed * ROUNDS + round + 1) & mask)
        found[left] = high << shift | low
        left = left[found[left] >= np.uint64(total)]
    return found.astype(np.int64)
