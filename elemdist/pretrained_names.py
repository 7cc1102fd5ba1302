"""What transformers calls the weights of BERT and ALBERT, and what they are called here.

Every function takes name -> tensor and is linear in the tensors, so it maps gradients, too.
Shape suffixes: see elemdist/rows.py; E tokens of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]

PARTS = ("weight", "bias")

# Ours -> theirs, within a block.
BERT_BLOCK = {
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "feedforward_norm": "output.LayerNorm",
}
ALBERT_BLOCK = {
    "out": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "up": "ffn",
    "down": "ffn_output",
    "feedforward_norm": "full_layer_layer_norm",
}


def plain_names(state: State, kind: str) -> State:
    """Without the name of the encoder that a model with a head puts in front, and with the layer
    norms named as today: checkpoints converted from TensorFlow have gamma and beta."""
    found = {}
    for name, tensor in state.items():
        name = name.removeprefix(f"{kind}.")
        for old, new in (
            ("LayerNorm.gamma", "LayerNorm.weight"),
            ("LayerNorm.beta", "LayerNorm.bias"),
        ):
            name = name.replace(old, new)
        found[name] = tensor
    return found


def renamed(state: State, names: dict[str, str]) -> State:
    """The weight and the bias of each module, `names` being ours -> theirs."""
    return {
        f"{ours}.{part}": state[f"{theirs}.{part}"]
        for ours, theirs in names.items()
        for part in PARTS
    }


def block_names(
    state: State, ours: str, theirs: str, names: dict[str, str], attention: str
) -> State:
    """One block; `attention` is the module that holds queries, keys and values."""
    found = renamed(state, {f"{ours}.{own}": f"{theirs}.{name}" for own, name in names.items()})
    for part in PARTS:
        found[f"{ours}.qkv.{part}"] = torch.cat(
            [state[f"{theirs}.{attention}.{which}.{part}"] for which in ("query", "key", "value")]
        )
    return found


def embedding_names(state: State) -> State:
    """Table, positions and norm. A document here is one segment of BERT's, its first, so that
    segment's vector is a part of every position's."""
    positions = state["embeddings.position_embeddings.weight"]
    return {
        "encoder.embedding.table": state["embeddings.word_embeddings.weight"],
        "encoder.positions.weight": positions + state["embeddings.token_type_embeddings.weight"][0],
    } | renamed(state, {"encoder.norm": "embeddings.LayerNorm"})


def head_names(state: State, predictions: str, transform: str) -> State:
    """The prediction head; nothing where the checkpoint has none."""
    if f"{transform}.dense.weight" not in state:
        return {}
    # The decoder's own bias is the one that every version adds. Below 5 both names are of one
    # tensor, and either is saved; from 5 on those of an untied model differ, and both are.
    bias = state.get(f"{predictions}.decoder.bias", state.get(f"{predictions}.bias"))
    if bias is None:
        raise KeyError(f"{predictions}.bias")
    table = state.get(f"{predictions}.decoder.weight", state["embeddings.word_embeddings.weight"])
    names = {"head.dense": f"{transform}.dense", "head.norm": f"{transform}.LayerNorm"}
    return {"head.bias_VE": bias.unsqueeze(0), "head.table": table} | renamed(state, names)


def pooler_names(state: State, pooler: str) -> State:
    """The layer below a classifier's labels; nothing where the checkpoint has none."""
    return renamed(state, {"head.dense": pooler}) if f"{pooler}.weight" in state else {}


def bert_names(state: State, layers: int, classify: bool) -> State:
    """Weights of BertModel, BertForMaskedLM or BertForSequenceClassification, to the names of
    :class:`elemdist.model.Model`; the head's are those of a classifier, or of the predictions.

    Raises KeyError where one is missing.
    """
    found = embedding_names(state)
    for number in range(layers):
        ours, theirs = f"encoder.blocks.{number}", f"encoder.layer.{number}"
        found |= block_names(state, ours, theirs, BERT_BLOCK, "attention.self")
    if classify:
        return found | pooler_names(state, "pooler.dense")
    return found | head_names(state, "cls.predictions", "cls.predictions.transform")


def albert_names(state: State, classify: bool) -> State:
    """The same of AlbertModel, AlbertForMaskedLM or AlbertForSequenceClassification."""
    theirs = "encoder.albert_layer_groups.0.albert_layers.0"
    found = embedding_names(state)
    found |= renamed(state, {"encoder.widen": "encoder.embedding_hidden_mapping_in"})
    found |= block_names(state, "encoder.blocks.0", theirs, ALBERT_BLOCK, "attention")
    if classify:
        return found | pooler_names(state, "pooler")
    return found | head_names(state, "predictions", "predictions")
