"""The first weights of a run out of a model that transformers saved: ``--init-from hf:FOLDER``.

FOLDER is what ``save_pretrained`` writes: config.json and model.safetensors, whole or in parts, or
pytorch_model.bin, of a BERT, an ALBERT or a CANINE. It is read as data; nothing in it is executed,
and transformers itself is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from elemdist.blocks import NORM_EPS
from elemdist.errors import UserError
from elemdist.model import Model
from elemdist.model_config import ModelConfig
from elemdist.pretrained_files import read_config, read_weights
from elemdist.pretrained_names import albert_names, bert_names, plain_names, pooler_names

OWN_INPUT = {"bert": "subword", "albert": "subword", "canine": "canine"}
DEFAULT_ACT = {"bert": "gelu", "albert": "gelu_new", "canine": "gelu"}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

# What elemdist has no setting for: the values it always computes with.
FIXED = {
    "layer_norm_eps": NORM_EPS,
    "position_embedding_type": "absolute",
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "is_decoder": False,
}


@dataclass
class Misfits:
    """All in which a run differs from the weights that it is to start from, for one error."""

    facts: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    def compare(self, wanted: Mapping[str, Any], ours: ModelConfig) -> None:
        """Notes settings, by their dotted names, that are not as the weights want them."""
        for name, then in wanted.items():
            now = attrgetter(name)(ours)
            if then != now:
                self.facts.append(f"its {name} is {then}, this run's is {now}")
                value = str(then).lower() if isinstance(then, bool) else then
                self.flags.append(f"--{name.replace('_', '-')} {value}")

    def note(self, fact: str, remedy: str) -> None:
        """Something that does not fit, and what would."""
        self.facts.append(fact)
        if remedy not in self.remedies:
            self.remedies.append(remedy)

    def note_positions(self, known: int, ours: ModelConfig) -> None:
        """Notes that a run has more positions than the weights know."""
        if ours.positions > known:
            a_row = ours.positions // ours.n
            self.note(
                f"it knows {known} positions, the shards' n={ours.n} asks for {ours.positions}",
                f"shard with --n {known // a_row}",
            )

    def refuse(self, source: str) -> None:
        """Raises UserError with all that was noted."""
        if self.flags:
            self.remedies.insert(0, f"set {' '.join(self.flags)}")
        if self.facts:
            raise UserError(
                f"init_from {source}: {', '.join(self.facts)}; {'; '.join(self.remedies)}"
            )


def initialise(model: Model, folder: str) -> str:
    """Takes the weights of the checkpoint in `folder`; a line that says which.

    All of them where the model's input is the checkpoint's own. Where it is another, the
    embedding and the predictions, which know the checkpoint's vocabulary only, stay as they are.

    Raises UserError where there is none, or where it is no such model.
    """
    theirs = read_config(folder)
    kind, config = theirs["model_type"], model.config
    check_fit(theirs, config, folder)
    own_input, classify = config.model.input == OWN_INPUT[kind], config.objective == "classify"
    ours = model.state_dict()
    taken = {}
    for name, tensor in our_weights(theirs, classify, folder).items():
        if name.startswith("encoder.embedding.") and not own_input:
            continue
        if name.startswith("head.") and not (name in ours and (own_input or classify)):
            continue
        taken[name] = fitted(name, tensor, ours[name], theirs, folder)
    missing, _ = model.load_state_dict(taken, strict=False)
    assert all(name.startswith(("encoder.embedding.", "head.")) for name in missing), missing
    known = parts(taken, classify)
    left = [part for part in parts(missing, classify) if part not in known]
    told = f"weights of {kind} from {folder}: {', '.join(known)}"
    return f"{told}; left as initialised: {', '.join(left)}" if left else told


def check_fit(theirs: dict[str, Any], ours: ModelConfig, folder: str) -> None:
    """Raises UserError where this run's model is not the checkpoint's."""
    kind = theirs["model_type"]
    own_input = ours.model.input == OWN_INPUT[kind]
    misfits = Misfits()
    misfits.compare(wanted_settings(theirs, ours, own_input), ours)
    for name, value in FIXED.items():
        if (then := theirs.get(name, value)) != value:
            misfits.note(f"its {name} is {then}, here it is {value}", "take another checkpoint")
    if (act := hidden_act(theirs)) not in ACTIVATIONS:
        fact = f"its hidden_act is {act}, known are {', '.join(ACTIVATIONS)}"
        misfits.note(fact, "take another checkpoint")
    misfits.note_positions(known_positions(theirs), ours)
    if own_input and ours.symbols is not None:
        rows, symbols = theirs["vocab_size"], ours.symbols
        # DOC, SEP and MASK get numbers behind a vocabulary that lacks them.
        added = set(range(rows, symbols.vocabulary)) - {symbols.doc, symbols.sep, symbols.mask}
        if symbols.vocabulary < rows or added:
            misfits.note(
                f"its table has {rows} tokens, this run's tokenizer {symbols.vocabulary}",
                "set --model.tokenizer to the tokenizer.json that belongs to it",
            )
    misfits.refuse(f"hf:{folder}")


def wanted_settings(theirs: dict[str, Any], ours: ModelConfig, own_input: bool) -> dict[str, Any]:
    """The settings that a run needs for the weights of a config.json."""
    kind = theirs["model_type"]
    wanted = {
        "model.backbone": kind,
        "model.layers": theirs["num_hidden_layers"],
        "model.width": theirs["hidden_size"],
        "model.heads": theirs["num_attention_heads"],
        "model.feedforward": theirs["intermediate_size"],
        "model.embedding_width": theirs["embedding_size"] if kind == "albert" else 0,
        "model.norm": "post",
        "model.positions": "learned",
        "model.activation": ACTIVATIONS.get(hidden_act(theirs), ours.model.activation),
        "model.biases": True,
        "model.ablation.first_projection": "dense",
    }
    if kind == "canine":
        wanted["model.canine.rate"] = theirs["downsampling_rate"]
        wanted["model.canine.local"] = theirs["local_transformer_stride"]
        wanted["model.canine.kernel"] = theirs["upsampling_kernel_size"]
    if kind == "canine" and own_input:
        wanted["model.canine.hashes"] = theirs["num_hash_functions"]
        wanted["model.canine.buckets"] = theirs["num_hash_buckets"]
    predicts = own_input and kind != "canine" and ours.objective != "classify"
    if predicts and not theirs.get("tie_word_embeddings", True):
        wanted["model.tied"] = False
    return wanted


def hidden_act(theirs: dict[str, Any]) -> str:
    """Their activation, or the one that their kind has where nothing is said."""
    return str(theirs.get("hidden_act", DEFAULT_ACT[theirs["model_type"]]))


def known_positions(theirs: dict[str, Any]) -> int:
    """CANINE's table of positions has as many rows as those of its hash functions."""
    name = "num_hash_buckets" if theirs["model_type"] == "canine" else "max_position_embeddings"
    return int(theirs[name])


