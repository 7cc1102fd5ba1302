"""A transformer block on unpadded rows, as the original BERT has it and as is usual now.

Shape suffixes: see elemdist/rows.py; D = W / H, F inner width of the feed-forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elemdist.attention import Segments, attention
from elemdist.model_settings import ModelSettings
from elemdist.tiles import tiled

NORM_EPS = 1e-12  # BERT's

Rotation = tuple[Tensor, Tensor]
Result = TypeVar("Result")


def layer_norm(width: int, biases: bool = True) -> nn.LayerNorm:
    """Layer norm with the epsilon that all of them have."""
    return nn.LayerNorm(width, eps=NORM_EPS, bias=biases)


def rotation(position_T: Tensor, head_width: int, base: float) -> Rotation:
    """Return cosine and sine, (T, 1, D / 2) fp32 each, of the angles of rotary positions
    (Su et al. 2021, arXiv 2104.09864)."""
    # In fp64 up to the angle within one turn: fp32 is 0.1 rad off after 2.8 million rows.
    place = torch.arange(0, head_width, 2, device=position_T.device, dtype=torch.float64)
    turns_TD = position_T.double().unsqueeze(1) * (base ** (-place / head_width) / math.tau)
    angle_TD = (turns_TD.frac_() * math.tau).float()
    return angle_TD.cos().unsqueeze(1), angle_TD.sin().unsqueeze(1)


def rotate(x_THD: Tensor, turn: Rotation) -> Tensor:
    """Turns each pair (first half, second half) of a head's vector by its position's angles."""
    cos, sin = (part.to(x_THD.dtype) for part in turn)
    one, two = x_THD.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1)


class SlotProjection(nn.Module):
    """Queries, keys and values of each slot's part of the vector out of that part only:
    ``(T, W) -> (T, 3 W)``, V matrices of C x C each (an ablation: the first block's)."""

    def __init__(self, width: int, slots: int, biases: bool) -> None:
        super().__init__()
        part = width // slots
        self.slots = slots
        self.weight = nn.Parameter(torch.empty(slots, part, 3 * part))
        nn.init.normal_(self.weight, std=(2 / (5 * part)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(3 * width)) if biases else None

    def forward(self, x_TW: Tensor) -> Tensor:
        """(T, W) -> (T, 3 W): queries, keys, values."""
        x_VTC = x_TW.unflatten(-1, (self.slots, -1)).transpose(0, 1)
        x_TVKC = torch.bmm(x_VTC, self.weight).transpose(0, 1).unflatten(-1, (3, -1))
        x_TW3 = x_TVKC.transpose(1, 2).flatten(1)
        return x_TW3 if self.bias is None else x_TW3 + self.bias


class Block(nn.Module):
    """One transformer block, (T, W) -> (T, W): attention and feed-forward, each with a residual.

    Args:
        causal, window: see :func:`elemdist.attention.attention`.
        slots: V for a first projection that keeps the slots apart; 0: a dense one.
        tile_rows: the feed-forward takes so many rows at a time, and computes them again for the
            gradient, so its inner width is never there for all rows; 0: all rows at once.
    """

    def __init__(
        self,
        model: ModelSettings,
        causal: bool = False,
        window: int = 0,
        slots: int = 0,
        tile_rows: int = 0,
    ) -> None:
        super().__init__()
        width, biases = model.width, model.biases
        self.heads, self.post_norm = model.heads, model.norm == "post"
        self.causal, self.window, self.tile_rows = causal, window, tile_rows
        self.qkv = (
            SlotProjection(width, slots, biases) if slots else nn.Linear(width, 3 * width, biases)
        )
        self.out = nn.Linear(width, width, biases)
        self.attention_norm = layer_norm(width, biases)
        self.gated = model.activation == "geglu"
        self.tanh = "tanh" if model.activation == "gelu_tanh" else "none"
        self.up = nn.Linear(width, (1 + self.gated) * model.feedforward, biases)
        self.down = nn.Linear(model.feedforward, width, biases)
        self.feedforward_norm = layer_norm(width, biases)
        self.drop = nn.Dropout(model.dropout)

    def project(self, x_TW: Tensor, turn: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (T, H, D) each, turned by their positions."""
        q, k, v = self.qkv(x_TW).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        return q, k, v

    def attend(
        self, x_TW: Tensor, segments: Segments, turn: Rotation | None, select_M: Tensor | None
    ) -> Tensor:
        """The attention's part of the residual sum, (T, W) -> (T, W), or (M, W)."""
        q, k, v = self.project(x_TW, turn)
        x_THD = attention(q, k, v, segments, causal=self.causal, window=self.window)
        return self.drop(self.out(selected(x_THD, select_M).flatten(-2)))

    def feed(self, x_TW: Tensor) -> Tensor:
        """The feed-forward's part of the residual sum, (T, W) -> (T, W)."""
        # Functions, no modules: ZeRO 3 counts the calls of modules, which have to be as many on
        # every rank, and tiles are not.
        x_TF = F.linear(x_TW, self.up.weight, self.up.bias)
        if self.gated:
            x_TF, gate_TF = x_TF.chunk(2, dim=-1)
            x_TF = F.gelu(x_TF) * gate_TF
        else:
            x_TF = F.gelu(x_TF, approximate=self.tanh)
        x_TW = F.linear(x_TF, self.down.weight, self.down.bias)
        return F.dropout(x_TW, self.drop.p, self.training)

    def tiled_feed(self, x_TW: Tensor) -> Tensor:
        """Return feed(x_TW), computed for `tile_rows` at a time where that is set."""
        if not self.tile_rows or len(x_TW) <= self.tile_rows:
            return self.feed(x_TW)
        return tiled(self.feed, self.tile_rows, [x_TW], [self.up, self.down])

    def finish(self, x_TW: Tensor, attended_TW: Tensor) -> Tensor:
        """All that comes behind the attention's output."""
        if self.post_norm:
            x_TW = self.attention_norm(x_TW + attended_TW)
            return self.feedforward_norm(x_TW + self.tiled_feed(x_TW))
        x_TW = x_TW + attended_TW
        return x_TW + self.tiled_feed(self.feedforward_norm(x_TW))

    def forward(
        self,
        x_TW: Tensor,
        segments: Segments,
        turn: Rotation | None = None,
        select_M: Tensor | None = None,
    ) -> Tensor:
        """(T, W) -> (T, W); `turn`: see :func:`rotation`.

        With `select_M` (M, W), of these rows only: they attend to all others, and nothing that
        comes behind the attention is computed for those.
        """
        seen_TW = x_TW if self.post_norm else self.attention_norm(x_TW)
        attended = self.attend(seen_TW, segments, turn, select_M)
        return self.finish(selected(x_TW, select_M), attended)


def selected(x: Tensor, select_M: Tensor | None) -> Tensor:
    """The rows `select_M` of x; None: all of them."""
    return x if select_M is None else x[select_M]


def recomputed(function: Callable[..., Result], *inputs: object) -> Result:
    """function(*inputs), whose inner values are not kept but computed again for the gradient."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return cast(Result, checkpoint(function, *inputs, use_reentrant=False))
