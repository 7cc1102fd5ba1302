"""Which models `elemdist export` writes, and which as ONNX; what it does not is one line."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from elemdist import export, export_onnx
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import AblationSettings, ModelSettings
from tests.exported_models import CLASSIFIERS, PREDICTORS, N, V, config_of, random_model


def test_inputs_that_are_not_exported():
    shuffled = config_of("mlm", ablation=AblationSettings(slots="shuffled"))
    with pytest.raises(export.UserError, match="shuffled"):
        export.check(shuffled)
    for input in ("elementwise", "byte"):
        for segmenter in ("uax29", "sentence", "subword"):
            model = resolved(ModelSettings(input=input), V)
            config = ModelConfig(N, V, "mlm", model, segmenter=segmenter)
            with pytest.raises(export.UserError, match=f"segmenter {segmenter}.*--segmenter word"):
                export.check(config)
    for objective in ("mlm", "classify"):
        with pytest.raises(export.UserError, match="input subword are there to compare"):
            export.check(config_of(objective, "mean", input="subword"))


@pytest.mark.parametrize(
    "config",
    [
        CLASSIFIERS["canine"],
        CLASSIFIERS["wide"],
        CLASSIFIERS["uncased"],
        PREDICTORS["decoder"],
        replace(CLASSIFIERS["byte"], n=2, v=8),
    ],
    ids=["canine", "wide", "uncased", "decoder", "byte of two rows"],
)
def test_onnx_of_other_models(config, tmp_path, monkeypatch):
    """Of lengths and batches that it was not traced with, write_onnx compares the logits."""
    weights = export.weights_of(random_model(config))
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    export.write_json(tmp_path / "config.json", export.config_tree(config, torch.float32))
    for source in export.CODE.glob("*_elemdist.py"):
        shutil.copyfile(source, tmp_path / source.name)
    export_onnx.write_onnx(tmp_path, config)
    monkeypatch.setattr(export_onnx, "TOLERANCE", 0.0)
    with pytest.raises(export.UserError, match="onnxruntime gives logits that differ by"):
        export_onnx.write_onnx(tmp_path, config)


def test_onnx_of_an_autoregressive_head(tmp_path):
    with pytest.raises(export.UserError, match="leave --onnx out"):
        export_onnx.write_onnx(tmp_path, PREDICTORS["autoregressive"])


def test_what_torch_cannot_write_is_one_line(tmp_path, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return input_ids if float(input_ids.sum()) > 0 else attention_mask

    monkeypatch.setattr(export_onnx, "LogitsOnly", lambda model: Broken())
    monkeypatch.setattr(export_onnx, "load", lambda *_: None)
    with pytest.raises(export.UserError, match="onnx: torch cannot write this model so: ") as error:
        export_onnx.write_onnx(tmp_path, PREDICTORS["bert"])
    assert "\n" not in str(error.value)
