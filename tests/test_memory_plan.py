"""The memory of a model's state by formula against the tensors of real DeepSpeed engines."""

from __future__ import annotations

import gc
import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from elemdist.attention import Segments
from elemdist.batch_plan import BatchPlan
from elemdist.config import TrainSettings
from elemdist.model import Model
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import ModelSettings
from elemdist.ports import free_port
from elemdist.run_settings import ZeroSettings
from launcher import memory_plan
from launcher.memory_plan import Case

RANKS, ROWS = 2, 8
CONFIG = ModelConfig(ROWS, 8, "mlm", resolved(ModelSettings(width=256, layers=3), 8))
PLAN = BatchPlan(2 * RANKS, RANKS, 1, 2)  # two passes, so that sums of gradients are kept
RUNS = [(stage, precision, "none") for stage in range(4) for precision in ("fp32", "bf16")]
RUNS += [(1, "bf16", "cpu"), (2, "fp32", "cpu"), (2, "bf16", "cpu"), (3, "bf16", "cpu")]


def settings_of(stage: int, precision: str, offload: str) -> TrainSettings:
    zero = ZeroSettings(stage=stage, offload_optimizer=offload)  # type: ignore[arg-type]
    return TrainSettings(device="cpu", precision=precision, zero=zero)  # type: ignore[arg-type]


def storages(tensors: list[Any]) -> dict[int, int]:
    """Address -> bytes of the memory of tensors, each once."""
    found = {}
    for x in tensors:
        storage = x.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    return found


def all_tensors() -> list[Any]:
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [x for x in gc.get_objects() if isinstance(x, torch.Tensor)]
        found += [x.grad for x in found if x.is_leaf and x.grad is not None]
        found += [x.grad_accum for x in found if getattr(x, "grad_accum", None) is not None]
    return found


def weights_of(engine: Any) -> dict[int, int]:
    parameters = list(engine.module.parameters())
    pieces = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
    return storages([*parameters, *pieces])


def state_of(engine: Any) -> dict[int, int]:
    """Moments and fp32 masters."""
    basic = engine.basic_optimizer
    moments = [x for state in basic.state.values() for x in state.values() if torch.is_tensor(x)]
    groups = [x for group in basic.param_groups for x in group["params"]]
    masters = getattr(engine.optimizer, "fp32_partitioned_groups_flat", [])
    return storages([*moments, *groups, *masters])


def measure(engine: Any, before: dict[int, int]) -> dict[str, float]:
    """Bytes of the engine's tensors after the first of two passes of a second step."""
    rows = torch.randint(97, 123, (ROWS, 8), dtype=torch.uint8)
    segments = Segments(torch.tensor([0, ROWS], dtype=torch.int32), [ROWS])
    batch = (rows, torch.arange(ROWS), segments, torch.arange(ROWS), rows)
    for number in range(3):
        nats_M, _ = engine(*batch)
        loss = nats_M.mean()
        gathered = sum(weights_of(engine).values())
        engine.backward(loss)
        if number < 2:
            engine.step()
    del nats_M, loss
    weights, state = weights_of(engine), state_of(engine)
    known = before | weights | state
    rest = [size for place, size in storages(all_tensors()).items() if place not in known]
    buckets = 4 * engine.zero_reduce_bucket_size()
    state_only = sum(size for place, size in state.items() if place not in weights)
    return {
        "weights": sum(weights.values()),
        "gathered": gathered,
        "optimizer": state_only,
        "rest": sum(size for size in rest if size != buckets),
        "buckets": sum(size for size in rest if size == buckets),
    }


