"""Shared sequences through DeepSpeed's engine: after some steps, the weights of one rank.

The ranks have different numbers of rows, so of tiles, in every step: under ZeRO 3, where no
parameter stays, each call of a module is a collective, and none may be one rank's alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from elemdist.batch import Batch
from elemdist.blocks import Block
from elemdist.deepspeed_import import import_deepspeed
from elemdist.heads import Scored
from elemdist.model import Model
from elemdist.run_settings import MemorySettings
from tests.sequence_ranks import TILED, Case, Ranks, check_close, loss_of, share_of
from tests.test_model import build

# Documents of a batch: many rows, few, and fewer than ranks.
BATCHES = [(1, 3, 2, 12, 5), (4, 2), (12, 12, 12, 11, 1), (1,)]
STEPS, LR = 3, 0.05


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    started = Ranks(2, tmp_path_factory.mktemp("two"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    started = Ranks(4, tmp_path_factory.mktemp("four"))
    yield started
    started.close()


def batch_of(case: Case, step: int, group: int) -> Batch:
    lengths = BATCHES[(step + 2 * group) % len(BATCHES)]
    return Case(lengths=lengths, input=case.input).batch(seed=10 * step + group)


def started(case: Case, stage: int) -> tuple[Any, Any]:
    """(DeepSpeed, an engine of it), with plain gradient descent, so that weights show gradients."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    deepspeed = import_deepspeed()
    model = build(case.shape(), case.memory)
    shared = case.variant == "albert"
    leaves = [Scored] if shared else [Block, Scored]
    if stage == 3:
        deepspeed.utils.set_z3_leaf_modules(model, leaves, raise_if_not_found=False)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=LR),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
        },
        dist_init_required=False,
    )
    return deepspeed, engine


def weights(model: Model, deepspeed: Any = None) -> dict[str, np.ndarray]:
    found = {}
    for name, parameter in model.named_parameters():
        whole = deepspeed.zero.GatheredParameters([parameter]) if deepspeed else nullcontext()
        with whole:
            found[name] = parameter.detach().double().numpy().copy()
    return found


def trained(case: Case, stage: int) -> dict[str, np.ndarray]:
    """The weights after some steps; each group of ranks has batches of its own."""
    share = share_of(case.size)
    deepspeed, engine = started(case, stage)
    for step in range(STEPS):
        batch = batch_of(case, step, dist.get_rank() // case.size)
        loss, _ = loss_of(engine, batch, share)
        engine.backward(loss / 10 * dist.get_world_size())  # DeepSpeed takes the mean over ranks
        engine.step()
    return weights(engine.module, deepspeed if stage == 3 else None)


def trained_alone(case: Case, groups: int) -> dict[str, np.ndarray]:
    model = build(case.shape(), case.memory)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for step in range(STEPS):
        optimizer.zero_grad()
        for group in range(groups):
            (loss_of(model, batch_of(case, step, group), None)[0] / 10).backward()
        optimizer.step()
    return weights(model)


def check(ranks: Ranks, case: Case, stage: int) -> None:
    """Each rank's weights are those of one rank alone; they have moved far from the first ones."""
    expected = trained_alone(case, len(ranks.pipes) // case.size)
    first = weights(build(case.shape()))
    moved = {name: np.linalg.norm(first[name] - expected[name]) for name in first}
    assert min(moved.values()) > 1e-4, moved
    for found in ranks(trained, case, stage):
        changes = {name: found[name] - first[name] for name in first}
        check_close(changes, {name: expected[name] - first[name] for name in first}, 1e-3)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_share_a_sequence(two, stage):
    check(two, Case("bert"), stage)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("variant", ["modern canine", "autoregressive decoder"])
def test_two_groups_of_two_ranks(four, variant, stage):
    check(four, Case(variant), stage)


@pytest.mark.parametrize("variant", ["bert", "albert"])
def test_classification(four, variant):
    check(four, Case(variant, "classify", "mean"), 3)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("variant", ["bert", "canine", "autoregressive decoder"])
def test_ranks_with_different_numbers_of_tiles(two, four, variant, size):
    check(two if size == 1 else four, Case(variant, memory=TILED, size=size), 3)


@pytest.mark.parametrize("size", [1, 2])
def test_blocks_that_share_weights(two, four, size):
    memory = MemorySettings(checkpoint_every=1, tile_loss_rows=2)
    check(two if size == 1 else four, Case("albert", memory=memory, size=size), 3)
