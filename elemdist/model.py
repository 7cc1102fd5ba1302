"""The elementwise BERT: elementwise embedding, transformer blocks on unpadded rows, a head.

Nothing here works on padding: the rows of all samples of a batch lie back to back (T of them).
Shape suffixes: see elemdist/rows.py; S segments, D = W / H, E = 256 values of an element.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elemdist.attention import Segments, attention
from elemdist.config import TrainSettings
from elemdist.embedding import ElementHead, ElementwiseEmbedding, check_width
from elemdist.errors import UserError
from elemdist.rows import ELEMENTS, FIRST_SPECIAL, PAD
from elemdist.shards import ShardSet

NORM_EPS = 1e-12  # BERT's


@dataclass(frozen=True)
class ModelConfig:
    """All that fixes the shape of a model; lies beside its weights as ``config.json``."""

    n: int
    v: int
    width: int
    layers: int
    heads: int
    feedforward: int
    dropout: float
    norm: str
    objective: str
    pooling: str
    labels: list[str] | None

    def __post_init__(self) -> None:
        check_width(self.v, self.width)
        if self.width % self.heads:
            raise UserError(
                f"model.heads: {self.heads} heads do not divide the width {self.width};"
                f" the default, one per element ({self.v}), does"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def model_config(settings: TrainSettings, shards: ShardSet) -> ModelConfig:
    """The model's shape: v, n and the labels come from the shards. Raises UserError."""
    model, classify = settings.model, settings.objective == "classify"
    return ModelConfig(
        n=shards.n,
        v=shards.v,
        width=model.width,
        layers=model.layers,
        heads=model.heads or shards.v,
        feedforward=model.feedforward or 4 * model.width,
        dropout=model.dropout,
        norm=model.norm,
        objective=settings.objective,
        pooling=settings.classify.pooling if classify else "none",
        labels=shards.labels if classify else None,
    )


class Block(nn.Module):
    """One transformer block, (T, W) -> (T, W): attention and feed-forward, each with a residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.post_norm = config.heads, config.norm == "post"
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.up = nn.Linear(width, config.feedforward)
        self.down = nn.Linear(config.feedforward, width)
        self.feedforward_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.drop = nn.Dropout(config.dropout)

    def attend(self, x_TW: Tensor, segments: Segments) -> Tensor:
        q, k, v = self.qkv(x_TW).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return self.drop(self.out(attention(q, k, v, segments).flatten(-2)))

    def feed(self, x_TW: Tensor) -> Tensor:
        return self.drop(self.down(F.gelu(self.up(x_TW))))

    def forward(self, x_TW: Tensor, segments: Segments) -> Tensor:
        if self.post_norm:
            x_TW = self.attention_norm(x_TW + self.attend(x_TW, segments))
            return self.feedforward_norm(x_TW + self.feed(x_TW))
        x_TW = x_TW + self.attend(self.attention_norm(x_TW), segments)
        return x_TW + self.feed(self.feedforward_norm(x_TW))


class Encoder(nn.Module):
    """Rows to vectors: ``(T, V) uint8 -> (T, W)``, a row attending within its segment only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = ElementwiseEmbedding(config.v, config.width)
        self.positions = nn.Embedding(config.n, config.width)
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        pre = config.norm == "pre"
        self.final_norm = nn.LayerNorm(config.width, eps=NORM_EPS) if pre else nn.Identity()

    def forward(self, rows_TV: Tensor, position_T: Tensor, segments: Segments) -> Tensor:
        x_TW = self.drop(self.norm(self.embedding(rows_TV) + self.positions(position_T)))
        for block in self.blocks:
            x_TW = block(x_TW, segments)
        return self.final_norm(x_TW)


class Classifier(nn.Module):
    """A segment's rows to a logit per label: ``(T, W) -> (S, L)``, over BERT's pooler."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.dense = nn.Linear(config.width, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.labels = nn.Linear(config.width, len(config.labels or []))

    def forward(self, x_TW: Tensor, segments: Segments) -> Tensor:
        if self.pooling == "doc":
            x_SW = x_TW[segments.cu_lengths[:-1]]
        else:
            x_SW = torch.segment_reduce(
                x_TW.float(), self.pooling, offsets=segments.cu_lengths.long()
            ).to(x_TW.dtype)
        return self.labels(self.drop(torch.tanh(self.dense(x_SW))))


class Model(nn.Module):
    """Encoder and head of one objective.

    ``forward`` gives logits: (M, V, 256) of the rows `select_M` for ``mlm``, (S, L) for
    ``classify``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head: nn.Module = (
            ElementHead(config.v, config.width, NORM_EPS)
            if config.objective == "mlm"
            else Classifier(config)
        )
        self.apply(initialise)

    @torch.no_grad()
    def expect_labels(self, share_L: Tensor) -> None:
        """Starts the classifier at the labels' shares of the documents instead of at one half,
        which takes thousands of steps to unlearn where labels are rare."""
        assert isinstance(self.head, Classifier)
        self.head.labels.bias.copy_(share_L.clamp(1e-4, 1 - 1e-4).logit())

    @torch.no_grad()
    def expect_elements(self, rows_NV: Tensor) -> None:
        """Starts the predictions at how often each byte, or a material's end, stands in each slot
        of `rows_NV` instead of at 1 in 256, which takes hundreds of steps to learn."""
        assert isinstance(self.head, ElementHead)
        rows_NV = rows_NV[rows_NV[:, 0] < FIRST_SPECIAL]
        counts_NV = (rows_NV == PAD).cumsum(1) <= 1  # behind the end nothing is predicted
        for slot, bias_E in enumerate(self.head.bias_VE):
            seen_E = rows_NV[counts_NV[:, slot], slot].int().bincount(minlength=ELEMENTS) + 1
            bias_E.copy_((seen_E / seen_E.sum()).log())

    def forward(
        self,
        rows_TV: Tensor,
        position_T: Tensor,
        segments: Segments,
        select_M: Tensor | None = None,
    ) -> Tensor:
        x_TW = self.encoder(rows_TV, position_T, segments)
        if select_M is None:
            return self.head(x_TW, segments)
        # Only the rows that carry loss go through the head.
        return self.head(x_TW[select_M], self.encoder.embedding.table)


def initialise(module: nn.Module) -> None:
    """N(0, 0.02) for tables, N(0, 2 / (5 W_in)) for matrices, zero for biases. The matrices'
    variance is BERT's at its width of 768 and keeps the scale of activations at other widths
    (Nguyen & Salazar 2019, arXiv 1910.05895)."""
    if isinstance(module, nn.Embedding):  # the positions
        # Ten times smaller than the elements: two short materials differ in one or two slots, a
        # small part of their vectors, which positions of the same size would drown.
        nn.init.normal_(module.weight, std=0.002)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=(2 / (5 * module.in_features)) ** 0.5)
        nn.init.zeros_(module.bias)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and the element table (which every material uses) do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain_one = parameter.ndim < 2 or name.endswith(("embedding.table", "bias_VE"))
        (plain if plain_one else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
