"""What is learned: masked materials, the next material, and multilabel classification.

Every random choice is a hash of (seed, place of the row in the whole run), so a mask depends
neither on the number of ranks nor on where a run was resumed, and needs no state.
Shape suffixes: see elemdist/rows.py; S segments, M rows that carry loss, E values of an element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from elemdist.attention import Segments
from elemdist.batch import Batch
from elemdist.model_config import ModelConfig
from elemdist.rows import DOC, FIRST_SPECIAL, MASK, PAD
from elemdist.sequence_parallel import Share

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
class Targets:
    """What a batch's rows are to predict.

    Attributes:
        rows_TV: the model's input, of the batch's dtype.
        select_M: int64, the rows whose output predicts.
        target_MV: what they predict: elements (uint8), or the number of a token (int32).
        bytes_M: int64, bytes of text in each; end marks do not count.
    """

    rows_TV: Tensor
    select_M: Tensor
    target_MV: Tensor
    bytes_M: Tensor

    @property
    def text_bytes(self) -> Tensor:
        """Of all targets, 0-d int64."""
        return self.bytes_M.sum()


def bytes_of_each(target_MV: Tensor) -> Tensor:
    """Bytes of text in targets that are elements: (M,) int64."""
    return (target_MV < FIRST_SPECIAL).sum(1)


def repeat_number(key_M: Tensor) -> Tensor:
    """For each of some keys how many equal ones stand right before it: (M,) int64."""
    number_M = torch.arange(len(key_M), device=key_M.device)
    same_M = torch.zeros_like(key_M, dtype=torch.bool)
    same_M[1:] = key_M[1:] == key_M[:-1]
    return number_M - number_M.masked_fill(same_M, 0).cummax(0).values


def others(batch: Batch, select_M: Tensor, seed: int) -> Tensor:
    """For each selected row a random row of the same segment: (M,) int64 places."""
    cu_lengths = batch.segments.cu_lengths
    segment_M = torch.searchsorted(cu_lengths, select_M.int(), right=True) - 1
    first_M = cu_lengths[segment_M].long()
    length_M = cu_lengths[segment_M + 1].long() - first_M
    # Row 0 of a segment is its DOC row, so another material is looked for behind it.
    others_M = (length_M - 1).clamp(min=1)
    # Input byte: the bytes of a material share a key, but one byte all over is no other material.
    key_M = batch.key_T[select_M]
    key_M = key_M + (repeat_number(key_M) << 48)
    offset_M = (hash_uniform(key_M, seed, 1) * others_M).long().clamp(max=others_M - 1)
    return first_M + (length_M - others_M) + offset_M


def mask_materials(batch: Batch, mask_rate: float, seed: int, mask_symbol: int = MASK) -> Targets:
    """Chooses `mask_rate` of the materials; 8 in 10 of them become `mask_symbol` in all slots,
    1 in 10 others of the same segment, 1 in 10 stay as they are (as BERT does, Devlin et al. 2018,
    arXiv 1810.04805). Of input byte all bytes of a material are chosen together."""
    chosen_T = batch.text_T() & (hash_uniform(batch.key_T, seed, 0) < mask_rate)
    select_M = chosen_T.nonzero().squeeze(1)
    target_MV = batch.rows_TV[select_M]
    other_MV = batch.rows_TV[others(batch, select_M, seed)]
    kind_M1 = hash_uniform(batch.key_T[select_M], seed, 2).unsqueeze(1)
    kept_MV = torch.where(kind_M1 < 0.9, other_MV, target_MV)
    rows_TV = batch.rows_TV.clone()
    rows_TV[select_M] = torch.where(kind_M1 < 0.8, mask_symbol, kept_MV).to(rows_TV.dtype)
    bytes_M = bytes_of_each(target_MV) if batch.bytes_T is None else batch.bytes_T[select_M]
    return Targets(rows_TV, select_M, target_MV, bytes_M)


def next_materials(batch: Batch, doc_symbol: int = DOC) -> Targets:
    """Every row predicts the next one of its segment; the last one predicts the DOC row of the
    document to come, where the batch knows that its own has ended, and else nothing."""
    last_S = batch.segments.cu_lengths[1:].long() - 1
    target_TV = batch.rows_TV.roll(-1, 0)
    target_TV[last_S] = PAD
    target_TV[last_S, 0] = doc_symbol
    predicts_T = torch.ones_like(batch.key_T, dtype=torch.bool)
    predicts_T[last_S] = batch.ended_S
    select_M = predicts_T.nonzero().squeeze(1)
    target_MV = target_TV[select_M]
    if batch.bytes_T is None:
        bytes_M = bytes_of_each(target_MV)
    else:
        bytes_M = batch.bytes_T.roll(-1).index_fill(0, last_S, 0)[select_M]
    return Targets(batch.rows_TV, select_M, target_MV, bytes_M)


def targets_of(batch: Batch, config: ModelConfig, mask_rate: float, seed: int) -> Targets:
    """Return what a model of this configuration learns from a batch: the next materials for
    objective clm, else the masked ones, at `mask_rate`; a classifier's batch as it is at 0."""
    symbols = config.symbols
    if config.objective == "classify" and not mask_rate:
        none = batch.key_T[:0]
        return Targets(batch.rows_TV, none, batch.rows_TV[:0], none)
    if config.objective == "clm":
        return next_materials(batch, symbols.doc if symbols else DOC)
    return mask_materials(batch, mask_rate, seed, symbols.mask if symbols else MASK)


