"""Attention on unpadded rows: one function, and never a mask of n x n.

The rows of a batch lie back to back, segment by segment; a row attends only within its segment
(a document, or the part of it that a sample holds). On CUDA the variable-length flash kernel of
torch runs, elsewhere torch's scaled dot product, once per length of segment: the loader sorts the
segments by length, so equal ones are neighbours and no row has to be copied to batch them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Where the segments of a batch lie: `cu_lengths` (S + 1,) int32 on the device, and `lengths`
    (S of them, ascending) on the host, so that no kernel has to wait for the device."""

    cu_lengths: Tensor
    lengths: list[int]

    def groups(self) -> list[tuple[int, int]]:
        """(length, number of segments of that length), in the order of the rows."""
        return [(length, len(list(same))) for length, same in groupby(self.lengths)]


@cache
def backend(device: torch.device, dtype: torch.dtype) -> str:
    """The name of what :func:`attention` runs: ``varlen`` or ``sdpa``."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "sdpa"
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:  # torch before 2.10
        return "sdpa"
    return "varlen" if torch.cuda.get_device_capability(device) >= (8, 0) else "sdpa"


def attention(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, segments: Segments) -> Tensor:
    """Softmax attention within each segment, (T, H, D) -> (T, H, D), D the width of a head."""
    if backend(q_THD.device, q_THD.dtype) == "varlen":
        from torch.nn.attention.varlen import varlen_attn

        cu, longest = segments.cu_lengths, segments.lengths[-1]
        out = varlen_attn(q_THD, k_THD, v_THD, cu, cu, longest, longest)
        assert isinstance(out, Tensor)
        return out
    groups = segments.groups()
    # split, not slices: its gradient is one concatenation, a slice's is a tensor of zeros each.
    sizes = [length * count for length, count in groups]
    parts = []
    for (length, count), *qkv in zip(
        groups, q_THD.split(sizes), k_THD.split(sizes), v_THD.split(sizes), strict=True
    ):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv)
        parts.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
