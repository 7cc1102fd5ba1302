"""The loss of a batch by the source of its samples, as sums that ranks can add up.

Every function gives a float64 per source of the mixture, on the batch's device, without waiting
for it; an all-reduce over the ranks and a quotient of two make the figures: bits per byte out of
nats and bytes, the mean loss of classify out of nats and segments. With sequence parallelism a rank
has some of the rows (or segments) only, and all ranks of a group the whole batch: `select_M` and
`segments` are numbers in the whole batch, the values those of this rank.
Shape suffixes: see elemdist/rows.py; S segments, K sources.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elemdist.batch import Batch
from elemdist.rows import FIRST_SPECIAL


def segments_of(batch: Batch, rows_M: Tensor) -> Tensor:
    """The segments that rows of the batch lie in: (M,) int64."""
    ends_S = batch.segments.cu_lengths[1:]
    return torch.searchsorted(ends_S, rows_M.to(ends_S.dtype), right=True)


def sums_by_source(values: Tensor, segments: Tensor | slice, batch: Batch, sources: int) -> Tensor:
    """The sum of some values for each source, by the segments they belong to: (K,) float64."""
    assert batch.source_B is not None, "only a batch of training knows its sources"
    of = batch.source_B[batch.sample_S[segments]]
    sums_K = torch.zeros(sources, dtype=torch.float64, device=values.device)
    return sums_K.index_add_(0, of, values.detach().double())


def nats_by_source(nats_M: Tensor, select_M: Tensor, batch: Batch, sources: int) -> Tensor:
    """Nats of the predictions for each source: (K,) float64.

    Args:
        nats_M: of each prediction, as the model gives them. select_M: int64, the rows that
            predicted. sources: K, how many there are.
    """
    return sums_by_source(nats_M, segments_of(batch, select_M), batch, sources)


def bytes_by_source(
    target_MV: Tensor, select_M: Tensor, batch: Batch, sources: int, next_row: bool = False
) -> Tensor:
    """Bytes of text in the targets for each source: (K,) float64; end marks do not count.

    Args:
        target_MV, select_M: as in Targets. sources: K, how many there are.
        next_row: whether a row predicts the one behind it (objective clm), and not itself.
    """
    segment_M = segments_of(batch, select_M)
    if batch.bytes_T is None:
        bytes_M = (target_MV < FIRST_SPECIAL).sum(-1)
    elif not next_row:
        bytes_M = batch.bytes_T[select_M]
    else:  # the last row of a segment predicts the DOC of another one
        end_M = batch.segments.cu_lengths[1:][segment_M]
        next_M = (select_M + 1).clamp(max=len(batch.bytes_T) - 1)
        bytes_M = batch.bytes_T[next_M] * (select_M + 1 < end_M)
    return sums_by_source(bytes_M, segment_M, batch, sources)


def labels_by_source(
    nats_S: Tensor, segments: Tensor | slice, batch: Batch, sources: int
) -> tuple[Tensor, Tensor]:
    """Nats of the labels, and segments, for each source: (K,) float64 each.

    Args:
        nats_S: of some segments, the mean over their labels. segments: which ones, int64 or a
            slice, as Segments.own.
        sources: K, how many there are.
    """
    count = torch.ones_like(nats_S)
    return (
        sums_by_source(nats_S, segments, batch, sources),
        sums_by_source(count, segments, batch, sources),
    )
