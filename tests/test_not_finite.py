"""Weights and outputs of a model that are NaN or infinite: one line, and never a figure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from elemdist import checkpoint, cli
from elemdist.checkpoint_parts import check_finite
from elemdist.errors import UserError
from elemdist.model import Model
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import ModelSettings
from elemdist.pretrained_files import read_weights
from tests.conftest import TOPICS
from tests.test_sample import saved

# Verb -> the objective of the model that it is for, and its other words.
USES = {
    "predict": ("classify", ["predict", "RUN", "CORPUS"]),
    "predict --top": ("classify", ["predict", "RUN", "CORPUS", "--top", "2"]),
    "eval of a classifier": ("classify", ["eval", "RUN", "--data", "LABELLED"]),
    "eval of masked materials": ("mlm", ["eval", "RUN", "--data", "PACKED", "--out", "OUT"]),
    "eval of a decoder": ("clm", ["eval", "RUN", "--data", "PACKED"]),
    "robustness": ("classify", ["robustness", "RUN", "--text", "CORPUS", "--out", "OUT"]),
    "sample": ("clm", ["sample", "RUN", "--temperature", "0"]),
    "sample by chance": ("clm", ["sample", "RUN", "--materials", "2"]),
    "export": ("mlm", ["export", "RUN", "--out", "OUT"]),
}


def run_with(objective: str, folder: Path, change: Callable[[Tensor], object]) -> str:
    """A checkpoint folder of a random model, with `change` made to each tensor of its head."""
    backbone: Any = "decoder" if objective == "clm" else "bert"
    model = ModelSettings(backbone=backbone, width=32, layers=1)
    labels = sorted(TOPICS) if objective == "classify" else None
    made_of = {"objective": objective, "labels": labels, "pooling": "max" if labels else "none"}
    config = ModelConfig(32, 8, model=resolved(model, 8), **made_of)
    made = Model(config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.startswith("head."):
                change(weight.view(-1))
    folder.mkdir()
    return saved(made, folder)


@pytest.fixture
def words(corpus, packed, labelled, tmp_path) -> Callable[[str, str], list[str]]:
    places = {
        "CORPUS": corpus, "PACKED": packed / "val", "LABELLED": labelled / "val",
        "OUT": tmp_path / "out",
    }  # fmt: skip
    return lambda use, run: [
        run if word == "RUN" else str(places.get(word, word)) for word in USES[use][1]
    ]


def refused(words: list[str], capfd) -> str:
    """The one line that a verb says, run in this process."""
    with pytest.raises(UserError) as error:
        cli.VERBS[words[0]](words[1:])
    out, _ = capfd.readouterr()
    assert "nan" not in out.lower()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(use, value, words, tmp_path, capfd):
    run = run_with(USES[use][0], tmp_path / "run", lambda flat: flat[-1].fill_(value))
    told = refused(words(use, run), capfd)
    assert "model.safetensors" in told
    assert "head." in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("use", [use for use in USES if use != "export"])
def test_outputs_that_overflow_are_no_figures(use, words, tmp_path, capfd):
    run = run_with(USES[use][0], tmp_path / "run", lambda flat: flat.fill_(3e38))
    assert "NaN or infinite" in refused(words(use, run), capfd)
    assert not (tmp_path / "out").exists()


def test_the_first_tensor_is_named_and_other_types_are_no_trouble():
    good = {"a": torch.ones(2), "b": torch.zeros(0), "c": torch.ones(2, dtype=torch.int64)}
    check_finite(good | {"d": torch.full((3,), 3e38, dtype=torch.bfloat16)})
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        bad = {"x.y": torch.tensor([1, float("inf")], dtype=dtype), "z": torch.tensor([torch.nan])}
        with pytest.raises(ValueError, match=r"x\.y"):
            check_finite(good | bad)


def test_a_run_does_not_begin_from_them(tmp_path):
    run = run_with("mlm", tmp_path / "run", lambda flat: flat[0].fill_(torch.inf))
    found = checkpoint.find(run)
    with pytest.raises(UserError, match="NaN or infinite"):
        checkpoint.initialise_from(Model(found.config()), run)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_nor_from_those_of_another_package(name, tmp_path):
    state = {"bert.x": torch.ones(2), "bert.y": torch.tensor([1.0, torch.nan])}
    save = save_file if name.endswith(".safetensors") else torch.save
    save(state, tmp_path / name)
    with pytest.raises(UserError, match=r"bert\.y holds NaN or infinite"):
        read_weights(str(tmp_path))


def test_an_evaluation_in_training_says_so_and_training_goes_on(packed, tmp_path):
    """As the guard decides, which sees the gradients; a learning rate of 1e15 spoils the weights
    in its first step."""
    from tests.conftest import TINY, elemdist

    run = tmp_path / "run"
    done = elemdist(
        "train", *TINY, "--run-dir", run, "--data.train", packed / "train", "--data.eval",
        packed / "val", "--steps", "2", "--eval-every", "1", "--optim.lr", "1e15",
        "--optim.warmup-steps", "0",
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "no figures: the model's outputs are NaN or infinite" in done.stdout
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evals = [line for line in lines if line["kind"] == "eval"]
    assert evals
    assert all(line["loss"] is None for line in evals)
