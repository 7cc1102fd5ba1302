"""The autoregressive head: the bytes of a material one after the other, so that the likelihood of a
whole material is exact, p(material | x) = prod_j p(b_j | x, b_<j).

Shape suffixes: see elemdist/rows.py; T here the slots in use of all materials, E values of an
element.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elemdist.attention import Segments
from elemdist.blocks import Block, layer_norm
from elemdist.model_config import ModelConfig
from elemdist.model_settings import ModelSettings
from elemdist.rows import PAD

HEAD_WIDTH = 32


class SlotDecoder(nn.Module):
    """Vectors and the bytes before to the logits of every element: ``(M, W) -> (M, V, E)``.

    The material's vector gives a vector for each slot, to which that of the byte before is added;
    a few causal blocks over the V slots and a product with the table of the bytes follow. The
    table is this head's own, `slot_width` wide: an element's share of the model's width would be
    too narrow for a decoder.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        settings = config.model
        self.slots, self.width = config.slots, settings.slot_width
        # Its bias is a learned vector for each slot, so the slots need no positions beside it.
        self.spread = nn.Linear(settings.width, self.slots * self.width)
        self.table = nn.Parameter(torch.empty(config.elements, self.width))
        nn.init.normal_(self.table, std=0.02)
        block = ModelSettings(
            width=self.width,
            heads=self.width // HEAD_WIDTH,
            feedforward=4 * self.width,
            norm="pre",
            dropout=0.0,
        )
        self.blocks = nn.ModuleList(Block(block, causal=True) for _ in range(settings.slot_layers))
        self.norm = layer_norm(self.width)
        self.bias_VE = nn.Parameter(torch.zeros(config.slots, config.elements))

    def forward(self, x_MW: Tensor, table: Tensor | None, target_MV: Tensor) -> Tensor:
        """The logits of `target_MV` (M, V) uint8, those of a slot given the target's bytes before
        it, zeros behind the end mark. The embedding's `table` is not looked at."""
        rows = len(x_MW)
        if not rows:  # every rank must run every block, or ZeRO-3 waits for ever
            x_MW, target_MV = F.pad(x_MW, (0, 0, 0, 1)), F.pad(target_MV, (0, 0, 0, 1))
        place_T, segments = used_slots(target_MV)
        # Slot 0 follows the end mark of the material before it, as it were.
        before_MV = F.pad(target_MV[:, :-1], (1, 0), value=PAD)
        x_TW = self.spread(x_MW).view(-1, self.width)[place_T]
        # Scaled up as in Vaswani et al. 2017 (arXiv 1706.03762), section 3.4: one table serves
        # here and in the product below, which needs small values.
        x_TW = x_TW + F.embedding(before_MV.flatten()[place_T].int(), self.table) * self.width**0.5
        for block in self.blocks:
            x_TW = block(x_TW, segments)
        logits_TE = self.norm(x_TW) @ self.table.T + self.bias_VE[place_T % self.slots]
        logits_ME = logits_TE.new_zeros(target_MV.numel(), logits_TE.shape[1])
        return logits_ME.index_copy(0, place_T, logits_TE).unflatten(0, (-1, self.slots))[:rows]


def used_slots(target_MV: Tensor) -> tuple[Tensor, Segments]:
    """The slots of (M, V) materials up to the end mark: their places (T,) int64 in the M * V, the
    shorter materials first, and each material's as a segment.

    English words leave six of ten slots of v = 12 unused: without those the head takes half the
    time, and a material attends in one call with all of its length.
    """
    used_MV = (target_MV == PAD).cumsum(1) <= 1
    length_M, order_M = used_MV.sum(1).sort(stable=True)
    place_MV = torch.arange(used_MV.numel(), device=used_MV.device).view_as(used_MV)
    ends_M = F.pad(length_M.cumsum(0), (1, 0)).int()
    return place_MV[order_M][used_MV[order_M]], Segments(ends_M, length_M.tolist())
