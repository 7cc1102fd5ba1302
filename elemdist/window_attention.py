"""Attention within a window, in memory linear in the rows, for devices without a flash kernel.

The packed rows are cut into blocks of queries; a block attends to the rows it holds and to its
window's worth before and behind, under a mask that knows only those. A slab of some blocks is
computed at a time, in the gradient once more, so no mask and no copy of the keys outlives it.

Shape suffixes: see elemdist/rows.py; D = W / H, and here N blocks of a slab, Q queries of a block,
K keys that a block reaches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST_BLOCK, LARGEST_BLOCK = 64, 256  # queries; measured: neither less nor more is faster
SLAB_PAIRS = 1 << 22  # (query, key) pairs of a slab, so its mask takes 16 MB in float32


def windowed_attention(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, cu_lengths: Tensor, before: int, behind: int
) -> Tensor:
    """Softmax attention of each row to the rows of its segment at most `before` before it and
    `behind` behind it, (T, H, D) -> (T, H, D). `cu_lengths` (S + 1,) says where segments lie."""
    length_S = cu_lengths.diff()
    owner_T = torch.repeat_interleave(
        torch.arange(len(length_S), device=q_THD.device), length_S, output_size=len(q_THD)
    )
    out = _Windowed.apply(q_THD, k_THD, v_THD, owner_T, before, behind)
    assert isinstance(out, Tensor)
    return out


def block_size(before: int, behind: int) -> int:
    """Queries of a block: as many as it reaches keys beside them wastes a half at most; a larger
    one only needs a larger mask."""
    rounded = -(-max(before, behind) // LEAST_BLOCK) * LEAST_BLOCK
    return min(max(rounded, LEAST_BLOCK), LARGEST_BLOCK)


def slabs(rows: int, before: int, behind: int) -> Iterator[tuple[slice, slice]]:
    """(queries, keys that they reach) of each slab, as slices of all rows."""
    block = block_size(before, behind)
    step = block * max(1, SLAB_PAIRS // (block * (before + block + behind)))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        yield slice(first, last), slice(max(0, first - before), min(rows, last + behind))


def slab_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    owner_T: Tensor,
    here: slice,
    reach: slice,
    before: int,
    behind: int,
) -> Tensor:
    """The output of the rows `here` from their queries and the keys and values of `reach`."""
    block = block_size(before, behind)
    count = len(q_THD)
    blocks = -(-count // block)
    added = blocks * block - count  # rows that fill the last block
    edges = (before - (here.start - reach.start), added + behind - (reach.stop - here.stop))
    span = before + block + behind

    def keys(x_THD: Tensor) -> Tensor:
        x_NHDK = F.pad(x_THD, (0, 0, 0, 0, *edges)).unfold(0, span, block)
        return x_NHDK.transpose(-1, -2)

    # Rows that were added belong to segment -1: they see each other, so no softmax is empty, and
    # no row of the batch sees them.
    key_owner_NK = F.pad(owner_T[reach], edges, value=-1).unfold(0, span, block)
    owner_NQ = key_owner_NK[:, before : before + block]
    place_Q, place_K = (torch.arange(n, device=q_THD.device) for n in (block, span))
    offset_QK = place_K - before - place_Q.unsqueeze(1)
    near_QK = (offset_QK >= -before) & (offset_QK <= behind)
    mask_N1QK = ((owner_NQ.unsqueeze(2) == key_owner_NK.unsqueeze(1)) & near_QK).unsqueeze(1)
    q_NHQD = F.pad(q_THD, (0, 0, 0, 0, 0, added)).unflatten(0, (blocks, block)).transpose(1, 2)
    out = F.scaled_dot_product_attention(q_NHQD, keys(k_THD), keys(v_THD), mask_N1QK)
    return out.transpose(1, 2).flatten(0, 1)[:count]


class _Windowed(torch.autograd.Function):
    """Slab by slab; keeps queries, keys and values for the gradient and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, owner_T: Tensor, before: int, behind: int
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, owner_T)
        ctx.reach = (before, behind)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for here, reach in slabs(len(q), before, behind):
            out[here] = slab_attention(
                q[here], k[reach], v[reach], owner_T, here, reach, before, behind
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, owner_T = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        for here, reach in slabs(len(q), *ctx.reach):
            parts = [x.detach().requires_grad_() for x in (q[here], k[reach], v[reach])]
            with torch.enable_grad():
                out = slab_attention(parts[0], parts[1], parts[2], owner_T, here, reach, *ctx.reach)
            for total, rows, part in zip(
                (dq, dk, dv),
                (here, reach, reach),
                torch.autograd.grad(out, parts, grad_THD[here]),
                strict=True,
            ):
                total[rows] += part
        return dq, dk, dv, None, None, None
