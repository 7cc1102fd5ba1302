"""The weights of transformers' CanineModel under the names of our encoder."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from elemdist.errors import UserError

PREFIX = "canine."
EMBEDDINGS = "char_embeddings"
TABLE = EMBEDDINGS + ".HashBucketCodepointEmbedder_{}.weight"
# The parts of a transformer layer, theirs and ours, beside queries, keys and values.
PARTS = {
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "feedforward_norm",
}


class Weights(dict[str, Tensor]):
    """A state dict that says in one line what it lacks."""

    def __missing__(self, name: str) -> Tensor:
        raise UserError(
            f"the weights lack {name}, which every CanineModel of transformers has; save the model"
            " again with save_pretrained"
        )


def canine_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for :class:`elemdist.canine.CanineEncoder` with input canine.

    Args:
        state: of CanineModel, or of a model with a head, whose names then start with "canine.".
            The pooler and heads are left out. The vector of token type 0, which every character
            gets where there is one text only, is added to the positions.

    Returns:
        Names of the encoder to new tensors or views of the given ones. `positions.weight` has all
        rows of theirs, which may be more than a model needs.

    Raises:
        UserError: a weight is missing.
    """
    headed = any(name.startswith(PREFIX) for name in state)
    weights = Weights(
        (name.removeprefix(PREFIX), weight)
        for name, weight in state.items()
        if name.startswith(PREFIX) or not headed
    )
    tables = [weights[TABLE.format(k)] for k in range(highest(weights, TABLE.format(r"(\d+)")) + 1)]
    type_W = weights[f"{EMBEDDINGS}.token_type_embeddings.weight"][0]
    named = {
        "embedding.tables": torch.stack(tables),
        "positions.weight": weights[f"{EMBEDDINGS}.char_position_embeddings.weight"] + type_W,
    }
    named |= pair(weights, f"{EMBEDDINGS}.LayerNorm", "norm")
    named |= layer(weights, "initial_char_encoder.layer.0", "local")
    named |= convolution(weights, "chars_to_molecules", "down")
    for k in range(highest(weights, r"encoder\.layer\.(\d+)\..*") + 1):
        named |= layer(weights, f"encoder.layer.{k}", f"blocks.{k}")
    named |= convolution(weights, "projection", "up")
    named |= layer(weights, "final_char_encoder.layer.0", "last")
    return named


def highest(weights: Weights, pattern: str) -> int:
    """The highest number in the names that match the pattern, 0 if none does."""
    found = [re.fullmatch(pattern, name) for name in weights]
    return max((int(match[1]) for match in found if match), default=0)


def pair(weights: Weights, theirs: str, ours: str) -> dict[str, Tensor]:
    """Weight and bias of one module."""
    return {f"{ours}.{kind}": weights[f"{theirs}.{kind}"] for kind in ("weight", "bias")}


def layer(weights: Weights, theirs: str, ours: str) -> dict[str, Tensor]:
    """A transformer layer, for :class:`elemdist.blocks.Block`."""
    qkv = [pair(weights, f"{theirs}.attention.self.{n}", "qkv") for n in ("query", "key", "value")]
    named = {f"{ours}.{name}": torch.cat([part[name] for part in qkv]) for name in qkv[0]}
    for their_part, our_part in PARTS.items():
        named |= pair(weights, f"{theirs}.{their_part}", f"{ours}.{our_part}")
    return named


def convolution(weights: Weights, theirs: str, ours: str) -> dict[str, Tensor]:
    """A convolution and its norm. Its weight, (out, in, width), becomes one matrix whose inputs
    come position by position, (out, width * in)."""
    named = pair(weights, f"{theirs}.conv", f"{ours}.conv")
    named[f"{ours}.conv.weight"] = named[f"{ours}.conv.weight"].transpose(1, 2).flatten(1)
    return named | pair(weights, f"{theirs}.LayerNorm", f"{ours}.norm")
