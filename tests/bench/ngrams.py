"""Statistics of materials, counted with numpy: slots, bytes, a byte trigram, whole materials.

A symbol is a byte or a material's end mark, the first PAD of a row; DOC and SEP are symbols, too,
but only as what stood before.
Shape suffixes: see elemdist/rows.py; K symbols, E = 256 values of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elemdist.rows import ELEMENTS, FIRST_SPECIAL, PAD
from elemdist.shuffle import mix

SLOTS, BYTES, TRIGRAM, MATERIALS = "slot statistics", "single bytes", "byte trigram", "materials"
LISTS_AT_ONCE = 64  # of materials, that are merged into one


@dataclass(frozen=True)
class Symbols:
    """What rows say, symbol by symbol.

    Attributes:
        value_K: uint8. row_K, slot_K: int64, where each stands.
        before_K: int64, the two symbols before it: 256 times the earlier one, plus the later one.
    """

    value_K: np.ndarray
    row_K: np.ndarray
    slot_K: np.ndarray
    before_K: np.ndarray

    @classmethod
    def of(cls, rows_TV: np.ndarray) -> Symbols:
        """Of (T, V) uint8 rows that follow each other."""
        row_K, slot_K = np.nonzero(np.cumsum(rows_TV == PAD, axis=1) <= 1)
        value_K = rows_TV[row_K, slot_K]
        stream = np.concatenate([np.full(2, PAD), value_K]).astype(np.int64)
        return cls(value_K, row_K, slot_K, stream[:-2] * ELEMENTS + stream[1:-1])

    def of_rows(self, chosen_T: np.ndarray) -> Symbols:
        """Those of some rows, (T,) bool, each with what really stood before it."""
        keep_K = chosen_T[self.row_K]
        parts = (self.value_K, self.row_K, self.slot_K, self.before_K)
        return Symbols(*(part[keep_K] for part in parts))


def witten_bell(
    count: np.ndarray, total: np.ndarray, kinds: np.ndarray | int, shorter: np.ndarray
) -> np.ndarray:
    """The probability of a symbol that followed a context `count` times, filled up by its
    probability in a `shorter` context (Witten & Bell 1991): a context after which `kinds` different
    symbols stood, `total` in all, gives kinds / (total + kinds) to that. One never seen gives all.
    """
    seen = total > 0
    return np.where(seen, (count + kinds * shorter) / np.where(seen, total + kinds, 1), shorter)


class Trigram:
    """A symbol's probability given the two before it, out of counts (E, E, E)."""

    def __init__(self, counts_EEE: np.ndarray) -> None:
        self.counts_EEE = counts_EEE
        self.pairs_EE = counts_EEE.sum(0)
        ones_E = self.pairs_EE.sum(0)
        one_E = witten_bell(
            ones_E, ones_E.sum(), np.count_nonzero(ones_E), np.full(ELEMENTS, 1 / ELEMENTS)
        )
        total_E1 = self.pairs_EE.sum(1, keepdims=True)
        kinds_E1 = np.count_nonzero(self.pairs_EE, axis=1)[:, None]
        self.share_EE = witten_bell(self.pairs_EE, total_E1, kinds_E1, one_E)
        self.total_EE = counts_EEE.sum(2)
        self.kinds_EE = np.count_nonzero(counts_EEE, axis=2)

    def shares(self, before_K: np.ndarray, value_K: np.ndarray) -> np.ndarray:
        """(K,): the probability of each symbol behind its context (see Symbols)."""
        two_K, one_K = before_K // ELEMENTS, before_K % ELEMENTS
        return witten_bell(
            self.counts_EEE[two_K, one_K, value_K],
            self.total_EE[two_K, one_K],
            self.kinds_EE[two_K, one_K],
            self.share_EE[one_K, value_K],
        )