def rank_main(rank: int, port: int, out: str) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    from elemdist.deepspeed_config import deepspeed_config
    from elemdist.engine import build_engine, join_ranks

    ranks = join_ranks(TrainSettings(device="cpu"))
    found = []
    for run in RUNS:
        settings = settings_of(*run)
        before = storages(all_tensors())
        engine = build_engine(Model(CONFIG), settings, PLAN, ranks)
        zero = deepspeed_config(settings, PLAN, ranks)["zero_optimization"]
        found.append({"run": run, "zero": zero, "found": measure(engine, before)})
        engine.destroy()
        del engine
    if rank == 0:
        Path(out).write_text(json.dumps(found))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], Any]:
    """What each kind of run holds on the first of two ranks, and its ZeRO configuration."""
    out = tmp_path_factory.mktemp("engines") / "found.json"
    mp.spawn(rank_main, (free_port(), str(out)), RANKS)
    return {tuple(item["run"]): item for item in json.loads(out.read_text())}


def case_of(run: tuple[Any, ...], zero: dict[str, Any]) -> Case:
    sizes = [p.numel() for p in Model(CONFIG).parameters()]
    threshold = zero.get("stage3_param_persistence_threshold", 0)
    return Case(
        config=CONFIG,
        settings=settings_of(*run),
        parameters=sum(sizes),
        small=sum(size for size in sizes if size <= threshold),
        ranks=RANKS,
        micro_samples=1,
        passes=2,
        bf16=run[1] == "bf16",
        zero=zero,
    )


@pytest.mark.parametrize("run", RUNS)
def test_the_state_is_what_engines_hold(engines, run):
    case, found = case_of(run, engines[run]["zero"]), engines[run]["found"]
    parts = memory_plan.on_device(case)
    device, host = memory_plan.optimizer(case)
    tensor = 4 * 256 * 1024  # the largest: one across a cut is kept whole, offload has copies
    assert found["weights"] == pytest.approx(parts["weights"], abs=10_000)
    assert found["optimizer"] == pytest.approx(device + host, abs=10_000)
    assert found["rest"] == pytest.approx(sum(memory_plan.gradients(case)), abs=3 * tensor)
    gathered = found["gathered"] - found["weights"]
    assert found["buckets"] + gathered <= memory_plan.communication(case) + 10_000
    if case.stage == 3:
        buckets = 4 * case.zero["reduce_bucket_size"]
        assert gathered == pytest.approx(memory_plan.communication(case) - buckets, abs=10_000)


# The arithmetic for more ranks than run here, on top of what is compared above.


def small_case(**changes: Any) -> Case:
    zero = {"reduce_bucket_size": 1000, "overlap_comm": True}
    zero |= {"stage3_max_reuse_distance": 10**9, "stage3_prefetch_bucket_size": 10**6}
    case = Case(CONFIG, settings_of(1, "bf16", "none"), 10**6, 10**4, 32, 4, 2, True, zero)
    return replace(case, **changes)


def test_the_longest_sample_is_the_last_that_fits():
    case = small_case()
    memory = 3e9
    longest = memory_plan.longest_sample(case, memory)
    assert memory_plan.total(case.with_sample(longest)) <= memory
    assert memory_plan.total(case.with_sample(longest + 1)) > memory
    assert memory_plan.longest_sample(case, 1e9) == 0
    settings = replace(case.settings, sequence_parallel=8)
    shared = memory_plan.longest_sample(replace(case, settings=settings), memory)
    assert 4 < shared / longest < 8  # the table of positions grows, and what is exchanged comes on


def test_a_sample_of_another_length_has_its_own_table_of_positions():
    longer = small_case().with_sample(2 * ROWS)
    assert longer.parameters == 10**6 + ROWS * CONFIG.model.width
    sizes = [sum(p.numel() for p in Model(replace(CONFIG, n=n)).parameters()) for n in (8, 16)]
    assert sizes[1] - sizes[0] == longer.parameters - 10**6


def test_more_ranks_leave_less_of_what_a_stage_shards():
    for stage, parts in enumerate([(), ("optimizer",), ("optimizer", "gradients")]):
        settings = settings_of(stage, "bf16", "none")
        few, many = (small_case(ranks=r, settings=settings) for r in (2, 64))
        one, other = memory_plan.on_device(few), memory_plan.on_device(many)
        changed = tuple(
            part for part in ("weights", "optimizer", "gradients") if other[part] < one[part]
        )
        assert changed == parts
