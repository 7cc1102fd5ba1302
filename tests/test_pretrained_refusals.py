"""Folders of transformers that do not fit a run, or are no whole models: one line each."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from elemdist.checkpoint import initialise_from
from elemdist.errors import UserError
from elemdist.model import Model
from elemdist.model_config import Symbols
from elemdist.model_settings import AblationSettings
from tests.pretrained_folders import save, shape, state_of


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("options", "changes", "parts"),
    [
        ({}, {"width": 64, "layers": 3},
         ["its model.layers is 2, this run's is 3", "its model.width is 32, this run's is 64",
          "set --model.layers 2 --model.width 32"]),
        ({}, {"heads": 4}, ["--model.heads 8"]),
        ({}, {"feedforward": 64}, ["--model.feedforward 128"]),
        ({}, {"norm": "pre"}, ["--model.norm post"]),
        ({}, {"positions": "rotary"}, ["--model.positions learned"]),
        ({}, {"activation": "gelu_tanh"}, ["--model.activation gelu"]),
        ({"hidden_act": "gelu_new"}, {}, ["--model.activation gelu_tanh"]),
        ({}, {"biases": False}, ["--model.biases true"]),
        ({}, {"embedding_width": 16}, ["--model.embedding-width 0"]),
        ({}, {"backbone": "albert"}, ["--model.backbone bert"]),
        ({}, {"ablation": AblationSettings(first_projection="block_diagonal")},
         ["--model.ablation.first-projection dense"]),
        ({}, {"n": 65}, ["knows 64 positions", "n=65", "shard with --n 64"]),
        ({}, {"input": "byte", "n": 9}, ["knows 64 positions", "asks for 72", "with --n 8"]),
        ({"hidden_act": "relu"}, {}, ["hidden_act is relu", "another checkpoint"]),
        ({"layer_norm_eps": 1e-5}, {}, ["layer_norm_eps is 1e-05", "here it is 1e-12"]),
        ({"is_decoder": True}, {}, ["is_decoder is True"]),
        ({"position_embedding_type": "relative_key"}, {"layers": 1},
         ["position_embedding_type is relative_key", "--model.layers 2", "another checkpoint"]),
        ({}, {"own": True, "symbols": Symbols(1, 2, 3, 49)}, ["50 tokens", "tokenizer 49"]),
        ({}, {"own": True, "symbols": Symbols(50, 2, 3, 52)}, ["50 tokens", "--model.tokenizer"]),
        ({"tie_word_embeddings": False}, {"own": True}, ["--model.tied false"]),
    ],
)  # fmt: skip
def test_a_model_of_another_shape_is_refused_in_one_line(tmp_path, options, changes, parts):
    folder = save(tmp_path / "theirs", **options)
    model = Model(shape(**changes))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        initialise_from(model, f"hf:{folder}")
    text = str(caught.value)
    assert text.startswith(f"init_from hf:{folder}: ")
    assert "\n" not in text
    for part in parts:
        assert part in text
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name], tensor), name


@pytest.mark.parametrize(
    ("kind", "options", "changes", "part"),
    [
        ("Albert", {"num_hidden_groups": 2}, {}, "num_hidden_groups is 2, here it is 1"),
        ("Albert", {"inner_group_num": 2}, {}, "inner_group_num is 2, here it is 1"),
        ("Albert", {"embedding_size": 8}, {}, "set --model.embedding-width 8"),
        ("Canine", {"downsampling_rate": 4}, {}, "set --model.canine.rate 4"),
        ("Canine", {"num_hash_buckets": 32}, {"own": True}, "set --model.canine.buckets 32"),
        ("Canine", {}, {"n": 9, "own": True}, "shard with --n 8"),
    ],
)
def test_what_albert_and_canine_have_besides_is_compared_too(
    tmp_path, kind, options, changes, part
):
    folder = save(tmp_path / "theirs", kind, **options)
    with pytest.raises(UserError) as caught:
        initialise_from(Model(shape(kind, **changes)), f"hf:{folder}")
    assert part in str(caught.value)


class Trap:
    """Something that runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_in_it_is_refused_and_not_executed(tmp_path):
    folder = save(tmp_path / "theirs")
    (folder / "model.safetensors").unlink()
    trap = {"weight": Trap(tmp_path / "trapped")}
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "trapped").exists(), "the trap does not work"
    (tmp_path / "trapped").unlink()
    torch.save(trap, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read as weights alone"):
        initialise_from(Model(shape()), f"hf:{folder}")
    assert not (tmp_path / "trapped").exists()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def torn_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "be')


def no_object(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def another_kind(folder: Path) -> None:
    edit_config(folder, model_type="gpt2")


def no_size(folder: Path) -> None:
    edit_config(folder, hidden_size="wide")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def torn_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def a_weight_is_missing(folder: Path) -> None:
    state = state_of(folder)
    del state["encoder.layer.1.attention.self.key.bias"]
    save_file(state, folder / "model.safetensors")


def another_shape_than_it_says(folder: Path) -> None:
    state = state_of(folder)
    state["embeddings.position_embeddings.weight"] = torch.zeros(63, 32)
    save_file(state, folder / "model.safetensors")


def a_part_outside(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "model.safetensors")
    index = {"weight_map": {"embeddings.LayerNorm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("harm", "part"),
    [
        (no_config, "no config.json"),
        (torn_config, "is damaged"),
        (no_object, "is damaged"),
        (another_kind, "model_type is gpt2; take a checkpoint of bert, albert, canine"),
        (no_size, "hidden_size is wide"),
        (no_weights, "neither model.safetensors nor pytorch_model.bin"),
        (torn_weights, "cannot be read as weights"),
        (a_weight_is_missing, "no weight 'encoder.layer.1.attention.self.key.bias'"),
        (another_shape_than_it_says, "[63, 32] there, by its config.json it would be [64, 32]"),
        (a_part_outside, "points out of the folder"),
    ],
)
def test_a_harmed_folder_is_refused_in_one_line(tmp_path, harm, part):
    folder = save(tmp_path / "theirs")
    harm(folder)
    with pytest.raises(UserError) as caught:
        initialise_from(Model(shape()), f"hf:{folder}")
    assert part in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
