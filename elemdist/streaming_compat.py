"""`import streaming`, and the models of transformers, beside a CPU build of torch.

Both import torchvision, whose wheel is a CUDA build: beside a CPU torch its compiled operators are
missing, and its Python side fails as it registers more about them. Two declarations are all that it
asks for.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

MISSING = ("nms", "qnms")

_libraries: list[torch.library.Library] = []  # a library's operators live as long as it does


def fit_torchvision() -> None:
    """Makes torchvision, and with it what imports it, importable beside any build of torch."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in MISSING:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)


def import_streaming() -> ModuleType:
    """The `streaming` package, imported so that it works beside CPU and CUDA builds of torch."""
    fit_torchvision()
    return importlib.import_module("streaming")
