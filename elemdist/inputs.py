"""How a model reads the samples of the shards: by materials, bytes, characters or tokens.

Input elementwise takes the rows as they are and needs no reading. Of the others, byte has a
position for every byte (ByT5, Xue et al. 2021, arXiv 2105.13626), canine one for every Unicode
character (Clark et al. 2021, arXiv 2103.06874), subword one for every token of a tokenizer file
(elemdist/subword.py). DOC and SEP rows stay one position each.
Shape suffixes: see elemdist/rows.py; S segments, P positions, X characters.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from elemdist.batch import Batch, Cut, Positions, Reading, bytes_of, lengths, unpad
from elemdist.mixture import Mixture
from elemdist.model_config import CHARACTER_BYTES, ModelConfig
from elemdist.rows import FIRST_SPECIAL, PAD
from elemdist.shards import ShardSet
from elemdist.subword import SubwordReading, check_tokenizer, open_symbols, open_tokenizer

__all__ = [
    "ByteReading",
    "CanineReading",
    "SubwordReading",
    "check_tokenizer",
    "open_reading",
    "open_symbols",
    "some_documents",
    "some_rows",
]

SOME_ROWS = 1 << 18  # of the shards, enough to count elements
SOME_SAMPLES = 1000
FEW_SAMPLES = 32
MORE = 8  # times as many, to count materials
# Bytes of the character that a byte starts. A continuation byte starts none and stands alone, and
# so does a special symbol.
LEAD_BYTES = np.ones(256, np.uint8)
LEAD_BYTES[0xC0:0xE0], LEAD_BYTES[0xE0:0xF0], LEAD_BYTES[0xF0:FIRST_SPECIAL] = 2, 3, 4


class ByteReading:
    """A position for every byte: (P, 1) uint8. All bytes of a material share its key, so that they
    are masked together: a single byte is too easy to guess."""

    def positions(self, rows_BNV: np.ndarray, cut: Cut) -> Positions:
        """As Reading.positions."""
        data_P, slot_P, start_S = bytes_of(rows_BNV, cut, PAD)
        length_S = lengths(start_S, len(data_P))
        key_P = slot_P // rows_BNV.shape[2] + np.repeat(cut.key_S - cut.start_S, length_S)
        return Positions(data_P[:, None], start_S, length_S, cut.key_S, cut.ended_S, key_P)


class CanineReading:
    """A position for every Unicode character: (P, 4) uint8, the bytes of its UTF-8, PAD behind.

    A character that two rows share is one position. A continuation byte that no byte before it in
    the segment asks for is one of its own, so no byte is lost, whatever the rows hold.
    """

    def positions(self, rows_BNV: np.ndarray, cut: Cut) -> Positions:
        """As Reading.positions."""
        data, _, start_S = bytes_of(rows_BNV, cut, PAD)
        first_P = character_starts(data, start_S)
        size_P = lengths(first_P, len(data))
        rows_PV = np.full((len(first_P), CHARACTER_BYTES), PAD, np.uint8)
        rows_PV[:, 0] = data[first_P]
        for slot in range(1, CHARACTER_BYTES):
            long = np.flatnonzero(size_P > slot)
            rows_PV[long, slot] = data[first_P[long] + slot]
        start_S = np.searchsorted(first_P, start_S)
        # As many keys for every row of the shards as a whole sample can have positions.
        key_S = cut.key_S * (rows_BNV.shape[1] * rows_BNV.shape[2])
        return Positions(rows_PV, start_S, lengths(start_S, len(rows_PV)), key_S, cut.ended_S)


def character_starts(data: np.ndarray, start_S: np.ndarray) -> np.ndarray:
    """Where the characters of UTF-8 start, (X,) int64, counting from the start of each segment.

    Args:
        data: uint8, the bytes of all segments back to back. start_S: where those of each begin.
    """
    starts = data & 0xC0 != 0x80
    starts[start_S[start_S < len(data)]] = True
    first_X = np.flatnonzero(starts)
    size_X = lengths(first_X, len(data))
    asked_X = LEAD_BYTES[data[first_X]]
    if (size_X <= asked_X).all():
        return first_X
    within = np.arange(len(data)) - np.repeat(first_X, size_X)
    return np.flatnonzero(starts | (within >= np.repeat(asked_X, size_X)))


def open_reading(config: ModelConfig) -> Reading | None:
    """How a model of this configuration reads samples; None: as they are (elementwise).

    Raises:
        UserError: the tokenizer file of input subword is not named, cannot be read, or is none.
    """
    model = config.model
    if model.input == "byte":
        return ByteReading()
    if model.input == "canine":
        return CanineReading()
    if model.input == "elementwise":
        return None
    assert config.symbols is not None
    path = model.tokenizer or ""
    return SubwordReading(path, open_tokenizer(path), config.symbols, config.positions)


def some_documents(shards: ShardSet | Mixture, reading: Reading | None) -> Iterator[Batch]:
    """Samples spread evenly over a set, enough to count in how many a word stands, a few at a
    time.

    Raises:
        UserError: a shard cannot be had, or a tokenizer refuses the text.
    """
    samples = min(SOME_SAMPLES, max(1, SOME_ROWS // shards.n), shards.samples)
    ids = np.linspace(0, shards.samples - 1, samples).astype(np.int64)
    for some in np.array_split(ids, -(-samples // FEW_SAMPLES)):
        yield unpad(shards.gather(some)[0], None, some, reading)


def some_rows(shards: ShardSet | Mixture, reading: Reading | None, more: int = 1) -> Tensor:
    """Rows of text, as a model reads them, of samples spread evenly over a set: (T, V) uint8, or
    int32 of input subword. As many as counts of elements need, or `more` times that.

    Raises:
        UserError: a shard cannot be had, or a tokenizer refuses the text.
    """
    samples = min(more * SOME_SAMPLES, max(1, more * SOME_ROWS // shards.n), shards.samples)
    ids = np.linspace(0, shards.samples - 1, samples).astype(np.int64)
    batch = unpad(shards.gather(ids)[0], None, ids, reading)
    return batch.rows_TV[batch.text_T()]
