"""The settings of a model: what `--model.*` says, and the choices that each name stands for.

Recipes set several at once: ``configs/bert-modern.yaml``, ``albert.yaml``, ``canine.yaml``,
``decoder.yaml``, and sizes in ``tiny.yaml``, ``small.yaml``, ``base.yaml``, ``large.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from elemdist.json_types import Bounds, CountOrNone, ShareBelowOne

Backbone = Literal["bert", "albert", "canine", "decoder"]
Width = Annotated[int, Bounds(1, 1 << 20)]
WidthOrNone = Annotated[int, Bounds(0, 1 << 20)]
Inner = Annotated[int, Bounds(0, 1 << 24)]
Layers = Annotated[int, Bounds(1, 10_000)]
Input = Literal["elementwise", "subword", "byte", "canine"]
Objective = Literal["mlm", "clm", "classify"]


@dataclass
class AblationSettings:
    """What the elementwise input may be changed to, to see what each part of it is worth"""

    tables: Literal["shared", "per_slot"] = "shared"
    """One element table for all slots, or one for each of the v slots."""
    slots: Literal["ordered", "shuffled"] = "ordered"
    """shuffled: every material's bytes stand in an order of its own (the same each time it occurs),
    so that a byte's slot, and with it its head, says nothing."""
    mixing: Inner = 0
    """Inner width in floats of a small residual layer that mixes the slots right after the
    concatenation; 0: none. Its units start at the most frequent materials of the training data,
    one each, so that from the first step on the model tells words apart, also misspelt ones."""
    first_projection: Literal["dense", "block_diagonal"] = "dense"
    """block_diagonal: in the first block, queries, keys and values of a slot's part of the vector
    come out of that part only, so with heads = v a head sees one slot."""


@dataclass
class CanineSettings:
    """Backbone and input canine"""

    rate: Width = 4
    """Positions that one position of the deep stack stands for."""
    local: Width = 128
    """Positions of a stretch within which the first block attends."""
    kernel: Width = 4
    """Positions that the up-sampling convolution sees at once."""
    hashes: Annotated[int, Bounds(1, 256)] = 8
    """Hash functions of the input canine; each gives a part of a character's vector."""
    buckets: Annotated[int, Bounds(1, 1 << 28)] = 16384
    """Rows of the table of each hash function."""


@dataclass
class ModelSettings:
    """The transformer"""

    backbone: Backbone = "bert"
    """bert: an encoder. albert: an encoder whose layers share their weights. canine: local
    attention, down-sampling, a deep stack of `layers` blocks, up-sampling. decoder: a row sees
    only those before it."""
    input: Input = "elementwise"
    """elementwise: a position a material, the embeddings of its bytes side by side. byte: a
    position a byte, as ByT5. canine: a position a character, by hashes. subword: a position a
    token of `tokenizer`, with a table as large as its vocabulary; needs shards made by
    `elemdist shard --segmenter subword` with that tokenizer."""
    tokenizer: str | None = None
    """The tokenizer.json of input subword."""
    uncased: bool = False
    """Reads A to Z as a to z, and a word without the space behind it, so that a word is the same
    wherever it stands. For inputs elementwise and byte; what is predicted stays as it is."""
    layers: Layers = 4
    """Transformer blocks."""
    width: Width = 192
    """Width w of the model in floats; a multiple of v, each element has w / v of them."""
    heads: Annotated[int, Bounds(0, 1 << 16)] = 0
    """Attention heads; 0: as many as a material has elements, v."""
    feedforward: Inner = 0
    """Inner width of the feed-forward layers in floats; 0: four times the width, with geglu 8/3
    of it, which are as many parameters."""
    embedding_width: WidthOrNone = 0
    """Width of the embeddings in floats, brought to the model's by a matrix (ALBERT's factorised
    embedding); 0: the model's width, no matrix."""
    dropout: ShareBelowOne = 0.1
    """Share of activations dropped in training, after the embedding and in every block."""
    norm: Literal["post", "pre"] = "post"
    """Layer norm after each residual sum, as in the original BERT, or before each sub-layer."""
    positions: Literal["learned", "rotary"] = "learned"
    """A learned vector for every position, or queries and keys turned by their position."""
    rotary_base: Annotated[float, Bounds(1, 1e15, above=True)] = 10000.0
    """The longest wave of rotary positions, in positions / 2 pi."""
    activation: Literal["gelu", "gelu_tanh", "geglu"] = "gelu"
    """Of the feed-forward layers: GELU, its approximation by tanh (ALBERT's), or GELU times a
    linear gate."""
    biases: bool = True
    """Biases in matrices and layer norms (those of the predictions stay)."""
    head: Literal["independent", "autoregressive"] = "independent"
    """How a material's bytes are predicted: each by itself, or each after those before it, by a
    small decoder over the slots, which makes the likelihood of the material exact."""
    slot_width: Width = 128
    """Width of that small decoder in floats; a multiple of 32."""
    slot_layers: Layers = 1
    """Blocks of that small decoder."""
    tied: bool = True
    """The prediction uses the input's table. Input canine has none, and gets one of its own, as
    the autoregressive head always does."""
    window: CountOrNone = 0
    """A row attends to so many rows on each side (a decoder: before it) only; 0: to all of its
    document."""
    global_every: CountOrNone = 0
    """With a window: the first block and every so many'th after it attends to all; 0: none."""
    ablation: AblationSettings = field(default_factory=AblationSettings)
    canine: CanineSettings = field(default_factory=CanineSettings)