def our_weights(theirs: dict[str, Any], classify: bool, folder: str) -> dict[str, Tensor]:
    """The checkpoint's weights, fp32, by the names of this library. Raises UserError."""
    kind = theirs["model_type"]
    state = plain_names(read_weights(folder), kind)
    try:
        if kind == "bert":
            return bert_names(state, theirs["num_hidden_layers"], classify)
        if kind == "albert":
            return albert_names(state, classify)
        from elemdist.pretrained_canine import canine_names

        found = {f"encoder.{name}": tensor for name, tensor in canine_names(state).items()}
        return found | (pooler_names(state, "pooler.dense") if classify else {})
    except KeyError as error:
        raise UserError(
            f"init_from hf:{folder}: it has no weight {error}; save a whole {kind} model there"
        ) from None


def fitted(name: str, tensor: Tensor, ours: Tensor, theirs: dict[str, Any], folder: str) -> Tensor:
    """A weight in the shape that it has here: with the positions that this run has, and, behind
    its own tokens, those that the run adds, as they were initialised.

    Raises UserError where it has not the shape that config.json says.
    """
    expected = list(ours.shape)
    if name == "encoder.positions.weight":
        expected[0] = known_positions(theirs)
    axis = {"encoder.embedding.table": 0, "head.table": 0, "head.bias_VE": 1}.get(name)
    if axis is not None:
        expected[axis] = theirs["vocab_size"]
    if list(tensor.shape) != expected:
        raise UserError(
            f"init_from hf:{folder}: {name} is {list(tensor.shape)} there, by its config.json it"
            f" would be {expected}; save the model again with save_pretrained"
        )
    if name == "encoder.positions.weight":
        return tensor[: len(ours)]
    if axis is None:
        return tensor
    added = ours.narrow(axis, expected[axis], ours.shape[axis] - expected[axis])
    return torch.cat([tensor, added], axis)


def parts(names: Iterable[str], classify: bool) -> list[str]:
    """The parts of a model that weights belong to, in words, each once."""
    names = list(names)
    blocks = len({name.split(".")[2] for name in names if name.startswith("encoder.blocks.")})
    words = {
        "encoder.blocks": "1 block" if blocks == 1 else f"{blocks} blocks",
        "encoder.norm": "embedding norm",
        "encoder.widen": "widening matrix",
        "encoder.local": "local block",
        "encoder.down": "down-sampling",
        "encoder.up": "up-sampling",
        "encoder.last": "last block",
        "head.dense": "pooler" if classify else "prediction head",
        "head.labels": "labels",
    }
    found = []
    for name in names:
        part = ".".join(name.split(".")[:2])
        if part not in words and part.startswith("head."):
            part = "head.dense"
        word = words.get(part, part.removeprefix("encoder.").replace("_", " "))
        if word not in found:
            found.append(word)
    return found