def material_keys(rows_TV: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each of (T, V) uint8 rows, which sorts faster than they do."""
    eights = np.pad(rows_TV, ((0, 0), (0, -rows_TV.shape[1] % 8))).view(np.uint64)
    key_T = np.zeros(len(rows_TV), np.uint64)
    for number, part_T in enumerate(eights.T):
        key_T = mix(key_T ^ mix(part_T, number + 1), 0x9E3779B97F4A7C15)
    return key_T


class Statistics:
    """What stood in the rows of a training set.

    Attributes:
        slots_VE: how often each symbol stood in each slot. trigrams_EEE: after which two others.
        keys, times: the materials by their hash, sorted, and how often each occurred.
    """

    def __init__(self, v: int) -> None:
        self.slots_VE = np.zeros((v, ELEMENTS), np.int64)
        self.trigrams_EEE = np.zeros((ELEMENTS,) * 3, np.int64)
        self.keys, self.times = np.empty(0, np.uint64), np.empty(0, np.int64)
        self.lists: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, rows_TV: np.ndarray) -> None:
        """Counts rows that follow each other, DOC and SEP rows among them."""
        text_T = rows_TV[:, 0] < FIRST_SPECIAL
        symbols = Symbols.of(rows_TV).of_rows(text_T)
        size = self.slots_VE.size
        slots = np.bincount(symbols.slot_K * ELEMENTS + symbols.value_K, minlength=size)
        self.slots_VE += slots.reshape(self.slots_VE.shape)
        np.add.at(self.trigrams_EEE.reshape(-1), symbols.before_K * ELEMENTS + symbols.value_K, 1)
        self.lists.append(np.unique(material_keys(rows_TV[text_T]), return_counts=True))
        if len(self.lists) == LISTS_AT_ONCE:
            self.merge()

    def merge(self) -> None:
        """Makes one list of all materials counted so far."""
        parts = [(self.keys, self.times), *self.lists]
        keys, times = (np.concatenate([part[k] for part in parts]) for k in range(2))
        self.keys, place = np.unique(keys, return_inverse=True)
        self.times = np.bincount(place, times, len(self.keys)).astype(np.int64)
        self.lists = []


class Predictors:
    """Probabilities out of statistics, in four ways."""

    def __init__(self, found: Statistics) -> None:
        found.merge()
        slots_VE = found.slots_VE + 1
        self.slot_VE = slots_VE / slots_VE.sum(1, keepdims=True)
        bytes_E = found.slots_VE.sum(0) + 1
        self.byte_E = bytes_E / bytes_E.sum()
        self.trigram = Trigram(found.trigrams_EEE)
        self.keys, self.times = found.keys, found.times

    def material(self, rows_MV: np.ndarray, spelt_M: np.ndarray) -> np.ndarray:
        """(M,): the probability of whole materials, filled up by how likely each is `spelt`."""
        if not len(self.keys):
            return spelt_M
        key_M = material_keys(rows_MV)
        place_M = np.searchsorted(self.keys, key_M).clip(max=len(self.keys) - 1)
        times_M = np.where(self.keys[place_M] == key_M, self.times[place_M], 0)
        return witten_bell(times_M, self.times.sum(), len(self.keys), spelt_M)

    def nats(self, rows_TV: np.ndarray, chosen_T: np.ndarray) -> dict[str, float]:
        """What the materials of the rows `chosen_T`, (T,) bool, cost in each way, end marks
        included: the sum over them, in nats."""
        symbols = Symbols.of(rows_TV).of_rows(chosen_T)
        value_K = symbols.value_K
        trigram_K = np.log(self.trigram.shares(symbols.before_K, value_K))
        rows_MV = rows_TV[chosen_T]
        material_K = (np.cumsum(chosen_T) - 1)[symbols.row_K]
        spelt_M = np.exp(np.bincount(material_K, trigram_K, len(rows_MV)))
        return {
            SLOTS: -np.log(self.slot_VE[symbols.slot_K, value_K]).sum(),
            BYTES: -np.log(self.byte_E[value_K]).sum(),
            TRIGRAM: -trigram_K.sum(),
            MATERIALS: -np.log(self.material(rows_MV, spelt_M)).sum(),
        }
