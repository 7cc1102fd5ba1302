"""One vector of each segment, out of those of its rows, also where ranks share the rows.

Shape suffixes: see elemdist/rows.py; S segments, P pieces of segments, X anything.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from elemdist.attention import Segments, starts
from elemdist.model_config import ONE_ROW
from elemdist.sequence_parallel import Fetch, Share


def pooled_rows(segments: Segments, pooling: str) -> Tensor | None:
    """The rows of this rank that pooling looks at, (P,) of the T; None: all."""
    if pooling not in ONE_ROW:
        return None
    bounds_P = segments.cu_lengths
    if segments.share is not None:
        bounds_P = on_device(Pieces.of(segments, segments.share).mine, bounds_P.device)
    return bounds_P[:-1] if pooling == "doc" else bounds_P[1:] - 1


def pooled(x: Tensor, segments: Segments, pooling: str) -> Tensor:
    """A vector of each segment that belongs to this rank: (T, W), or (P, W) where they are those
    of :func:`pooled_rows`, to (S, W)."""

    def reduce(bounds_P: Tensor) -> Tensor:
        how = "sum" if pooling == "mean" and segments.share is not None else pooling
        return x if pooling in ONE_ROW else reduced(x, bounds_P, how)

    return pooled_by(reduce, segments, pooling, x.device).to(x.dtype)


def reduced(x_TW: Tensor, bounds_S: Tensor, how: str) -> Tensor:
    """The first (doc) or last row of each segment, or the mean, max or sum of all, in fp32.
    `bounds_S`: (S + 1,), the row at which each starts, and T."""
    if how == "doc":
        return x_TW[bounds_S[:-1]]
    if how == "last":
        return x_TW[bounds_S[1:] - 1]
    return torch.segment_reduce(x_TW.float(), how, offsets=bounds_S.long())


def pooled_by(
    reduce: Callable[[Tensor], Tensor], segments: Segments, pooling: str, device: torch.device
) -> Tensor:
    """A vector of each segment that belongs to this rank, (S, X).

    Args:
        reduce: makes one of the rows between two bounds each, (P + 1,) -> (P, X), of this rank's
            rows; where ranks share the rows, the sums of them for a mean.
        pooling: how those of the pieces of a segment become one, see :func:`reduced`.
    """
    share = segments.share
    if share is None:
        return reduce(segments.cu_lengths)
    return shared_pooled(reduce, segments, share, pooling, device)


@dataclass(frozen=True)
class Pieces:
    """The pieces that segments are in where ranks share the rows: none is on two ranks.

    Attributes:
        starts: the row of the whole batch at which each piece starts, and the end of the last one.
        cuts: the number of the first piece of each rank, and of all pieces.
        rank: whose part this is.
    """

    starts: list[int]
    cuts: list[int]
    rank: int

    @classmethod
    def of(cls, segments: Segments, share: Share) -> Pieces:
        """Those of the segments of a batch."""
        cuts = share.cuts(segments.rows)
        found = sorted({*starts(segments.lengths), *cuts})
        return cls(found, [bisect_left(found, cut) for cut in cuts], share.rank)

    @property
    def mine(self) -> list[int]:
        """Where this rank's pieces start among its rows, and where the last one ends."""
        found = self.starts[self.cuts[self.rank] : self.cuts[self.rank + 1] + 1]
        return [start - found[0] for start in found]


def on_device(numbers: list[int], device: torch.device) -> Tensor:
    """int64, without waiting for the device."""
    return torch.tensor(numbers).to(device, non_blocking=True)


def shared_pooled(
    reduce: Callable[[Tensor], Tensor],
    segments: Segments,
    share: Share,
    pooling: str,
    device: torch.device,
) -> Tensor:
    """:func:`pooled_by` where ranks share the rows. Each reduces its piece of a segment to one row,
    so only those travel, to the rank that the segment belongs to."""
    how = "sum" if pooling == "mean" else pooling
    pieces, bounds_S = Pieces.of(segments, share), starts(segments.lengths)
    piece_S = [bisect_left(pieces.starts, bound) for bound in bounds_S]
    owner_cuts = segments.owner_cuts(share)
    wanted = [range(piece_S[a], piece_S[b]) for a, b in pairwise(owner_cuts)]
    x_PX = Fetch(share, pieces.cuts, wanted)(reduce(on_device(pieces.mine, device)))
    own = slice(owner_cuts[share.rank], owner_cuts[share.rank + 1] + 1)
    first = piece_S[own.start]
    x_SX = reduced(x_PX, on_device([piece - first for piece in piece_S[own]], device), how)
    if pooling == "mean":
        x_SX = x_SX / on_device(bounds_S[own], device).diff().unsqueeze(1)
    return x_SX
