"""The encoder of a run as the start of another."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from elemdist import checkpoint
from elemdist.checkpoint import initialise_from
from elemdist.errors import UserError
from elemdist.model import Model
from elemdist.model_config import Symbols
from elemdist.model_settings import AblationSettings
from tests.pretrained_folders import shape


def save_run(folder: Path, model: Model) -> Path:
    """A checkpoint folder as a run leaves it, without what DeepSpeed needs to go on."""
    folder.mkdir()
    save_file(dict(model.named_parameters()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_json()))
    files = {
        name: [(folder / name).stat().st_size, checkpoint.digest(folder / name)]
        for name in ("model.safetensors", "config.json")
    }
    manifest = {
        "format": checkpoint.FORMAT, "version": checkpoint.VERSION, "step": 7, "files": files
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_run_gives_another_its_encoder(tmp_path, positions):
    torch.manual_seed(0)
    theirs = Model(shape(n=32, positions=positions))
    folder = save_run(tmp_path / "run", theirs)
    ours = Model(shape(n=8, positions=positions, objective="classify", dropout=0.3, window=3))
    line = initialise_from(ours, str(folder))
    assert line == f"encoder weights from {folder} (step 7)"
    expected = theirs.state_dict()
    for name, tensor in ours.encoder.state_dict().items():
        wanted = expected[f"encoder.{name}"]
        assert torch.equal(tensor, wanted[:8] if name == "positions.weight" else wanted), name


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"width": 64, "layers": 1},
         ["its model.layers is 2, this run's is 1", "set --model.layers 2 --model.width 32"]),
        ({"ablation": AblationSettings(slots="shuffled")}, ["--model.ablation.slots ordered"]),
        ({"own": True}, ["--model.input elementwise"]),
        ({"n": 33}, ["knows 32 positions", "--n 32"]),
        ({"uncased": True}, ["its model.uncased is False, this run's is True",
                             "set --model.uncased false"]),
    ],
)  # fmt: skip
def test_a_run_of_another_shape_is_refused_in_one_line(tmp_path, changes, parts):
    folder = save_run(tmp_path / "run", Model(shape()))
    with pytest.raises(UserError) as caught:
        initialise_from(Model(shape(**changes)), str(folder))
    for part in parts:
        assert part in str(caught.value)


def test_a_run_on_materials_of_another_size_is_refused(tmp_path):
    folder = save_run(tmp_path / "run", Model(shape()))
    four = dataclasses.replace(shape(), v=4)
    with pytest.raises(UserError, match=r"its v is 8, the shards' is 4; shard with --v 8"):
        initialise_from(Model(four), str(folder))
    # As many heads as a material has bytes, where nothing else is said: v alone is the reason.
    four = dataclasses.replace(four, model=dataclasses.replace(four.model, heads=4))
    with pytest.raises(UserError, match=r"run: its v is 8, the shards' is 4; shard with --v 8$"):
        initialise_from(Model(four), str(folder))


def test_a_run_on_materials_of_another_segmenter_is_refused(tmp_path):
    folder = save_run(tmp_path / "run", Model(shape()))
    other = dataclasses.replace(shape(), segmenter="char")
    told = r"its segmenter is word, the shards' is char; shard with --segmenter word$"
    with pytest.raises(UserError, match=told):
        initialise_from(Model(other), str(folder))
    # Input byte reads the text, whichever rows it lies in.
    one, two = (dataclasses.replace(shape(input="byte"), segmenter=x) for x in ("word", "char"))
    folder = save_run(tmp_path / "bytes", Model(one))
    assert "encoder weights" in initialise_from(Model(two), str(folder))


def test_a_run_with_another_tokenizer_is_refused(tmp_path):
    theirs = shape(own=True, symbols=Symbols(1, 2, 3, 50), tokenizer="a.json")
    folder = save_run(tmp_path / "run", Model(theirs))
    ours = shape(own=True, symbols=Symbols(1, 2, 3, 60), tokenizer="b.json")
    told = "its tokenizer a.json has 50 tokens, this run's b.json 60.*set --model.tokenizer"
    with pytest.raises(UserError, match=told):
        initialise_from(Model(ours), str(folder))
    with pytest.raises(UserError, match=r"set --model\.input subword") as raised:
        initialise_from(Model(shape()), str(folder))
    assert "tokenizer" not in str(raised.value)  # the input is the reason
