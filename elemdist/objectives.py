"""What is learned: masked materials (bits per byte) and multilabel classification.

Every random choice is a hash of (seed, place of the row in the whole run), so a mask depends
neither on the number of ranks nor on where a run was resumed, and needs no state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from elemdist.rows import FIRST_SPECIAL, MASK, PAD

NATS_PER_BIT = math.log(2)


def signed(value: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit number."""
    value %= 1 << 64
    return value - (1 << 64) if value >> 63 else value


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64; torch's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_uniform(key: Tensor, seed: int, stream: int) -> Tensor:
    """A float32 in [0, 1) per int64 key, independent between seeds and streams (splitmix64)."""
    start = seed * 0xD1342543DE82EF95 + stream * 0x2545F4914F6CDD1D + 0x9E3779B97F4A7C15
    x = key * signed(0x9E3779B97F4A7C15) + signed(start)
    x = (x ^ shift_right(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ shift_right(x, 27)) * signed(0x94D049BB133111EB)
    return shift_right(x ^ shift_right(x, 31), 40).float() * 2.0**-24


@dataclass(frozen=True)
class Masked:
    """Rows with some materials hidden, and what is to be predicted."""

    rows_TV: Tensor  # uint8, the model's input
    select_M: Tensor  # int64, the rows to predict
    target_MV: Tensor  # uint8, their elements
    text_bytes: Tensor  # int64, number of bytes in them, end marks not counted


def mask_materials(
    rows_TV: Tensor, key_T: Tensor, cu_lengths: Tensor, mask_rate: float, seed: int
) -> Masked:
    """Chooses `mask_rate` of the materials of (T, V) uint8 rows; 8 in 10 of them become MASK,
    1 in 10 another material of the same segment, 1 in 10 stay as they are (as BERT does)."""
    chosen_T = (rows_TV[:, 0] < FIRST_SPECIAL) & (hash_uniform(key_T, seed, 0) < mask_rate)
    select_M = chosen_T.nonzero().squeeze(1)
    target_MV = rows_TV[select_M]
    key_M = key_T[select_M]
    segment_M = torch.searchsorted(cu_lengths, select_M.int(), right=True) - 1
    first_M = cu_lengths[segment_M].long()
    length_M = cu_lengths[segment_M + 1].long() - first_M
    # Row 0 of a segment is its DOC row, so another material is looked for behind it.
    others_M = (length_M - 1).clamp(min=1)
    offset_M = (hash_uniform(key_M, seed, 1) * others_M).long().clamp(max=others_M - 1)
    other_MV = rows_TV[first_M + (length_M - others_M) + offset_M]
    kind_M1 = hash_uniform(key_M, seed, 2).unsqueeze(1)
    hidden_MV = torch.where(kind_M1 < 0.8, MASK, torch.where(kind_M1 < 0.9, other_MV, target_MV))
    masked_TV = rows_TV.clone()
    masked_TV[select_M] = hidden_MV.to(torch.uint8)
    return Masked(masked_TV, select_M, target_MV, (target_MV < FIRST_SPECIAL).sum())


def element_loss(logits_MVE: Tensor, target_MV: Tensor) -> Tensor:
    """Sum over materials of the nats of their bytes and their end mark.

    The end mark is the first PAD slot; the slots behind it say nothing and do not count. A
    material that fills all slots has none.
    """
    counts_MV = (target_MV == PAD).cumsum(-1) <= 1
    nats_MV = F.cross_entropy(
        logits_MVE.float().flatten(0, 1), target_MV.flatten().long(), reduction="none"
    ).view_as(counts_MV)
    return (nats_MV * counts_MV).sum()


def label_loss(logits_SL: Tensor, truth_SL: Tensor) -> Tensor:
    """Sum over segments of the mean binary cross entropy of their labels, in nats."""
    nats_SL = F.binary_cross_entropy_with_logits(logits_SL.float(), truth_SL, reduction="none")
    return nats_SL.mean(1).sum()