def share_rows(
    rows_TV: Tensor, batch: Batch, share: Share | None
) -> tuple[Tensor, Tensor, Segments]:
    """(rows_TV, position_T, segments) that a model takes: this rank's part of the `rows_TV` of a
    batch, and their segments, which know of the share."""
    if share is None:
        return rows_TV, batch.position_T, batch.segments
    part = share.part(len(rows_TV))
    rows = slice(part.start, part.stop)
    return rows_TV[rows], batch.position_T[rows], replace(batch.segments, share=share)


def share_batch(
    batch: Batch, targets: Targets, share: Share | None
) -> tuple[Tensor, Tensor, Segments, Tensor, Tensor]:
    """(rows_TV, position_T, segments, select_M, target_MV) that a model takes: this rank's part
    of a batch and its targets, which the ranks of its group all have. None: all of it.

    For ``classify`` the logits are those of the segments ``segments.own``.
    """
    inputs = share_rows(targets.rows_TV, batch, share)
    own, first_row = own_targets(targets, share)
    return *inputs, targets.select_M[own] - first_row, targets.target_MV[own]


def own_targets(targets: Targets, share: Share | None) -> tuple[slice, int]:
    """Which targets this rank's part of a batch's rows predicts, and where that part starts."""
    if share is None:
        return slice(None), 0
    part = share.part(len(targets.rows_TV))
    bounds = torch.tensor([part.start, part.stop]).to(targets.select_M.device)
    # The selected rows ascend.
    first, last = torch.searchsorted(targets.select_M, bounds).tolist()
    return slice(first, last), part.start


def counted(target_MV: Tensor) -> Tensor:
    """Return which slots of targets count, (M, V) bool: the bytes and the end mark, which is the
    first PAD slot; the slots after it say nothing.

    A material that fills all slots has no end mark. So a single slot always counts, and the number
    of a token, which may be PAD's, is an element like any other.
    """
    return (target_MV == PAD).cumsum(-1) <= 1


def target_nats(logits_MVE: Tensor, target_MV: Tensor) -> Tensor:
    """Return the nats of the bytes and the end mark of each material, (M,) fp32."""
    nats_MV = F.cross_entropy(
        logits_MVE.float().flatten(0, 1), target_MV.flatten().long(), reduction="none"
    ).view_as(target_MV)
    return (nats_MV * counted(target_MV)).sum(-1)


def element_nats(logits_MVE: Tensor, target_MV: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return (nats_M, correct_M): :func:`target_nats`, and whether the likeliest element is the
    right one in all slots that count (None while gradients are kept: training does not ask)."""
    nats_M = target_nats(logits_MVE, target_MV)
    if torch.is_grad_enabled():
        return nats_M, None
    right_MV = (logits_MVE.argmax(-1) == target_MV) | ~counted(target_MV)
    return nats_M, right_MV.all(-1)


def label_loss(logits_SL: Tensor, truth_SL: Tensor, kind: str) -> Tensor:
    """For each segment the mean loss of its labels, (S,): of kind ``cross_entropy`` in nats, of
    ``squared_hinge`` (1 - margin)^2 where the margin is below 1."""
    if kind == "cross_entropy":
        return label_nats(logits_SL, truth_SL)
    return F.relu(1 - logits_SL.float() * (2 * truth_SL - 1)).square().mean(1)


def label_nats(logits_SL: Tensor, truth_SL: Tensor) -> Tensor:
    """For each segment the mean binary cross entropy of its labels, in nats: (S,)."""
    nats_SL = F.binary_cross_entropy_with_logits(logits_SL.float(), truth_SL, reduction="none")
    return nats_SL.mean(1)
