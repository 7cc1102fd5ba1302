"""The configuration of an elementwise transformer, for the transformers library."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PretrainedConfig


class ElemdistConfig(PretrainedConfig):
    """The shape of a model; each value is what elemdist's setting of that name was, or, where that
    was 0, what it stood for. `elemdist train --help` describes them.

    Args:
        input: elementwise, a position a material of `v` bytes; byte; canine, a position a
            character.
        n: materials of a sequence at most, its first row included.
        max_positions: positions of a sequence at most; 0: as many as one likes (rotary).
        pooling: how a classifier makes one vector of a sequence: doc, last, mean or max.
        wide: whether it also counts the words that the units of the mixing layer answer to.
    """

    model_type = "elemdist"
    attribute_map: ClassVar = {  # the names that tools of transformers ask for
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "max_position_embeddings": "max_positions",
    }

    def __init__(
        self,
        input: str = "elementwise",
        uncased: bool = False,
        backbone: str = "bert",
        n: int = 256,
        v: int = 12,
        layers: int = 4,
        width: int = 192,
        heads: int = 12,
        feedforward: int = 768,
        embedding_width: int = 0,
        mixing: int = 0,
        table_per_slot: bool = False,
        dropout: float = 0.1,
        norm: str = "post",
        positions: str = "learned",
        max_positions: int = 256,
        rotary_base: float = 10000.0,
        activation: str = "gelu",
        biases: bool = True,
        head: str = "independent",
        slot_width: int = 128,
        slot_layers: int = 1,
        tied: bool = True,
        window: int = 0,
        global_every: int = 0,
        pooling: str = "doc",
        wide: bool = False,
        wide_lead: float = 0.0,
        canine: dict[str, int] | None = None,
        pad_token_id: int = 255,
        **kwargs: Any,
    ) -> None:
        self.input, self.uncased, self.backbone = input, uncased, backbone
        self.n, self.v = n, v
        self.layers, self.width, self.heads, self.feedforward = layers, width, heads, feedforward
        self.embedding_width = embedding_width
        self.mixing, self.table_per_slot = mixing, table_per_slot
        self.dropout, self.norm, self.activation, self.biases = dropout, norm, activation, biases
        self.positions, self.max_positions = positions, max_positions
        self.rotary_base = rotary_base
        self.head, self.slot_width, self.slot_layers = head, slot_width, slot_layers
        self.tied = tied
        self.window, self.global_every = window, global_every
        self.pooling, self.wide, self.wide_lead = pooling, wide, wide_lead
        self.canine = canine or {
            "rate": 4,
            "local": 128,
            "kernel": 4,
            "hashes": 8,
            "buckets": 16384,
        }
        # The table of the bytes belongs to the model's own code, not to what transformers ties.
        kwargs["tie_word_embeddings"] = False
        super().__init__(pad_token_id=pad_token_id, **kwargs)

    @property
    def slots(self) -> int:
        """The bytes of one position."""
        return {"elementwise": self.v, "byte": 1, "canine": 4}[self.input]

    @property
    def embedded(self) -> int:
        """The width of an embedding."""
        return self.embedding_width or self.width
