from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from elemdist.engine import load_data_only


class Poison:
    """Unpickled by a loader that runs code, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.target,))


def test_loading_a_checkpoint_executes_nothing_in_it(tmp_path):
    target, file = tmp_path / "executed", tmp_path / "poisoned.pt"
    torch.save({"step": 1, "extra": Poison(target)}, file)
    with pytest.raises(pickle.UnpicklingError):
        load_data_only(str(file))
    assert not target.exists()
    torch.load(file, weights_only=False)
    assert target.exists(), "the poison does not work, so this test shows nothing"


def test_tensors_and_numbers_are_loaded(tmp_path):
    file = tmp_path / "plain.pt"
    torch.save({"step": 1, "weight": torch.ones(2)}, file)
    assert load_data_only(str(file))["weight"].tolist() == [1.0, 1.0]
