"""Beside a classifier's transformer: how often each material stands in a document.

A transformer has to learn from few documents that one word decides a rare label; a linear layer on
the counts of words knows that at once (Wide & Deep, Cheng et al. 2016, arXiv 1606.07792). Here the
counts need no vocabulary: they are those of the units of the mixing layer, which answer to a word
the more the more alike it is, see :class:`elemdist.embedding.SlotMixing`.
Shape suffixes: see elemdist/rows.py; S segments, P pieces of them, U distinct materials, K units
(of input subword: tokens), L labels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elemdist.attention import Segments
from elemdist.pooling import pooled_by

LEAD_ROWS = 20.0  # behind so many rows, what the start of a document counts more is down to a third
PARTS = 1 << 20  # of a count: whole numbers add up to the same in any order


def counts(
    bounds_P: Tensor, answer_UK: Tensor | None, place_T: Tensor, parts_T: Tensor, units: int
) -> Tensor:
    """How often each unit's material stands between two bounds: (P + 1,) -> (P, K), fp32.

    Args:
        answer_UK: how much a unit answers to each distinct material. None: `place_T` are units.
        place_T: int64, which of the distinct ones each row is.
        parts_T: int64, as how many `PARTS` of one each row counts.
    """
    distinct = units if answer_UK is None else len(answer_UK)
    pieces = len(bounds_P) - 1
    piece_T = torch.repeat_interleave(bounds_P.diff().long(), output_size=len(place_T))
    sums = parts_T.new_zeros(pieces * distinct)
    sums.index_add_(0, piece_T * distinct + place_T, parts_T)
    count_PU = sums.view(pieces, distinct).float() / PARTS
    return count_PU if answer_UK is None else count_PU @ answer_UK.float()


class Counts(nn.Module):
    """The logarithm of each unit's count, times how much its material says (an inverse document
    frequency), and all of a segment's scaled to length 1: (S, K), fp32.

    Args:
        lead: by how much more a segment's first row counts than those far behind it.

    Attributes:
        weight: the parameter, (K,).
    """

    def __init__(self, units: int, lead: float = 0.0) -> None:
        super().__init__()
        self.lead = lead
        self.weight = nn.Parameter(torch.ones(units))

    def forward(self, segments: Segments, *materials: Any) -> Tensor:
        """A unit vector for each segment, (S, K)."""
        return F.normalize(self.logs(segments, *materials) * self.weight.float(), dim=-1)

    def logs(
        self, segments: Segments, answer_UK: Tensor | None, place_T: Tensor, position_T: Tensor
    ) -> Tensor:
        """(S, K): log(1 + count) of the segments that belong to this rank. `position_T`: places of
        the rows in their segments."""
        weight_T = 1 + self.lead * (position_T / -LEAD_ROWS).exp()
        parts_T = (weight_T * PARTS).round().long()

        def count(bounds_P: Tensor) -> Tensor:
            return counts(bounds_P, answer_UK, place_T, parts_T, self.weight.numel())

        return pooled_by(count, segments, "sum", place_T.device).log1p()


class Wide(nn.Module):
    """The counts of a segment's materials to a logit per label: (S, L). Starts at 0.

    Attributes:
        weight: the parameter, (L, K).
        LR_RATIO: of the weights' learning rate to the run's. They have far to go: each stands for
            one word, whose count is 0 in most documents.
    """

    LR_RATIO = 200.0

    def __init__(self, units: int, labels: int, lead: float = 0.0) -> None:
        super().__init__()
        self.counts = Counts(units, lead)
        self.weight = nn.Parameter(torch.zeros(labels, units))

    @torch.no_grad()
    def expect(self, seen_K: Tensor, documents: int) -> None:
        """Starts the scales of the counts at inverse document frequencies, log(D / d) + 1.

        Args:
            seen_K: in how many of the `documents` each unit's material stands.
        """
        self.counts.weight.copy_(((1 + documents) / (1 + seen_K)).log() + 1)

    def forward(self, segments: Segments, *materials: Any) -> Tensor:
        """Of what :meth:`Counts.logs` takes."""
        x_SK = self.counts(segments, *materials)
        return F.linear(x_SK.to(self.weight.dtype), self.weight)
