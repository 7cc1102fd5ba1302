"""What stands on an elementwise transformer: predictions of bytes, or of labels. Needs only torch.

Shape suffixes: see blocks_elemdist.py; M materials of a batch, E values of a byte (256), L labels,
K units.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks_elemdist import ELEMENTS, Block, allowed, layer_norm
from .configuration_elemdist import ElemdistConfig

PAD = 255
LEAD_ROWS = 20.0  # behind so many, what the start of a text counts more is down to a third
IGNORED = -100  # as in all of transformers: labels that are not predicted


class ElementHead(nn.Module):
    """Vectors to logits of the bytes, each by itself: ``(B, N, W) -> (B, N, V, E)``."""

    def __init__(self, config: ElemdistConfig) -> None:
        super().__init__()
        self.slots, width = config.slots, config.embedded
        self.tanh = "tanh" if config.activation == "gelu_tanh" else "none"
        self.dense = nn.Linear(config.width, width)
        self.norm = layer_norm(width)
        self.bias_VE = nn.Parameter(torch.empty(self.slots, ELEMENTS))
        shape = (ELEMENTS, width // self.slots)
        self.table = None if config.tied else nn.Parameter(torch.empty(shape))

    def forward(self, x_BNW: Tensor, table: Tensor | None, target_BNV: Tensor | None) -> Tensor:
        """(B, N, W) -> logits (B, N, V, E); the targets are not looked at."""
        table = self.table if table is None else table
        assert table is not None
        x_BNW = self.norm(F.gelu(self.dense(x_BNW), approximate=self.tanh))
        x_BNVC = x_BNW.unflatten(-1, (self.slots, -1))
        if table.ndim == 3:
            return torch.einsum("bnvc,vec->bnve", x_BNVC, table) + self.bias_VE
        return x_BNVC @ table.T + self.bias_VE


class SlotDecoder(nn.Module):
    """Vectors to logits of the bytes, each given those before it: ``(B, N, W) -> (B, N, V, E)``.
    Those before it are the likeliest ones, or the target's, where there is one."""

    def __init__(self, config: ElemdistConfig) -> None:
        super().__init__()
        self.slots, self.width = config.slots, config.slot_width
        self.spread = nn.Linear(config.width, self.slots * self.width)
        self.table = nn.Parameter(torch.empty(ELEMENTS, self.width))
        self.blocks = nn.ModuleList(
            Block(self.width, self.width // 32, 4 * self.width) for _ in range(config.slot_layers)
        )
        self.norm = layer_norm(self.width)
        self.bias_VE = nn.Parameter(torch.empty(self.slots, ELEMENTS))

    def given(self, x_MVW: Tensor, target_MV: Tensor) -> Tensor:
        """The logits, (M, V, E), of all slots; a slot sees the bytes before it."""
        before_MV = F.pad(target_MV[:, :-1], (1, 0), value=PAD)
        x_MVW = x_MVW + F.embedding(before_MV, self.table) * self.width**0.5
        causal = allowed(torch.ones_like(target_MV, dtype=torch.bool), causal=True)
        for block in self.blocks:
            x_MVW = block(x_MVW, causal)
        return self.norm(x_MVW) @ self.table.T + self.bias_VE

    def forward(self, x_BNW: Tensor, table: Tensor | None, target_BNV: Tensor | None) -> Tensor:
        """(B, N, W) -> logits (B, N, V, E), given the targets or its own choices."""
        x_MVW = self.spread(x_BNW).flatten(0, 1).unflatten(-1, (self.slots, -1))
        if target_BNV is None:
            target_MV = torch.full(x_MVW.shape[:2], PAD, device=x_BNW.device)
            for slot in range(self.slots):
                target_MV[:, slot] = self.given(x_MVW, target_MV)[:, slot].argmax(-1)
        else:
            target_MV = target_BNV.flatten(0, 1)
        return self.given(x_MVW, target_MV).unflatten(0, x_BNW.shape[:2])


class Counts(nn.Module):
    """How often the word of each of K units stands in a sequence, (B, N, K) -> (B, K), at its start
    by up to `lead` more: the logarithm, times a weight of each, all scaled to length 1."""

    def __init__(self, units: int, lead: float) -> None:
        super().__init__()
        self.lead = lead
        self.weight = nn.Parameter(torch.empty(units))

    def forward(self, answer_BNK: Tensor, mask_BN: Tensor) -> Tensor:
        """What a document's materials answer, (B, N, K) -> (B, K)."""
        place_N = torch.arange(mask_BN.shape[1], device=mask_BN.device)
        weight_N = 1 + self.lead * (place_N / -LEAD_ROWS).exp()
        count_BK = (answer_BNK.float() * (mask_BN * weight_N).unsqueeze(-1)).sum(1)
        return F.normalize(count_BK.log1p() * self.weight.float(), dim=-1)


class Wide(nn.Module):
    """Those counts to a logit per label: ``(B, N, K) -> (B, L)``."""

    def __init__(self, units: int, labels: int, lead: float) -> None:
        super().__init__()
        self.counts = Counts(units, lead)
        self.weight = nn.Parameter(torch.empty(labels, units))

    def forward(self, answer_BNK: Tensor, mask_BN: Tensor) -> Tensor:
        """(B, N, K) -> logits (B, L)."""
        return F.linear(self.counts(answer_BNK, mask_BN).to(self.weight.dtype), self.weight)


class Classifier(nn.Module):
    """A vector of each sequence to a logit per label: ``(B, N, W) -> (B, L)``; with a wide part,
    that one's logits on top."""

    def __init__(self, config: ElemdistConfig) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.dense = nn.Linear(config.width, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.labels = nn.Linear(config.width, config.num_labels)
        wide = (config.mixing, config.num_labels, config.wide_lead)
        self.wide = Wide(*wide) if config.wide else None

    def pooled(self, x_BNW: Tensor, mask_BN: Tensor) -> Tensor:
        """(B, N, W) -> (B, W)."""
        if self.pooling == "doc":
            return x_BNW[:, 0]
        mask_BN1 = mask_BN.bool().unsqueeze(-1)
        if self.pooling == "max":
            return x_BNW.masked_fill(~mask_BN1, -torch.inf).amax(1)
        length_B1 = mask_BN1.sum(1)
        if self.pooling == "last":
            last_B1W = (length_B1 - 1).unsqueeze(-1).expand(-1, -1, x_BNW.shape[-1])
            return x_BNW.gather(1, last_B1W).squeeze(1)
        return (x_BNW * mask_BN1).sum(1) / length_B1

    def forward(self, x_BNW: Tensor, mask_BN: Tensor, answer_BNK: Tensor | None = None) -> Tensor:
        """(B, N, W) -> logits (B, L)."""
        x_BW = torch.tanh(self.dense(self.pooled(x_BNW, mask_BN)))
        logits_BL = self.labels(self.drop(x_BW))
        return logits_BL if self.wide is None else logits_BL + self.wide(answer_BNK, mask_BN)


def utf8_labels(code_BN: Tensor) -> Tensor:
    """Return the bytes of characters, (B, N) code points -> (B, N, 4), PAD in slots not used.

    `IGNORED` stays so in all four slots, and so does what stands for no text.
    """
    special_BN = (code_BN >= 0xE000) & (code_BN <= 0xE005)
    code_BN = torch.where((code_BN <= 0) | special_BN, IGNORED, code_BN)
    last = 0x80 | code_BN & 0x3F
    middle, third = 0x80 | code_BN >> 6 & 0x3F, 0x80 | code_BN >> 12 & 0x3F
    pad = torch.full_like(code_BN, PAD)
    forms = [
        (0x10FFFF, (0xF0 | code_BN >> 18, third, middle, last)),
        (0xFFFF, (0xE0 | code_BN >> 12, middle, last, pad)),
        (0x7FF, (0xC0 | code_BN >> 6, last, pad, pad)),
        (0x7F, (code_BN, pad, pad, pad)),
        (IGNORED, (code_BN, code_BN, code_BN, code_BN)),
    ]
    found = torch.stack(forms[0][1], -1)
    for most, slots in forms[1:]:
        found = torch.where((code_BN <= most).unsqueeze(-1), torch.stack(slots, -1), found)
    return found


def element_labels(labels: Tensor, config: ElemdistConfig, mask_BN: Tensor) -> Tensor:
    """Return what is to be predicted, (B, N, V): a material whole, or `IGNORED` in all of its slots
    where it is not predicted or is padding.

    Slots that a collator has set to `IGNORED` behind the bytes of a material are its end.

    Raises:
        ValueError: only a part of a material is labelled, from which no material can be learnt.
    """
    if labels.ndim == 2:
        labels = utf8_labels(labels) if config.input == "canine" else labels.unsqueeze(-1)
    known_BNV = labels != IGNORED
    if (known_BNV[..., 1:] & ~known_BNV[..., :-1]).any():
        raise ValueError(
            "labels: only some bytes of a material are labelled; a material is hidden and predicted"
            " whole: take Trainer(data_collator=tokenizer.collator())"
        )
    labels = labels.where(known_BNV | ~known_BNV[..., :1], PAD)
    return labels.where(mask_BN[..., None], IGNORED)


def element_loss(logits_BNVE: Tensor, labels_BNV: Tensor) -> Tensor:
    """Return the mean nats of a material: those of its bytes and of its end mark, the first PAD, if
    it has one. Materials whose first label is `IGNORED` do not count."""
    counted_BNV = (labels_BNV == PAD).cumsum(-1) <= 1
    counted_BNV &= (labels_BNV[..., :1] != IGNORED).expand_as(labels_BNV)
    nats = F.cross_entropy(
        logits_BNVE[counted_BNV].float(), labels_BNV[counted_BNV], reduction="sum"
    )
    return nats / (labels_BNV[..., 0] != IGNORED).sum().clamp(min=1)


def share_of_step(loss: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
    """Return what a micro-batch adds to the mean loss of an optimizer step, so that the gradients
    of its micro-batches sum up to that of one big batch.

    Args:
        loss: the mean of this micro-batch. labels: as they came.
        items: `num_items_in_batch` of transformers' Trainer: labels of the step that are not
            `IGNORED`, of all its micro-batches; None: this batch is the step.
    """
    if items is None:
        return loss
    total = torch.as_tensor(items, device=loss.device).flatten()[0].clamp(min=1)
    return loss * (labels != IGNORED).sum() / total
