"""Attention on unpadded rows: one function, and never a mask of n x n.

The rows of a batch lie back to back, segment by segment; a row attends only within its segment
(a document, or the part of it that a sample holds). On GPUs a flash kernel computes it, see
:mod:`elemdist.attention_kernels`; elsewhere torch's scaled dot product does, once per length of
segment: the loader sorts the segments by length, so equal ones are neighbours and no row has to be
copied to batch them. A window then goes through :mod:`elemdist.window_attention`. Where ranks share
the rows, each computes its heads for all of them, see :mod:`elemdist.sequence_parallel`.

Shape suffixes: see elemdist/rows.py; S segments, D = W / H.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from elemdist.attention_kernels import (
    ALL,
    BACKENDS,
    HEAD_MULTIPLE,
    KERNELS,
    WIDEST_HEAD,
    Kernel,
    Packed,
    Window,
    backend,
    backends,
    choose,
)
from elemdist.sequence_parallel import Share, to_heads, to_rows
from elemdist.window_attention import windowed_attention

__all__ = ["BACKENDS", "Segments", "attention", "backend", "backends", "choose"]


@dataclass(frozen=True)
class Segments:
    """Where the segments of a batch lie.

    Attributes:
        cu_lengths: (S + 1,) int32 on the device, the row at which each segment starts, and T.
        lengths: S of them, ascending (a batch's; :meth:`chunks` are not), on the host, so that no
            kernel has to wait for the device.
        keys: how many leading rows of each segment may be attended to, S of them; the rows behind
            them attend like all others. None: every row. A segment with 0 is one in which every
            row attends to all alike, which is what a softmax over equally masked scores gives.
        share: which rows this rank has, where ranks share them; None: all. All else that is said
            here is of all rows.
    """

    cu_lengths: Tensor
    lengths: list[int]
    keys: list[int] | None = None
    share: Share | None = None

    def groups(self) -> list[tuple[int, int, int]]:
        """(length, rows of it that are attended to, number of such segments) of neighbouring
        equal segments, in the order of the rows."""
        pairs = zip(self.lengths, self.seen, strict=True)
        return [(*pair, len(list(same))) for pair, same in groupby(pairs)]

    def chunks(self, size: int) -> Segments:
        """The same rows in segments of `size` rows, and a shorter one at each old segment's end."""
        if size < 1:
            raise ValueError(f"a chunk has at least 1 row, not {size}")
        pieces = [
            (min(size, length - first), max(0, min(size, keys - first)))
            for length, keys in zip(self.lengths, self.keys or self.lengths, strict=True)
            for first in range(0, length, size)
        ]
        lengths = [length for length, _ in pieces]
        device = self.cu_lengths.device
        return Segments(
            torch.tensor(starts(lengths), dtype=torch.int32).to(device, non_blocking=True),
            lengths,
            None if self.keys is None else [keys for _, keys in pieces],
            self.share,
        )

    @cached_property
    def longest(self) -> int:
        """Rows of the longest segment."""
        return max(self.lengths)

    @cached_property
    def rows(self) -> int:
        """How many rows there are, on all ranks that share them."""
        return sum(self.lengths)

    @property
    def mine(self) -> slice:
        """The rows that this rank has."""
        if self.share is None:
            return slice(0, self.rows)
        part = self.share.part(self.rows)
        return slice(part.start, part.stop)

    def owner_cuts(self, share: Share) -> list[int]:
        """The segments' numbers at which those of each rank of the group start, and S: a segment
        belongs to the rank that has its first row."""
        start_S = starts(self.lengths)[:-1]
        return [bisect_left(start_S, cut) for cut in share.cuts(self.rows)]

    @property
    def own(self) -> slice:
        """The segments that belong to this rank; all of them where it shares no rows."""
        if self.share is None:
            return slice(0, len(self.lengths))
        cuts = self.owner_cuts(self.share)
        return slice(cuts[self.share.rank], cuts[self.share.rank + 1])

    @cached_property
    def seen(self) -> list[int]:
        """The rows of each segment that are attended to; where nothing may be, that is all."""
        if self.keys is None:
            return self.lengths
        return [keys or length for keys, length in zip(self.keys, self.lengths, strict=True)]

    @cached_property
    def blind_T11(self) -> Tensor | None:
        """True for the rows of segments with 0 keys; None where there are none."""
        if self.keys is None or 0 not in self.keys:
            return None
        blind_S = torch.tensor([keys == 0 for keys in self.keys])
        blind_T = blind_S.repeat_interleave(torch.tensor(self.lengths))
        return blind_T.to(self.cu_lengths.device, non_blocking=True).view(-1, 1, 1)

    @cached_property
    def seen_rows(self) -> tuple[Tensor, Tensor] | None:
        """(numbers of the rows that are attended to, int64; where each segment's start among
        them, (S + 1,) int32), on the device; None where they are all rows."""
        if self.seen == self.lengths:
            return None
        length_S, start_S = torch.tensor(self.lengths), torch.tensor(starts(self.lengths))
        place_T = torch.arange(self.rows) - start_S[:-1].repeat_interleave(length_S)
        rows = (place_T < torch.tensor(self.seen).repeat_interleave(length_S)).nonzero().squeeze(1)
        cu_seen = torch.tensor(starts(self.seen), dtype=torch.int32)
        device = self.cu_lengths.device
        return rows.to(device, non_blocking=True), cu_seen.to(device, non_blocking=True)


def starts(lengths: list[int]) -> list[int]:
    """Where pieces of these lengths start, and where the last one ends."""
    return list(accumulate(lengths, initial=0))


def attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    segments: Segments,
    *,
    causal: bool = False,
    window: int = 0,
) -> Tensor:
    """Softmax attention within each segment, (T, H, D) -> (T, H, D), D the width of a head.

    Where ranks share the segments, T are the rows of this one; all of them call it together.

    Args:
        causal: a row sees itself and the rows before it.
        window: a row sees rows at most so far from it; 0: at any distance.

    Raises:
        ValueError: a window below 0, or `segments` with keys and a window or `causal`.
    """
    if window < 0:
        raise ValueError(f"a window of {window} rows; 0 is none")
    if segments.keys is not None and (causal or window):
        raise ValueError("segments with keys of their own go with neither causal nor a window")
    if (share := segments.share) is not None:
        q_THD, k_THD, v_THD = to_heads(q_THD, k_THD, v_THD, segments.rows, share)
    if segments.blind_T11 is not None:
        # Without a query all scores are 0: every row attends to all rows alike.
        q_THD = q_THD.masked_fill(segments.blind_T11, 0)
    before = window if 0 < window < segments.longest - 1 else ALL
    reach = (before, 0 if causal else before)
    name = backend(q_THD.device, q_THD.dtype)
    if name == "sdpa" or q_THD.shape[-1] > WIDEST_HEAD:
        x_THD = sdpa(q_THD, k_THD, v_THD, segments, reach)
    else:
        x_THD = flash(KERNELS[name], q_THD, k_THD, v_THD, segments, reach)
    return x_THD if share is None else to_rows(x_THD, share)


