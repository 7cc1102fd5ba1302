"""The elementwise embedding: a material is the concatenation of the embeddings of its bytes.

Source: Kim & Kim 2023, arXiv 2302.13475. Shape suffixes: see elemdist/rows.py; C = W / V.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elemdist.errors import UserError
from elemdist.rows import ELEMENTS, PAD


def check_width(v: int, width: int) -> None:
    """Raises UserError where v elements cannot share a width equally."""
    if width % v:
        below = width // v * v
        raise UserError(
            f"model.width: {width} is not a multiple of the shards' v={v};"
            f" the nearest are {below or v} and {below + v}"
        )


class ElementwiseEmbedding(nn.Module):
    """Rows of bytes to vectors: ``(..., V) uint8 -> (..., W)``, by a table of 256 x (W / V).

    Raises UserError where `width` is not a multiple of `v`.
    """

    def __init__(self, v: int, width: int) -> None:
        super().__init__()
        check_width(v, width)
        self.v = v
        self.table = nn.Parameter(torch.empty(ELEMENTS, width // v))
        nn.init.normal_(self.table, std=0.02)
        # Most slots of most materials are PAD: its vector would make them all alike at first.
        with torch.no_grad():
            self.table[PAD] = 0

    def forward(self, rows_V: Tensor) -> Tensor:
        return F.embedding(rows_V.int(), self.table).flatten(-2)


class ElementHead(nn.Module):
    """Vectors to the logits of every element of a material: ``(M, W) -> (M, V, 256)``.

    BERT's prediction head (dense, GELU, layer norm), then slot by slot a product with the element
    table, to which it is tied, and a bias per slot and value.
    """

    def __init__(self, v: int, width: int, eps: float) -> None:
        super().__init__()
        self.v = v
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias_VE = nn.Parameter(torch.zeros(v, ELEMENTS))

    def forward(self, x_MW: Tensor, table_EC: Tensor) -> Tensor:
        x_MW = self.norm(F.gelu(self.dense(x_MW)))
        return x_MW.unflatten(-1, (self.v, -1)) @ table_EC.T + self.bias_VE
