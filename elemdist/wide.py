"""Beside a classifier's transformer: how often each material stands in a document.

A transformer has to learn from few documents that one word decides a rare label; a linear layer on
the counts of words knows that at once (Wide & Deep, Cheng et al. 2016, arXiv 1606.07792). Here the
counts need no vocabulary: they are those of the units of the mixing layer, which answer to a word
the more the more alike it is, see :class:`elemdist.embedding.SlotMixing`.
Shape suffixes: see elemdist/rows.py; S segments, P pieces of them, U distinct materials, K units
(of input subword: tokens), L labels.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elemdist.attention import Segments
from elemdist.pooling import pooled_by


def counts(bounds_P: Tensor, answer_UK: Tensor | None, place_T: Tensor, units: int) -> Tensor:
    """How often each unit's material stands between two bounds: (P + 1,) -> (P, K), fp32.

    Args:
        answer_UK: how much a unit answers to each distinct material. None: `place_T` are units.
        place_T: int64, which of the distinct ones each row is.
    """
    distinct = units if answer_UK is None else len(answer_UK)
    pieces = len(bounds_P) - 1
    piece_T = torch.repeat_interleave(bounds_P.diff().long(), output_size=len(place_T))
    cell_T = piece_T * distinct + place_T
    count_PU = torch.bincount(cell_T, minlength=pieces * distinct).view(pieces, distinct).float()
    return count_PU if answer_UK is None else count_PU @ answer_UK.float()


class Counts(nn.Module):
    """The logarithm of each unit's count, times how much its material says (an inverse document
    frequency), and all of a segment's scaled to length 1: (S, K), fp32.

    Attributes:
        weight: the parameter, (K,).
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(units))

    def forward(self, segments: Segments, answer_UK: Tensor | None, place_T: Tensor) -> Tensor:
        return F.normalize(self.logs(segments, answer_UK, place_T) * self.weight.float(), dim=-1)

    def logs(self, segments: Segments, answer_UK: Tensor | None, place_T: Tensor) -> Tensor:
        """(S, K): log(1 + count) of the segments that belong to this rank."""
        count = partial(counts, answer_UK=answer_UK, place_T=place_T, units=self.weight.numel())
        return pooled_by(count, segments, "sum", place_T.device).log1p()


class Wide(nn.Module):
    """The counts of a segment's materials to a logit per label: (S, L). Starts at 0.

    Attributes:
        weight: the parameter, (L, K).
        LR_RATIO: of the weights' learning rate to the run's. They have far to go: each stands for
            one word, whose count is 0 in most documents.
    """

    LR_RATIO = 200.0

    def __init__(self, units: int, labels: int) -> None:
        super().__init__()
        self.counts = Counts(units)
        self.weight = nn.Parameter(torch.zeros(labels, units))

    @torch.no_grad()
    def expect(self, seen_K: Tensor, documents: int) -> None:
        """Starts the scales of the counts at inverse document frequencies, log(D / d) + 1.

        Args:
            seen_K: in how many of the `documents` each unit's material stands.
        """
        self.counts.weight.copy_(((1 + documents) / (1 + seen_K)).log() + 1)

    def forward(self, segments: Segments, answer_UK: Tensor | None, place_T: Tensor) -> Tensor:
        x_SK = self.counts(segments, answer_UK, place_T)
        return F.linear(x_SK.to(self.weight.dtype), self.weight)
