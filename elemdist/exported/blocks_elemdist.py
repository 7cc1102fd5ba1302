"""The parts of an elementwise transformer: bytes to vectors, and blocks. Needs only torch.

Shape suffixes: B sequences, N positions of the longest, V bytes of a position, C = W / V, W width,
H heads, D = W / H, F inner width, Q queries and K keys (N of each). Masks of attention take
B * N * N bytes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_elemdist import ElemdistConfig

ELEMENTS, PAD = 256, 255
NORM_EPS = 1e-12
FULL_ANSWER = 3.0  # what a unit of the mixing layer gave, at the start, to its own word


def layer_norm(width: int, biases: bool = True) -> nn.LayerNorm:
    """Layer norm with the epsilon of training."""
    return nn.LayerNorm(width, eps=NORM_EPS, bias=biases)


class SlotMixing(nn.Module):
    """A small residual layer on the concatenation, whose units answer to words, one each."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.into = nn.Parameter(torch.empty(inner, width))
        self.bias = nn.Parameter(torch.empty(inner))
        self.out = nn.Parameter(torch.empty(width, inner))

    def inner(self, x_W: Tensor) -> Tensor:
        """What the units answer, before their ReLU: (..., W) -> (..., K)."""
        return F.linear(F.layer_norm(x_W, x_W.shape[-1:]), self.into, self.bias)

    def forward(self, x_W: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        return x_W + F.linear(F.relu(self.inner(x_W)), self.out)


def lower(bytes_BNV: Tensor) -> Tensor:
    """A to Z as a to z, and words without the space behind them."""
    upper_BNV = (bytes_BNV >= ord("A")) & (bytes_BNV <= ord("Z"))
    bytes_BNV = torch.where(upper_BNV, bytes_BNV + 32, bytes_BNV)
    behind_BNV = F.pad(bytes_BNV[..., 1:], (0, 1), value=PAD)  # the byte behind each
    space_BNV = (bytes_BNV[..., 1:] == ord(" ")) & (behind_BNV[..., 1:] == PAD)
    return torch.where(F.pad(space_BNV, (1, 0)), PAD, bytes_BNV)


class ElementwiseEmbedding(nn.Module):
    """Bytes to vectors, ``(B, N, V) -> (B, N, W)``: those of a position's bytes side by side."""

    def __init__(self, config: ElemdistConfig) -> None:
        super().__init__()
        slots, width = config.slots, config.embedded
        shape = (ELEMENTS, width // slots)
        self.table = nn.Parameter(
            torch.empty(slots, *shape) if config.table_per_slot else torch.empty(shape)
        )
        self.uncased = config.uncased
        self.mixing = SlotMixing(width, config.mixing) if config.mixing else nn.Identity()

    def side_by_side(self, bytes_BNV: Tensor) -> Tensor:
        """The embeddings of the bytes, (B, N, V) -> (B, N, W)."""
        if self.uncased:
            bytes_BNV = lower(bytes_BNV)
        if self.table.ndim == 2:
            return F.embedding(bytes_BNV, self.table).flatten(-2)
        slot_V = torch.arange(len(self.table), device=bytes_BNV.device)
        return self.table[slot_V, bytes_BNV].flatten(-2)

    def answers(self, bytes_BNV: Tensor) -> Tensor:
        """How much each unit of the mixing layer answers to each position, (B, N, K)."""
        assert isinstance(self.mixing, SlotMixing)
        return F.relu(self.mixing.inner(self.side_by_side(bytes_BNV))) / FULL_ANSWER

    def forward(self, bytes_BNV: Tensor) -> Tensor:
        """(B, N, V) -> (B, N, W)."""
        return self.mixing(self.side_by_side(bytes_BNV))


def rotation(places: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, (N, 1, D / 2) fp32 each, of rotary positions."""
    # In fp64 up to the angle within one turn: fp32 loses its way after some 100,000 rows.
    place_D = torch.arange(0, head_width, 2, device=places.device, dtype=torch.float64)
    turns_ND = places.double().unsqueeze(1) * (base ** (-place_D / head_width) / math.tau)
    angle_ND = (turns_ND.frac() * math.tau).float()
    return angle_ND.cos().unsqueeze(1), angle_ND.sin().unsqueeze(1)


def rotate(x_BNHD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Turns queries or keys, (B, N, H, D), by their positions."""
    cos, sin = (part.to(x_BNHD.dtype) for part in turn)
    one, two = x_BNHD.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1)


class Block(nn.Module):
    """Attention and feed-forward, each with a residual: ``(B, N, W) -> (B, N, W)``."""

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        norm: str = "pre",
        activation: str = "gelu",
        biases: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.post_norm = heads, norm == "post"
        self.gated = activation == "geglu"
        self.tanh = "tanh" if activation == "gelu_tanh" else "none"
        self.qkv = nn.Linear(width, 3 * width, biases)
        self.out = nn.Linear(width, width, biases)
        self.attention_norm = layer_norm(width, biases)
        self.up = nn.Linear(width, (1 + self.gated) * feedforward, biases)
        self.down = nn.Linear(feedforward, width, biases)
        self.feedforward_norm = layer_norm(width, biases)
        self.drop = nn.Dropout(dropout)

    def attend(
        self, x_BNW: Tensor, allowed_BHQK: Tensor, turn: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """The attention's part of the residual sum."""
        q, k, v = self.qkv(x_BNW).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        q, k, v = (x_BNHD.transpose(1, 2) for x_BNHD in (q, k, v))
        x_BHND = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed_BHQK)
        return self.drop(self.out(x_BHND.transpose(1, 2).flatten(2)))

    def feed(self, x_BNW: Tensor) -> Tensor:
        """The feed-forward's part of the residual sum."""
        x_BNF = self.up(x_BNW)
        if self.gated:
            x_BNF, gate_BNF = x_BNF.chunk(2, dim=-1)
            x_BNF = F.gelu(x_BNF) * gate_BNF
        else:
            x_BNF = F.gelu(x_BNF, approximate=self.tanh)
        return self.drop(self.down(x_BNF))

    def forward(
        self, x_BNW: Tensor, allowed_BHQK: Tensor, turn: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """(B, N, W) -> (B, N, W)."""
        if self.post_norm:
            x_BNW = self.attention_norm(x_BNW + self.attend(x_BNW, allowed_BHQK, turn))
            return self.feedforward_norm(x_BNW + self.feed(x_BNW))
        x_BNW = x_BNW + self.attend(self.attention_norm(x_BNW), allowed_BHQK, turn)
        return x_BNW + self.feed(self.feedforward_norm(x_BNW))


def allowed(mask_BN: Tensor, window: int = 0, causal: bool = False, chunk: int = 0) -> Tensor:
    """Which keys a query may see, (B, 1, Q, K) bool: those of `mask_BN`, at most `window` places
    away, not behind it if `causal`, and of its own stretch of `chunk` positions (0: anywhere).
    Padding sees itself, so that no softmax is empty."""
    place = torch.arange(mask_BN.shape[1], device=mask_BN.device)
    distance_QK = place.unsqueeze(1) - place
    near_QK = distance_QK >= 0 if causal else torch.ones_like(distance_QK, dtype=torch.bool)
    if window:
        near_QK = near_QK & (distance_QK.abs() <= window)
    if chunk:
        near_QK = near_QK & (place.unsqueeze(1) // chunk == place // chunk)
    return ((near_QK & mask_BN.unsqueeze(1)) | (distance_QK == 0)).unsqueeze(1)
