"""A batch: the rows of some samples back to back, without padding, one segment after the other.

What a row is depends on the model's input. Elementwise, it is a material of the shards as it is;
the other inputs have a :class:`Reading` of their own, see elemdist/inputs.py.
Shape suffixes: see elemdist/rows.py; S segments, R = B * N rows of the samples, padding included,
P positions that a reading makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from elemdist.attention import Segments
from elemdist.rows import DOC, FIRST_SPECIAL, PAD


@dataclass(frozen=True)
class Batch:
    """The rows of some samples without padding, segments sorted by length.

    Attributes:
        rows_TV: uint8; of input subword the numbers of tokens, (T, 1) int32.
        position_T: int64, place of a row in its segment.
        key_T: int64, what a row's random numbers hang on: of no other row in the run, on whatever
            rank it is, but for input byte, where all bytes of a material share theirs.
        sample_S: int64, which of the batch's samples a segment belongs to.
        place_S: int64, that sample's place in the run.
        ended_S: bool, whether the segment is known to end its document: padding or another
            document follows. False where it reaches the end of its sample.
        labels_BL: float32, by sample.
        text_bytes: bytes of text in all rows.
        bytes_T: int32, bytes of text that a token stands for; None where a row holds its bytes.
        source_B: int64, by sample, its source in the mixture; None outside training.
    """

    rows_TV: Tensor
    position_T: Tensor
    key_T: Tensor
    segments: Segments
    sample_S: Tensor
    place_S: Tensor
    ended_S: Tensor
    labels_BL: Tensor | None
    text_bytes: int
    bytes_T: Tensor | None = None
    source_B: Tensor | None = None

    def text_T(self) -> Tensor:
        """Whether a row is text, neither DOC nor SEP: (T,) bool."""
        if self.bytes_T is None:
            return self.rows_TV[:, 0] < FIRST_SPECIAL
        # DOC and SEP start a segment. Text never starts one with a token of no bytes; behind the
        # start it may have such tokens, where several share a character.
        return (self.position_T > 0) | (self.bytes_T > 0)

    def to(self, device: torch.device) -> Batch:
        """The same on `device`; copies from pinned memory do not wait."""
        if device.type == "cpu":
            return self

        def move(x: Any) -> Any:
            if isinstance(x, Segments):
                return replace(x, cu_lengths=move(x.cu_lengths))
            return x.pin_memory().to(device, non_blocking=True) if isinstance(x, Tensor) else x

        return Batch(**{field.name: move(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class Cut:
    """The segments of some samples, in the order of their rows.

    Attributes:
        start_S, rows_S: int64, a segment's first row, of all R, and how many it has.
        sample_S, place_S: int64, its sample's number in the batch and place in the run.
        key_S: int64, its first row's place in the run.
        ended_S: bool, see Batch.
    """

    start_S: np.ndarray
    rows_S: np.ndarray
    sample_S: np.ndarray
    place_S: np.ndarray
    key_S: np.ndarray
    ended_S: np.ndarray


@dataclass(frozen=True)
class Positions:
    """What a reading makes of samples.

    Attributes:
        rows_PV: uint8 or int32, C-ordered, the positions of all segments.
        start_S, length_S: int64, where those of each segment of the Cut lie; length 0: it has none.
        key_S: int64, the key of a segment's first position; those of the others count on from it.
        ended_S: bool, as in the Cut; False where the reading leaves out a segment's end.
        key_P: int64, the keys of all positions, where they do not count on.
        bytes_P: int32, see Batch.bytes_T.
    """

    rows_PV: np.ndarray
    start_S: np.ndarray
    length_S: np.ndarray
    key_S: np.ndarray
    ended_S: np.ndarray
    key_P: np.ndarray | None = None
    bytes_P: np.ndarray | None = None


class Reading(Protocol):
    """How a model reads samples."""

    def positions(self, rows_BNV: np.ndarray, cut: Cut) -> Positions:
        """The positions of (B, N, V) uint8 C-ordered samples, whose segments `cut` has."""


def cut_segments(rows_BNV: np.ndarray, places: np.ndarray) -> Cut:
    """The segments of (B, N, V) uint8 samples; `places` (B,) are their places in the run."""
    b, n, _ = rows_BNV.shape
    first_BN = np.ascontiguousarray(rows_BNV[:, :, 0])  # compared twice, then half as slow
    starts_BN = first_BN == DOC
    starts_BN[:, 0] = True
    # Padding stands at the end of a sample only, so a segment is a contiguous run of rows.
    start_S = np.flatnonzero(starts_BN)
    filled_BN = first_BN != PAD
    rows_B = np.where(filled_BN[:, -1], n, filled_BN.argmin(1))
    end_S = np.append(start_S[1:], b * n)
    sample_S = start_S // n
    end_S = np.minimum(end_S, sample_S * n + rows_B[sample_S])
    place_S = places[sample_S]
    return Cut(
        start_S=start_S,
        rows_S=end_S - start_S,
        sample_S=sample_S,
        place_S=place_S,
        key_S=start_S + (place_S - sample_S) * n,
        ended_S=end_S < (sample_S + 1) * n,
    )


def materials(rows_BNV: np.ndarray, cut: Cut) -> Positions:
    """The reading of input elementwise: every row is a position."""
    rows_RV = rows_BNV.reshape(-1, rows_BNV.shape[-1])
    return Positions(rows_RV, cut.start_S, cut.rows_S, cut.key_S, cut.ended_S)


def bytes_of(rows_BNV: np.ndarray, cut: Cut, below: int) -> tuple[np.ndarray, ...]:
    """The bytes smaller than `below` of all segments, back to back.

    Returns:
        data_P: uint8, the bytes. slot_P: int64, their slots, of all of rows_BNV. start_S: int64,
        where each segment's begin.
    """
    flat = rows_BNV.reshape(-1)
    slot_P = np.flatnonzero(flat < below)
    return flat[slot_P], slot_P, np.searchsorted(slot_P, cut.start_S * rows_BNV.shape[2])


def lengths(start_S: np.ndarray, total: int) -> np.ndarray:
    """The lengths of segments that lie back to back, the last one up to `total`."""
    return np.diff(start_S, append=total)


def take_rows(rows_PV: np.ndarray, places: np.ndarray) -> np.ndarray:
    """rows_PV[places] of C-ordered rows, of any dtype."""
    # A row as one item: numpy gathers these four times as fast as rows of V items.
    item = np.dtype((np.void, rows_PV.itemsize * rows_PV.shape[1]))
    taken = np.take(rows_PV.view(item)[:, 0], places)
    return taken.view(rows_PV.dtype).reshape(-1, rows_PV.shape[1])


def unpad(
    rows_BNV: np.ndarray,
    labels_BL: np.ndarray | None,
    places: np.ndarray,
    reading: Reading | None = None,
) -> Batch:
    """The batch of some samples.

    Args:
        rows_BNV: (B, N, V) uint8. labels_BL: (B, L) of 0 and 1. places: (B,) int64, the samples'
            places in the run.
        reading: of the model's input; None: elementwise.

    Raises:
        UserError: a tokenizer refuses the text.
    """
    rows_BNV = np.ascontiguousarray(rows_BNV)
    cut = cut_segments(rows_BNV, places)
    found = reading.positions(rows_BNV, cut) if reading else materials(rows_BNV, cut)
    order = np.argsort(found.length_S, kind="stable")
    if len(order) and not found.length_S[order[0]]:
        order = order[np.count_nonzero(found.length_S == 0) :]
    start_S, length_S = found.start_S[order], found.length_S[order]

    cu_lengths = np.concatenate([[0], np.cumsum(length_S)])
    number_T = np.arange(cu_lengths[-1])
    from_T = np.repeat(start_S - cu_lengths[:-1], length_S)
    from_T += number_T
    position_T = np.subtract(number_T, np.repeat(cu_lengths[:-1], length_S), out=number_T)
    rows_TV = take_rows(found.rows_PV, from_T)
    if found.key_P is None:
        key_T = np.repeat(found.key_S[order], length_S)
        key_T += position_T
    else:
        key_T = found.key_P[from_T]
    bytes_T = None if found.bytes_P is None else found.bytes_P[from_T]
    text_bytes = np.count_nonzero(rows_TV < FIRST_SPECIAL) if bytes_T is None else bytes_T.sum()
    return Batch(
        rows_TV=torch.from_numpy(rows_TV),
        position_T=torch.from_numpy(position_T),
        key_T=torch.from_numpy(key_T),
        segments=Segments(torch.from_numpy(cu_lengths.astype(np.int32)), length_S.tolist()),
        sample_S=torch.from_numpy(cut.sample_S[order]),
        place_S=torch.from_numpy(cut.place_S[order]),
        ended_S=torch.from_numpy(found.ended_S[order]),
        labels_BL=None if labels_BL is None else torch.from_numpy(labels_BL.astype(np.float32)),
        text_bytes=int(text_bytes),
        bytes_T=None if bytes_T is None else torch.from_numpy(bytes_T),
    )
