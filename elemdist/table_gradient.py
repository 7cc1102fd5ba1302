"""Looking elements up in a small table, with a gradient made for tables of 256 rows.

That gradient adds millions of vectors up in 256 sums. The usual gradient of a look-up is made for
vocabularies: it takes one vector after the other, and on a CPU it adds bf16 up in bf16, where a sum
stops growing at some 256 times its summands, so that the one of PAD, which fills most slots, is
lost. Here sums are fp32 (fp64 of fp64), and the same on every run and with any number of threads.

    elemdist bench table [--device cuda]     # the ways to do it, against each other

Shape suffixes: see elemdist/rows.py; K elements looked up (T * V), R rows of the table,
k at most `TILE` of them, C = W / V, P partial sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SPAN = 1024  # elements of one partial sum
TILE = 32768  # elements of one one-hot matrix: 32 MB at 256 rows of fp32

TableGradient = Callable[[Tensor, Tensor, int], Tensor]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What gradients of a dtype are added up in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sorted_sums(index_K: Tensor, gradient_KC: Tensor, rows: int) -> Tensor:
    """The gradient of a table, (R, C) fp32 or fp64: `gradient_KC` summed up by `index_K`.

    The elements are sorted by index, which is fast for bytes; then runs of at most `SPAN` of them
    are summed up, all alike in size and so in time, and last the sums of each index. Of bf16
    gradients a run's sum is fp32 and rounded once.
    """
    sorted_K, order_K = index_K.sort(stable=True)
    device = index_K.device
    starts_R = torch.searchsorted(sorted_K, torch.arange(rows, dtype=index_K.dtype, device=device))
    cuts = torch.arange(0, len(index_K), SPAN, device=device)
    starts_P = torch.cat([starts_R, cuts]).sort().values
    sums_PC = F.embedding_bag(order_K, gradient_KC, starts_P, mode="sum")
    bounds = torch.searchsorted(starts_P, F.pad(starts_R, (0, 1), value=len(index_K) + 1))
    return torch.segment_reduce(sums_PC.to(sum_dtype(sums_PC.dtype)), "sum", offsets=bounds)


def one_hot_product(index_K: Tensor, gradient_KC: Tensor, rows: int) -> Tensor:
    """The same by matrix products, ``one_hot(index).T @ gradient``, of `TILE` elements each.

    It multiplies by zero 255 times out of 256, which only matrix units make up for. With TF32 on,
    fp32 gradients are rounded to it.
    """
    dtype = sum_dtype(gradient_KC.dtype)
    sums_RC = gradient_KC.new_zeros(rows, gradient_KC.shape[1], dtype=dtype)
    # Only CUDA multiplies 16-bit floats into fp32; elsewhere they become fp32 first.
    widened = gradient_KC.is_cuda and gradient_KC.dtype in (torch.bfloat16, torch.float16)
    for index_k, gradient_kC in zip(index_K.split(TILE), gradient_KC.split(TILE), strict=True):
        if not widened:
            gradient_kC = gradient_kC.to(dtype)
        hot_kR = gradient_kC.new_zeros(len(index_k), rows)
        hot_kR.scatter_(1, index_k.long().unsqueeze(1), 1)
        if widened:
            sums_RC += torch.mm(hot_kR.T, gradient_kC, out_dtype=dtype)
        else:
            sums_RC.addmm_(hot_kR.T, gradient_kC)
    return sums_RC


# Against F.embedding's gradient, `elemdist bench table` on two idle CPU cores, 12,288 / 98,304 /
# 1,048,576 elements of 48 to 64 floats: sorted_sums 1.3 / 4.2 / 4.2 times as fast in fp32, 1.9 /
# 6.8 / 9.6 in bf16; one_hot_product 0.08 to 0.24. scatter_add_ is ahead at 12,288 (2.5), where all
# but the product take a millisecond, and behind at 98,304 (1.7).
# On CUDA nothing is measured yet: the product is expected to win, since matrix units do it at the
# speed of memory, 0.5 KB of bf16 for each element written and read.
CHOICE: dict[str, TableGradient] = {"cpu": sorted_sums, "cuda": one_hot_product}


def table_gradient(index_V: Tensor, gradient_VC: Tensor, rows: int) -> Tensor:
    """The gradient of a (R, C) table whose rows ``index_V`` (...) have ``gradient_VC`` (..., C):
    fp32, or fp64 of fp64, by what is fastest on the device."""
    fastest = CHOICE.get(index_V.device.type, one_hot_product)
    width = gradient_VC.shape[-1]
    return fastest(index_V.reshape(-1), gradient_VC.reshape(-1, width), rows)


class Lookup(torch.autograd.Function):
    """See :func:`lookup`. Keeps the bytes only, not the 32-bit indices that a look-up needs."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows_V: Tensor) -> Tensor:
        """(..., V) uint8 -> (..., V, C)."""
        ctx.save_for_backward(rows_V)
        ctx.shape = table.shape
        if table.ndim == 2:
            return F.embedding(rows_V.int(), table)
        slots, rows, _ = table.shape
        first_V = torch.arange(0, slots * rows, rows, dtype=torch.int32, device=table.device)
        return F.embedding(rows_V.int() + first_V, table.flatten(0, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_VC: Tensor) -> tuple[Tensor | None, None]:
        """The gradient of the table, (E, C) or (V, E, C)."""
        if not ctx.needs_input_grad[0]:
            return None, None
        (rows_V,) = ctx.saved_tensors
        rows = ctx.shape[-2]
        if len(ctx.shape) == 2:
            sums = table_gradient(rows_V, gradient_VC, rows)
        else:
            slots = zip(rows_V.unbind(-1), gradient_VC.unbind(-2), strict=True)
            sums = torch.stack([table_gradient(*slot, rows) for slot in slots])
        return sums.to(gradient_VC.dtype), None


def lookup(table: Tensor, rows_V: Tensor) -> Tensor:
    """The vectors of elements: ``(..., V) -> (..., V, C)``.

    Args:
        table: (R, C) for all slots, or (V, R, C), one for each. Any float.
        rows_V: (..., V), integers in [0, R); where slots have tables of their own, an index that is
            too large is not noticed.

    The gradient of the table is the same on every run; it has no gradient of its own.
    """
    return Lookup.apply(table, rows_V)