def sdpa(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, segments: Segments, reach: Window) -> Tensor:
    """:func:`attention` by torch's scaled dot product; `reach`: rows before and behind, or ALL."""
    dtype = q_THD.dtype
    if q_THD.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        # Measured: without units for bfloat16 its gradient takes 4 to 16 times as long.
        q_THD, k_THD, v_THD = q_THD.float(), k_THD.float(), v_THD.float()
    if reach[0] != ALL:
        return windowed_attention(q_THD, k_THD, v_THD, segments.cu_lengths, *reach).to(dtype)
    groups = segments.groups()
    # split, not slices: its gradient is one concatenation, a slice's is a tensor of zeros each.
    sizes = [length * count for length, _, count in groups]
    parts = []
    for (length, seen, count), *qkv in zip(
        groups, q_THD.split(sizes), k_THD.split(sizes), v_THD.split(sizes), strict=True
    ):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv)
        if seen < length:
            k, v = k[:, :, :seen], v[:, :, :seen]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=reach[1] == 0)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(dtype)


def flash(
    kernel: Kernel,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    segments: Segments,
    reach: Window,
) -> Tensor:
    """:func:`attention` by a variable-length flash kernel."""
    width = q_THD.shape[-1]
    cu_q = cu_k = segments.cu_lengths
    if segments.seen_rows is not None:
        rows, cu_k = segments.seen_rows
        k_THD, v_THD = k_THD[rows], v_THD[rows]
    if width % HEAD_MULTIPLE:  # zeros add nothing to a score, and what they give is cut off
        added = -width % HEAD_MULTIPLE
        q_THD, k_THD, v_THD = (F.pad(x, (0, added)) for x in (q_THD, k_THD, v_THD))
    packed = Packed(cu_q, cu_k, segments.longest, max(segments.seen))
    return kernel(q_THD, k_THD, v_THD, packed, width**-0.5, reach)[..., :width]
