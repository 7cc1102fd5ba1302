"""What stands on top of the backbone: predictions of elements, or of labels.

Shape suffixes: see elemdist/rows.py; S segments, E values of an element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elemdist.attention import Segments
from elemdist.blocks import layer_norm
from elemdist.model_config import ModelConfig
from elemdist.objectives import element_nats, target_nats
from elemdist.pooling import pooled
from elemdist.rows import FIRST_SPECIAL, PAD
from elemdist.tiles import tiled, tiles
from elemdist.wide import Wide

Scores = tuple[Tensor, Tensor | None]


class ElementHead(nn.Module):
    """Vectors to the logits of every element of a material: ``(M, W) -> (M, V, E)``.

    BERT's prediction head (dense, GELU, layer norm), then slot by slot a product with the table of
    the elements, the embedding's if tied, and a bias per slot and value.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        model, self.slots = config.model, config.slots
        self.dense = nn.Linear(model.width, config.embedding_width)
        self.norm = layer_norm(config.embedding_width)
        self.tanh = "tanh" if model.activation == "gelu_tanh" else "none"
        self.bias_VE = nn.Parameter(torch.zeros(config.slots, config.elements))
        self.table: Tensor | None = None
        if not config.tied:
            self.table = nn.Parameter(
                torch.empty(config.elements, config.embedding_width // config.slots)
            )
            nn.init.normal_(self.table, std=0.02)

    def forward(
        self, x_MW: Tensor, table: Tensor | None, target_MV: Tensor | None = None
    ) -> Tensor:
        """The logits. `table` (E, C) or, one for each slot, (V, E, C): the embedding's, None if
        untied; `target_MV` is not looked at: every element is predicted by itself."""
        table = self.table if table is None else table
        assert table is not None
        x_MW = self.norm(F.gelu(self.dense(x_MW), approximate=self.tanh))
        x_MVC = x_MW.unflatten(-1, (self.slots, -1))
        if table.ndim == 3:
            return torch.einsum("mvc,vec->mve", x_MVC, table) + self.bias_VE
        return x_MVC @ table.T + self.bias_VE


def score(
    head: nn.Module,
    x_MW: Tensor,
    table: Tensor | None,
    target_MV: Tensor,
    tile_rows: int = 0,
) -> Scores:
    """Return (nats_M, correct_M) of predictions, see :func:`elemdist.objectives.element_nats`. With
    `tile_rows` the logits of so many rows at a time exist, and are computed again for the
    gradient."""
    logits = head.logits if isinstance(head, Scored) else head

    def nats_of(x_MW: Tensor, target_MV: Tensor, table: Tensor | None = None) -> Tensor:
        return target_nats(logits(x_MW, table, target_MV), target_MV)

    def scores_of(x_MW: Tensor, target_MV: Tensor) -> Scores:
        return element_nats(logits(x_MW, table, target_MV), target_MV)

    if not tile_rows or len(x_MW) <= tile_rows:
        return scores_of(x_MW, target_MV)
    if torch.is_grad_enabled():
        shared = [] if table is None else [table]
        return tiled(nats_of, tile_rows, [x_MW, target_MV], [head], shared), None
    nats, correct = zip(
        *(scores_of(*tile) for tile in tiles([x_MW, target_MV], tile_rows)), strict=True
    )
    return torch.cat(nats), torch.cat(correct)


class Scored(nn.Module):
    """Mixed into a head of predictions, before its class: one call scores all rows, tile by tile.

    Under ZeRO 3 every call of a module fetches its parameters from all ranks, which have different
    numbers of rows and so of tiles. As a leaf, see deepspeed.utils.set_z3_leaf_modules, a head
    fetches all that it holds, once.
    """

    def logits(self, *inputs: Any) -> Tensor:
        """Return the head's logits, (M, V, E), without a call of a module."""
        return cast(Tensor, super().forward(*inputs))

    def forward(
        self,
        x_MW: Tensor,
        table: Tensor | None,
        target_MV: Tensor | None = None,
        tile_rows: int | None = None,
    ) -> Any:
        """Return the head's logits, (M, V, E); with `tile_rows`, 0 for all, what :func:`score`
        returns for `target_MV`, (nats_M, correct_M)."""
        if tile_rows is None or target_MV is None:
            return self.logits(x_MW, table, target_MV)
        return score(self, x_MW, table, target_MV, tile_rows)


@torch.no_grad()
def generate(
    head: nn.Module, x_MW: Tensor, table: Tensor | None, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    """New materials, (M, V) uint8, slot by slot: `choose` gets the logits (M, E) of a slot and
    gives the bytes (M,) for it. Behind a special byte, as the end mark is one, follows PAD."""
    slots = len(cast(Tensor, head.bias_VE))
    material_MV = torch.full((len(x_MW), slots), PAD, dtype=torch.uint8, device=x_MW.device)
    open_M = torch.ones(len(x_MW), dtype=torch.bool, device=x_MW.device)
    for slot in range(slots):
        logits_ME = head(x_MW, table, material_MV)[:, slot]
        byte_M = choose(logits_ME).to(material_MV)
        material_MV[:, slot] = torch.where(open_M, byte_M, PAD)
        open_M &= byte_M < FIRST_SPECIAL
        if not open_M.any():
            break
    return material_MV


class Classifier(nn.Module):
    """A segment's rows to a logit per label: ``(T, W) -> (S, L)``, over BERT's pooler. It takes
    the rows of :func:`elemdist.pooling.pooled_rows`, where those are not all.

    With a wide part, see :mod:`elemdist.wide`, that one's logits come on top.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, labels = config.model.width, len(config.labels or [])
        self.pooling = config.pooling
        self.dense = nn.Linear(width, width)
        self.drop = nn.Dropout(config.model.dropout)
        self.labels = nn.Linear(width, labels)
        self.wide = Wide(config.units, labels, config.wide_lead) if config.wide else None

    def forward(self, x_TW: Tensor, segments: Segments, *materials: Any) -> Tensor:
        """The logits; `materials`: for the wide part, see :meth:`elemdist.wide.Counts.logs`."""
        x_SW = pooled(x_TW, segments, self.pooling)
        logits_SL = self.labels(self.drop(torch.tanh(self.dense(x_SW))))
        if self.wide is not None:
            logits_SL = logits_SL + self.wide(segments, *materials)
        return logits_SL
