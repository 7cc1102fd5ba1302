"""Sequence parallelism: the ranks of a group share the rows of the same samples.

Each rank has a contiguous part of a batch's rows, and all that works row by row works on those. In
attention an all-to-all gives each rank all rows of a part of the heads, and a second one brings the
outcome back (Jacobs et al. 2023, arXiv 2309.14509). To the optimizer every rank of every group is a
data-parallel rank: its loss is its part of the sum, and the gradients of all ranks add up.

Shape suffixes: see elemdist/rows.py; G ranks of a group, D = W / H, X whatever a row holds, K
queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from elemdist.errors import UserError

Amount = TypeVar("Amount", int, float, Tensor)


@dataclass(frozen=True)
class Share:
    """This rank's part in a group of ranks that have the same samples.

    Attributes:
        group: the ranks that share. rank, size: this one among them, and how many they are.
    """

    group: Any
    rank: int
    size: int

    def cuts(self, count: int) -> list[int]:
        """Where each rank's part of `count` rows starts, and the end: size + 1 numbers."""
        return [count * rank // self.size for rank in range(self.size + 1)]

    def part(self, count: int) -> range:
        """The numbers of this rank's rows out of `count`."""
        cuts = self.cuts(count)
        return range(cuts[self.rank], cuts[self.rank + 1])


def check_split(heads: int, ranks: int) -> None:
    """Raises UserError where heads cannot be split over the ranks that share a sequence."""
    if ranks < 1 or heads % ranks:
        fitting = [degree for degree in range(1, heads + 1) if heads % degree == 0]
        raise UserError(
            f"sequence_parallel: {heads} heads cannot be split over {ranks} ranks;"
            f" {', '.join(map(str, fitting))} can share a sequence"
        )


def open_groups(sequence_parallel: int) -> Share | None:
    """This rank's share in a group of so many consecutive ranks; None where each is alone. All
    ranks call it together, and their number divides into such groups."""
    if sequence_parallel == 1:
        return None
    mine: Share | None = None
    for first in range(0, dist.get_world_size(), sequence_parallel):
        ranks = list(range(first, first + sequence_parallel))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            mine = Share(group, dist.get_rank() - first, sequence_parallel)
    return mine


def once(amount: Amount, share: Share | None) -> Amount:
    """`amount`, which all ranks of a group know, on the first of them, and 0 on the others: a sum
    over all ranks counts it once."""
    return amount if share is None or share.rank == 0 else amount * 0


class _AllToAll(torch.autograd.Function):
    """See :func:`all_to_all`; its gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, x_RX: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
        ctx.back = receive, send, group
        got_RX = x_RX.new_empty(sum(receive), *x_RX.shape[1:])
        dist.all_to_all_single(got_RX, x_RX.contiguous(), receive, send, group=group)
        return got_RX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RX: Tensor) -> tuple[Tensor | None, ...]:
        return _AllToAll.apply(grad_RX, *ctx.back), None, None, None


def all_to_all(x_RX: Tensor, send: list[int], receive: list[int], share: Share) -> Tensor:
    """The rows that the ranks of the group send to this one, in their order.

    Args:
        x_RX: rows for the first rank, then for the second one, and so on.
        send, receive: how many for, and from, each rank.
    """
    got_RX = _AllToAll.apply(x_RX, send, receive, share.group)
    assert isinstance(got_RX, Tensor)
    return got_RX


def to_heads(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, rows: int, share: Share
) -> tuple[Tensor, ...]:
    """Queries, keys and values of this rank's rows, all heads, to those of all `rows` rows, this
    rank's heads: three times (T, H, D) -> (rows, H / G, D)."""
    parts = [x.unflatten(1, (share.size, -1)).transpose(0, 1) for x in (q_THD, k_THD, v_THD)]
    x_GTKHD = torch.stack(parts, 2)
    send, receive = [len(q_THD)] * share.size, sizes(share.cuts(rows))
    return all_to_all(x_GTKHD.flatten(0, 1), send, receive, share).unbind(1)


def to_rows(x_THD: Tensor, share: Share) -> Tensor:
    """The way back from :func:`to_heads`: (rows, H / G, D) -> (T, H, D)."""
    send = sizes(share.cuts(len(x_THD)))
    local = send[share.rank]
    x_RHD = all_to_all(x_THD, send, [local] * share.size, share)
    return x_RHD.unflatten(0, (share.size, local)).transpose(0, 1).flatten(1, 2)


def sizes(cuts: Sequence[int]) -> list[int]:
    """The lengths of the parts between cuts."""
    return [last - first for first, last in pairwise(cuts)]


@dataclass(frozen=True)
class Fetch:
    """Which rows each rank of a group needs, of those that are spread over the group.

    Attributes:
        share: this rank's; None: it has all rows, and keeps them as they are.
        cuts: where each rank's rows start, and the end: G + 1 numbers.
        wanted: the rows that each rank needs, G of them. They may overlap.
    """

    share: Share | None
    cuts: list[int]
    wanted: list[range]

    @property
    def first(self) -> int:
        """The number of the first row that this rank gets."""
        return 0 if self.share is None else self.wanted[self.share.rank].start

    @property
    def before(self) -> int:
        """How many rows this rank gets that come before its own."""
        return 0 if self.share is None else self.cuts[self.share.rank] - self.first

    def nearby(self, before: int, behind: int) -> Fetch:
        """Of the same rows, what a rank has and so many before and behind."""
        if self.share is None:
            return self
        wanted = [
            range(max(0, first - before), min(last + behind, self.cuts[-1]))
            if first < last
            else range(first, last)
            for first, last in pairwise(self.cuts)
        ]
        return Fetch(self.share, self.cuts, wanted)

    def __call__(self, x_RX: Tensor) -> Tensor:
        """The wanted rows of this rank, from its own rows and those of the others."""
        if self.share is None:
            return x_RX
        owned = [range(*pair) for pair in pairwise(self.cuts)]
        mine = owned[self.share.rank]
        send = [overlap(rows, mine) for rows in self.wanted]
        receive = [len(overlap(self.wanted[self.share.rank], rows)) for rows in owned]
        parts = [x_RX[rows.start - mine.start : rows.stop - mine.start] for rows in send if rows]
        x_RX = torch.cat(parts) if parts else x_RX[:0]
        return all_to_all(x_RX, [len(rows) for rows in send], receive, self.share)


def overlap(one: range, other: range) -> range:
    """The numbers that are in both ranges."""
    return range(max(one.start, other.start), min(one.stop, other.stop))
