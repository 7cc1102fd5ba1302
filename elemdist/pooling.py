"""One vector of each segment, out of those of its rows, also where ranks share the rows.

Shape suffixes: see elemdist/rows.py; S segments, P pieces of segments, X anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from elemdist.attention import Segments, starts
from elemdist.sequence_parallel import Fetch, Share


def pooled(x_TW: Tensor, segments: Segments, pooling: str) -> Tensor:
    """A vector of each segment that belongs to this rank: (T, W) -> (S, W)."""
    how = "sum" if pooling == "mean" and segments.share is not None else pooling
    reduce = partial(reduced, x_TW, how=how)
    return pooled_by(reduce, segments, pooling, x_TW.device).to(x_TW.dtype)


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


def shared_pooled(
    reduce: Callable[[Tensor], Tensor],
    segments: Segments,
    share: Share,
    pooling: str,
    device: torch.device,
) -> Tensor:
    """:func:`pooled_by` where ranks share the rows. Each reduces its piece of a segment to one row,
    so only those travel, to the rank that the segment belongs to."""
    rank, how = share.rank, "sum" if pooling == "mean" else pooling
    bounds_S, cuts = starts(segments.lengths), share.cuts(segments.rows)
    bounds_P = sorted({*bounds_S, *cuts})
    piece = {row: number for number, row in enumerate(bounds_P)}  # that starts there
    piece_cuts = [piece[cut] for cut in cuts]
    owner_cuts = segments.owner_cuts(share)
    wanted = [range(piece[bounds_S[a]], piece[bounds_S[b]]) for a, b in pairwise(owner_cuts)]

    def on_device(bounds: list[int]) -> Tensor:
        shifted = torch.tensor([bound - bounds[0] for bound in bounds])
        return shifted.to(device, non_blocking=True)

    mine = bounds_P[piece_cuts[rank] : piece_cuts[rank + 1] + 1]
    x_PX = Fetch(share, piece_cuts, wanted)(reduce(on_device(mine)))
    bounds_S = bounds_S[owner_cuts[rank] : owner_cuts[rank + 1] + 1]
    x_SX = reduced(x_PX, on_device([piece[bound] for bound in bounds_S]), how)
    if pooling == "mean":
        x_SX = x_SX / on_device(bounds_S).diff().unsqueeze(1)
    return x_SX
