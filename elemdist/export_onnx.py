"""The ONNX file of an exported model, checked by another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elemdist.errors import UserError
from elemdist.model_config import ModelConfig
from elemdist.streaming_compat import fit_torchvision

OPSET = 18
TOLERANCE = 1e-4  # of logits; another runtime adds up in another order
NEEDED = "it needs `pip install 'elemdist[onnx]'`"


class LogitsOnly(nn.Module):
    """A model of transformers as a function of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, N, V) or (B, N) and (B, N) to the logits."""
        logits = self.model(input_ids, attention_mask).logits
        assert isinstance(logits, Tensor)
        return logits


def write_onnx(folder: Path, config: ModelConfig) -> None:
    """Writes model.onnx beside an exported model: input_ids and attention_mask, any number of them
    of any length, to logits.

    Raises:
        UserError: a package is missing, the model cannot be written so, or the other runtime gives
            other logits.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch writes ONNX with
    except ImportError as error:
        raise UserError(f"onnx: there is no {error.name}; {NEEDED}") from None
    if config.model.head == "autoregressive" and config.objective != "classify":
        raise UserError(
            "onnx: the autoregressive head predicts a byte after the other, which no ONNX file of"
            " one pass can; leave --onnx out"
        )
    model = LogitsOnly(load(folder, config)).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("positions", max=config.positions)
    inputs = example(config, 3, min(17, config.positions))
    path = folder / "model.onnx"
    try:
        torch.onnx.export(
            model, inputs, path, dynamo=True, opset_version=OPSET, external_data=False,
            input_names=["input_ids", "attention_mask"], output_names=["logits"], verbose=False,
            dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
        )  # fmt: skip
    except OSError:
        raise
    except Exception as error:  # the exporter raises nothing more exact
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"onnx: torch cannot write this model so: {first}") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows, positions in ((1, min(5, config.positions)), (4, min(40, config.positions))):
        inputs = example(config, rows, positions)
        with torch.no_grad():
            expected = model(*inputs).numpy()
        names = (one.name for one in session.get_inputs())
        (got,) = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
        worst = float(np.abs(got - expected).max())
        if worst > TOLERANCE:
            raise UserError(f"onnx: onnxruntime gives logits that differ by {worst:g}")


def load(folder: Path, config: ModelConfig) -> Any:
    """The exported model, as a user loads it."""
    fit_torchvision()
    import transformers

    from elemdist.export import CLASSES

    auto = getattr(transformers, CLASSES[config.objective][0])
    return auto.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)


def example(config: ModelConfig, batch: int, positions: int) -> tuple[Tensor, Tensor]:
    """Made inputs: text of ASCII, the last sequence a padded one."""
    shape = (
        (batch, positions, config.v) if config.model.input == "elementwise" else (batch, positions)
    )
    ids = torch.randint(97, 123, shape, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(batch, positions, dtype=torch.long)
    mask[-1, -(positions // 3) :] = 0
    return ids, mask
