"""A checkpoint of one engine gives the same training in any other: ranks, ZeRO, offload."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.checkpoint_ranks import Setup, resume, run, train_and_save


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(setup) -> (run folder, losses after the checkpoint); each made once."""
    made: dict[Setup, tuple[Path, list[float]]] = {}

    def make(setup: Setup) -> tuple[Path, list[float]]:
        if setup not in made:
            folder = tmp_path_factory.mktemp("saved") / "run"
            found = run(folder.parent, train_and_save, setup, run=folder)
            assert found["reason"] is None
            # back to the checkpoint, in an engine that has been trained on: nothing is left of it
            assert found["again"] == found["losses"]
            made[setup] = folder, found["losses"]
        return made[setup]

    return make


def whole_state(run_dir: Path) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds, by kind and parameter, put together out of the parts."""
    (folder,) = (run_dir / "checkpoints").glob("step-*")
    state = dict(load_file(folder / "model.safetensors"))
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for path in (folder / "state").iterdir():
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                name, first = key.rsplit("@", 1)
                parts.setdefault(name, []).append((int(first), file.get_tensor(key)))
    for name, found in parts.items():
        found.sort(key=lambda part: part[0])
        ends = itertools.accumulate(len(part) for _, part in found)
        assert [first for first, _ in found] == [0, *ends][:-1], f"{name} overlaps or has a gap"
        state[name] = torch.cat([part for _, part in found])
        assert len(state[name]) == state[name.split("/")[1]].numel()
    return state


SAME = [
    *(Setup(2, stage) for stage in range(4)),
    *(Setup(2, stage, bf16=True) for stage in range(4)),
    Setup(2, 2, offload="cpu"),
    Setup(2, 3, offload="cpu", parameters="cpu"),
    Setup(2, 3, bf16=True, offload="cpu", backbone="albert"),
]
OTHER = [
    (Setup(2, 0), Setup(1, 3)),
    (Setup(2, 1), Setup(4, 2)),
    (Setup(2, 2), Setup(1, 0)),
    (Setup(2, 3), Setup(1, 1)),
    (Setup(4, 3), Setup(2, 0)),
    (Setup(1, 0), Setup(2, 3)),
    (Setup(2, 2, offload="cpu"), Setup(2, 3)),
    (Setup(2, 1), Setup(2, 3, offload="cpu", parameters="cpu")),
    (Setup(2, 1, bf16=True), Setup(1, 2, bf16=True)),
    (Setup(2, 2, bf16=True), Setup(2, 3, bf16=True)),
    (Setup(2, 3, bf16=True), Setup(1, 0, bf16=True)),
]


@pytest.mark.parametrize("setup", SAME, ids=str)
def test_a_resumed_run_repeats_the_undisturbed_one_bit_by_bit(setup, saved, tmp_path):
    run_dir, losses = saved(setup)
    found = run(tmp_path, resume, setup, run=run_dir, copy=tmp_path / "copy")
    assert found["losses"] == losses
    assert found["reason"] is None
    assert found["global_steps"] == 7
    assert found["state"] == {"place": [4, "x"]}
    assert len(set(losses)) == 3


@pytest.mark.parametrize(("before", "after"), OTHER, ids=str)
def test_another_engine_goes_on_with_the_same_state(before, after, saved, tmp_path):
    run_dir, losses = saved(before)
    found = run(tmp_path, resume, after, run=run_dir, copy=tmp_path / "copy")
    state, theirs = whole_state(tmp_path / "copy"), whole_state(run_dir)
    assert state.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(state[name], tensor), name
    # moments and masters, and not the zeros and the weights that an engine starts with
    assert sum(name.startswith("exp_avg") for name in state) > 50
    assert all(t.any() for name, t in state.items() if name.startswith("exp_avg_sq/encoder.blocks"))
    # The sums over ranks have another order, which bf16 rounds.
    close = {"rel": 1e-2} if before.bf16 else {"rel": 0, "abs": 1e-6}
    assert found["losses"] == pytest.approx(losses, **close)


@pytest.mark.skipif(
    "ELEMDIST_TEST_NVME" not in os.environ and not Path("/usr/include/libaio.h").exists(),
    reason="libaio-dev is missing; install it, then ELEMDIST_TEST_NVME=1 make test",
)
@pytest.mark.parametrize("parameters", ["none", "nvme"])
def test_a_state_on_a_fast_disk_is_one_like_others(parameters, saved, tmp_path):
    """In a model whose tensors are large enough to be swapped."""
    words = {"offload": "nvme", "parameters": parameters, "disk": str(tmp_path)}
    setup = Setup(1, 3, bf16=True, width=256, **words)
    run_dir, losses = saved(setup)
    other = Setup(1, 2, bf16=True, width=256)
    for again in (setup, other):
        copy = tmp_path / str(again)
        found = run(tmp_path, resume, again, run=run_dir, copy=copy)
        state, theirs = whole_state(copy), whole_state(run_dir)
        assert all(torch.equal(state[name], tensor) for name, tensor in theirs.items())
        assert found["losses"] == pytest.approx(losses, rel=0 if again == setup else 1e-2)


def test_masters_are_more_than_the_16_bit_weights(saved):
    """Else a resume that forgot them would pass all tests above."""
    run_dir, _ = saved(Setup(2, 2, bf16=True))
    state = whole_state(run_dir)
    name = "encoder.norm.weight"
    assert state[name].dtype == torch.bfloat16
    assert torch.equal(state[f"master/{name}"].bfloat16(), state[name].view(-1))
    assert not torch.equal(state[f"master/{name}"], state[name].float().view(-1))
