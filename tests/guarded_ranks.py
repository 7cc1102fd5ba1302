"""Ranks whose steps go wrong, one DeepSpeed engine after the other: for tests/test_guard.py.

A case is {"options": command line, "steps": a word for each step}; see `step_losses` for the words.
The verdicts, and digests of all that training changes after each step, go to FOLDER/RANK.json.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PASSES, WIDTH = 2, 24


def build(argv: list[str]) -> tuple[Any, Any]:
    """A DeepSpeed engine around a tiny model with a GuardedAdamW, and its settings."""
    from elemdist.batch_plan import BatchPlan
    from elemdist.commandline import parse
    from elemdist.config import TrainSettings
    from elemdist.deepspeed_config import deepspeed_config
    from elemdist.deepspeed_import import import_deepspeed
    from elemdist.engine import Ranks, mend_whole_bf16
    from elemdist.guard import GuardedAdamW

    settings = parse(TrainSettings, [*argv, "--device", "cpu"], "test")
    rank, size = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(rank, rank, size, torch.device("cpu"))
    plan = BatchPlan(size * PASSES, size, 1, PASSES)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 8))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    engine, *_ = import_deepspeed().initialize(
        model=model,
        optimizer=GuardedAdamW(groups, lr=1e-2, fused=True),
        config=deepspeed_config(settings, plan, ranks),
        dist_init_required=False,
    )
    if engine.bfloat16_enabled() and settings.zero.stage == 0:
        mend_whole_bf16(engine.optimizer)
    return engine, settings


def step_losses(engine: Any, word: str, number: int) -> Iterator[Tensor]:
    """The losses of a step's passes; those of a bad step are as of another batch:

    good: nothing is wrong. nan: the first pass of rank 1 is not a number. inf: the last pass of
    rank 0 is infinite. spike: all are very large. told: the gradient is good, the loss is not.
    """
    rank, size, bad = dist.get_rank(), dist.get_world_size(), word != "good"
    for number_of_pass in range(PASSES):
        seed = ((number * PASSES + number_of_pass) * size + rank) * 2 + bad
        x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed))
        loss = engine(x.to(next(engine.module.parameters()).dtype)).float().square().mean()
        broken = {"nan": (math.nan, 1, 0), "inf": (math.inf, 0, PASSES - 1)}.get(word)
        if broken and broken[1:] == (rank, number_of_pass):
            loss = loss * broken[0]
        yield loss * 1e4 if word == "spike" else loss


def digest(engine: Any) -> dict[str, str]:
    """Of all that a step may change on this rank: weights; masters, moments and step count."""
    weights = [getattr(p, "ds_tensor", p).detach() for p in engine.module.parameters()]
    state = [
        tensor.detach()
        for master, found in engine.basic_optimizer.state.items()
        if found  # DeepSpeed looks up, and so makes, an empty one
        for tensor in (master, *(found[key] for key in sorted(found)))
    ]
    parts = {"weights": weights, "state": state}
    return {
        name: hashlib.sha256(b"".join(t.float().numpy().tobytes() for t in tensors)).hexdigest()
        for name, tensors in parts.items()
    }


def run_case(options: list[str], words: list[str]) -> dict[str, Any]:
    from elemdist.guard import FEWEST, Guard

    engine, settings = build(options)
    guard = Guard(settings.guard)
    guard.load_state({"norms": [1.0] * FEWEST, "bad_steps": 0})
    result: dict[str, Any] = {"verdicts": [], "norms": [], "digests": [digest(engine)]}
    good = 0
    for word in words:
        for loss in step_losses(engine, word, good):
            engine.backward(loss)
            if not engine.is_gradient_accumulation_boundary():
                engine.step()
        norm, verdict = guard.step(engine, math.inf if word == "told" else None)
        good += word == "good"
        result["verdicts"].append([verdict.action, verdict.message])
        result["norms"].append(norm)
        result["digests"].append(digest(engine))
    engine.destroy()
    return result


def work(cases: dict[str, dict[str, Any]], folder: Path) -> None:
    """A rank."""
    from elemdist.config import TrainSettings
    from elemdist.engine import join_ranks

    ranks = join_ranks(TrainSettings(device="cpu"))
    found = {name: run_case(case["options"], case["steps"]) for name, case in cases.items()}
    (folder / f"{ranks.rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
