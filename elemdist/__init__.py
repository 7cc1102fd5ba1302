"""Elementwise transformers: text as rows of UTF-8 bytes, without a tokenizer."""

from __future__ import annotations

from elemdist.cpu_primitives import bound_primitives

TYPE_CHECKING = False  # typing is not loaded before the process has taken its signals
if TYPE_CHECKING:
    from typing import Any

    from elemdist.embedding import ElementwiseEmbedding

__all__ = ["ElementwiseEmbedding", "__version__"]
__version__ = "0.1.0"

bound_primitives()  # here, as whatever runs a model imports this first


def __getattr__(name: str) -> Any:
    # Offline work imports this package and must not pay for torch.
    if name == "ElementwiseEmbedding":
        from elemdist.embedding import ElementwiseEmbedding
        from elemdist.streaming_compat import fit_torchvision

        # It stands in front of a model of transformers, whose import would fail without.
        fit_torchvision()
        return ElementwiseEmbedding
    raise AttributeError(f"module 'elemdist' has no attribute '{name}'")
