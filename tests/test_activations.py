"""The formula of activations against the bytes that real passes hold."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elemdist.model import Model
from elemdist.model_settings import ModelSettings
from elemdist.run_settings import MemorySettings
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


def measured(run: Pass, samples: int) -> tuple[int, int]:
    """(bytes kept after the forward pass, the most until the end of the backward pass but for the
    gradients of the parameters) of a model."""
    config = run.config
    model = Model(config, run.memory).train()
    rows = rows_of(config, [run.rows // samples] * samples)
    select_M = torch.arange(0, run.rows, run.rows // run.predicted)[: run.predicted]
    target_MV = torch.randint(97, 123, (run.predicted, config.slots), dtype=element_type(config))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Living(model) as living:
        nats_M, _ = model(*rows, select_M, target_MV)
        kept = living.now
        nats_M.sum().backward()
    return kept, living.most


CASES = {
    "whole": MemorySettings(),
    "every block": MemorySettings(checkpoint_every=1),
    "every other": MemorySettings(checkpoint_every=2),
    "tiles": MemorySettings(tile_rows=96, tile_loss_rows=24),
    "all": MemorySettings(checkpoint_every=1, tile_rows=96, tile_loss_rows=24),
}


def run_of(kind: str, memory: MemorySettings) -> Pass:
    config = shape(kind)
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
    expected = kept_bytes(run)
    peak = expected + largest_temporary(run)
    print(
        f"{kind:22} {case:12} kept {kept / 1e6:7.2f} {expected / kept:5.3f} peak {most / 1e6:7.2f} {peak / most:5.3f}"
    )
    assert kept == pytest.approx(expected, rel=0.1)
