"""A folder that ``save_pretrained`` of transformers wrote, read as data: its sizes and weights."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from elemdist.artefacts import read_json
from elemdist.checkpoint_parts import check_finite
from elemdist.errors import UserError

SIZES = ["num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"]
SIZES_OF = {
    "bert": ["vocab_size", "max_position_embeddings"],
    "albert": ["vocab_size", "max_position_embeddings", "embedding_size"],
    "canine": [
        "num_hash_buckets",
        "num_hash_functions",
        "downsampling_rate",
        "local_transformer_stride",
        "upsampling_kernel_size",
    ],
}


def read_config(folder: str) -> dict[str, Any]:
    """config.json with all the sizes of its kind. Raises UserError."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(
            f"init_from hf:{folder}: it has no config.json; expected a folder that save_pretrained"
            " of transformers wrote"
        )
    theirs = read_json(path, dict[str, Any], remedy="save it again")
    kind = str(theirs.get("model_type"))
    if kind not in SIZES_OF:
        raise UserError(f"{path}: model_type is {kind}; take a checkpoint of {', '.join(SIZES_OF)}")
    for name in SIZES + SIZES_OF[kind]:
        if not (isinstance(theirs.get(name), int) and theirs[name] > 0):
            raise UserError(f"{path}: {name} is {theirs.get(name)}, no size; save it again")
    return dict(theirs)


def read_weights(folder: str) -> dict[str, Tensor]:
    """Name -> tensor, fp32, out of the first of the three forms that is there. Raises UserError."""
    place = Path(folder)
    whole, index = place / "model.safetensors", place / "model.safetensors.index.json"
    pickled = place / "pytorch_model.bin"
    path = next((path for path in (whole, index, pickled) if path.is_file()), None)
    if path is None:
        raise UserError(
            f"init_from hf:{folder}: it has neither model.safetensors nor pytorch_model.bin;"
            " save the model there with save_pretrained"
        )
    try:
        if path == pickled:
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            state = {}
            for part in [path] if path == whole else listed_files(index):
                state |= load_file(part)
        check_finite(state)
        return {name: tensor.float() for name, tensor in state.items()}
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError,
        pickle.UnpicklingError, SafetensorError,
    ) as error:  # fmt: skip
        raise UserError(
            f"{path}: it cannot be read as weights alone ({one_line(error)}); save the model again"
            " with save_pretrained"
        ) from None


def listed_files(index: Path) -> list[Path]:
    """The files that a model.safetensors.index.json lists."""
    names = sorted(set(read_json(index, dict[str, Any])["weight_map"].values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{name} points out of the folder")
    return [index.parent / name for name in names]


def one_line(error: Exception) -> str:
    """The first line of what an error says, or its name."""
    return (str(error) or type(error).__name__).splitlines()[0]
