"""The formula of activations against the bytes that real passes hold."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elemdist.model import Model
from elemdist.model_settings import ModelSettings
from elemdist.ports import free_port
from elemdist.run_settings import MemorySettings
from elemdist.sequence_parallel import Share, open_groups
from launcher.activations import Pass, kept_bytes, largest_temporary
from tests.test_flops import KINDS, element_type, rows_of, shape


class Living(TorchDispatchMode):
    """Counts the bytes of the tensors that operations made and that are still there; what `model`
    holds is no one's making."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.now = self.most = 0
        held = [x for parameter in model.parameters() for x in (parameter, parameter.grad)]
        self.known = {x.untyped_storage()._cdata: 0 for x in held}

    def gone(self, key: int) -> None:
        self.now -= self.known.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self.known:
                    self.known[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, key)
        self.most = max(self.most, self.now)
        return made


def measured(run: Pass, samples: int, share: Share | None = None) -> tuple[int, int]:
    """(bytes kept after the forward pass, the most until the end of the backward pass but for the
    gradients of the parameters) of a model."""
    config = run.config
    model = Model(config, run.memory).train()
    count = run.rows * (share.size if share else 1)
    rows_TV, position_T, segments = rows_of(config, [count // samples] * samples)
    segments = replace(segments, share=share)
    mine = segments.mine
    rows = rows_TV[mine.start : mine.stop], position_T[mine.start : mine.stop], segments
    select_M = torch.arange(0, run.rows, run.rows // run.predicted)[: run.predicted]
    target_MV = torch.randint(97, 123, (run.predicted, config.slots), dtype=element_type(config))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Living(model) as living:
        made = model(*rows) if config.labels else model(*rows, select_M, target_MV)[0]
        kept = living.now
        made.sum().backward()
    return kept, living.most


CASES = {
    "whole": MemorySettings(),
    "every block": MemorySettings(checkpoint_every=1),
    "every other": MemorySettings(checkpoint_every=2),
    "tiles": MemorySettings(tile_rows=96, tile_loss_rows=24),
    "all": MemorySettings(checkpoint_every=1, tile_rows=96, tile_loss_rows=24),
}


def run_of(kind: str, memory: MemorySettings, objective: str | None = None) -> Pass:
    config = shape(kind, objective)
    model = config.model
    config = replace(
        config, model=ModelSettings(**vars(model) | {"layers": 4, "width": 96, "dropout": 0.0})
    )
    return Pass(config, memory, rows=768, predicted=128, c=4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "canine input"])
def test_the_formula_is_what_a_pass_holds(kind, case):
    run = run_of(kind, CASES[case])
    kept, most = measured(run, samples=6)
    assert kept_bytes(run) == pytest.approx(kept, rel=0.015)
    assert kept_bytes(run) + largest_temporary(run) == pytest.approx(most, rel=0.1)


@pytest.mark.parametrize("case", ["whole", "every block"])
@pytest.mark.parametrize(
    ("kind", "wide", "pooling"),
    [
        ("bert", False, "mean"),
        ("bert", False, "doc"),
        ("modern", False, "last"),
        ("canine", False, "doc"),
        ("ablations", False, "mean"),
        ("ablations", True, "mean"),
        ("ablations", True, "doc"),
        ("subword", True, "mean"),
    ],
)
def test_a_classifier(kind, wide, pooling, case):
    run = run_of(kind, CASES[case], "classify")
    config = replace(run.config, wide=wide, pooling=pooling)
    if mixing := config.model.ablation.mixing:  # so many that they matter
        ablation = replace(config.model.ablation, mixing=100 * mixing)
        config = replace(config, model=replace(config.model, ablation=ablation))
    run = replace(run, config=config, predicted=1, samples=48)
    kept, most = measured(run, samples=48)
    assert kept_bytes(run) == pytest.approx(kept, rel=0.02)
    assert kept_bytes(run) + largest_temporary(run) == pytest.approx(most, rel=0.1)


def test_masks_of_dropout():
    run = run_of("bert", MemorySettings())
    dropping = replace(run.config, model=replace(run.model, dropout=0.1))
    other = replace(run, config=dropping)
    masks = kept_bytes(other) - kept_bytes(run)
    # On a CPU a mask is a float where a GPU keeps a byte.
    assert measured(other, 6)[0] - measured(run, 6)[0] == pytest.approx(4 * masks, rel=0.02)


def test_half_the_precision_takes_half_but_for_what_is_fp32():
    run = run_of("bert", MemorySettings(tile_loss_rows=24))
    half = kept_bytes(replace(run, c=2)) / kept_bytes(run)
    assert 0.5 < half < 0.52


SHARED = [(kind, case) for kind in ("bert", "modern", "canine") for case in ("whole", "all")]


def shared_run(kind: str, case: str) -> Pass:
    return replace(run_of(kind, CASES[case]), shared=True)


def rank_main(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    share = open_groups(2)
    found = [measured(shared_run(*item), 12, share) for item in SHARED]
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


def test_ranks_that_share_the_rows(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    mp.spawn(rank_main, (free_port(), str(out)), 2)
    for item, (kept, most) in zip(SHARED, json.loads(out.read_text()), strict=True):
        run = shared_run(*item)
        assert kept_bytes(run) == pytest.approx(kept, rel=0.05), item
        peak = kept_bytes(run) + largest_temporary(run)
        exchange = 3 * run.c * run.rows * run.model.width  # of queries, keys and values
        assert 0.9 * peak <= most <= 1.1 * (peak + exchange), item
