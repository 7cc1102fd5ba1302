"""The header of a checkpoint's weights against a model's shape, before the model takes memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from elemdist.checkpoint_parts import check_shapes, tensor_shapes
from elemdist.model import Model
from elemdist.model_config import ModelConfig

FILLING = (
    "normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_", "fill_", "zero_",
    "zeros_", "ones_", "constant_", "copy_",
)  # fmt: skip


class NoValues(TorchFunctionMode):
    """Leaves out what fills tensors: on the device meta, which has none, random numbers alone load
    torch's compiler, for seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")
        name = getattr(func, "__name__", "")
        if isinstance(filled, Tensor) and filled.is_meta and name in FILLING:
            return filled
        return func(*args, **kwargs)


def check_header(path: Path, config: ModelConfig) -> None:
    """Raise ValueError where the tensors of a safetensors file are not those of a model."""
    theirs = tensor_shapes(path)
    blocks = 1 if config.model.backbone == "albert" else config.model.layers
    if blocks > len(theirs):
        raise ValueError(f"it has {len(theirs)} tensors, config.json says {blocks:,} layers")
    with torch.device("meta"), NoValues():
        ours = Model(config).state_dict()
    check_shapes(theirs, {name: tuple(weight.shape) for name, weight in ours.items()})
