"""Folders as transformers saves them, small and random, and the models of ours that fit them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from elemdist.model_config import ModelConfig, Symbols
from elemdist.model_settings import CanineSettings, ModelSettings
from elemdist.streaming_compat import fit_torchvision

fit_torchvision()  # transformers imports torchvision, too

import transformers  # noqa: E402

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 128,
}
KINDS: dict[str, dict[str, Any]] = {
    "Bert": {"vocab_size": 50, "max_position_embeddings": 64},
    "Albert": {"vocab_size": 50, "max_position_embeddings": 64, "embedding_size": 16},
    "Canine": {
        "num_hash_buckets": 64,
        "downsampling_rate": 2,
        "local_transformer_stride": 4,
        "upsampling_kernel_size": 3,
    },
}
CANINE = CanineSettings(rate=2, local=4, kernel=3, buckets=64)
SETTINGS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Albert": {"backbone": "albert", "embedding_width": 16, "activation": "gelu_tanh"},
    "Canine": {"backbone": "canine", "canine": CANINE},
}


def save(folder: Path, kind: str = "Bert", task: str = "Model", **options: Any) -> Path:
    """A random model of transformers, saved in `folder`; `options` are of its config.json."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind] | options)
    getattr(transformers, f"{kind}{task}")(config).save_pretrained(folder)
    return folder


def shape(kind: str = "Bert", own: bool = False, **changes: Any) -> ModelConfig:
    """A run's model that fits what `save` makes, with the original's input or the elementwise."""
    canine = kind == "Canine"
    model = ModelSettings(**{**SETTINGS[kind], "layers": 2, "width": 32, "heads": 8})
    model.feedforward = 128
    model.input = ("canine" if canine else "subword") if own else "elementwise"
    objective = changes.pop("objective", "mlm")
    config = ModelConfig(
        n=changes.pop("n", 4 if canine else 32),
        v=8,
        objective=objective,
        model=model,
        pooling="doc" if objective == "classify" else "none",
        labels=["a", "b"] if objective == "classify" else None,
        symbols=changes.pop("symbols", Symbols(1, 2, 3, 50)) if own and not canine else None,
    )
    return dataclasses.replace(config, model=dataclasses.replace(model, **changes))


def state_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")
