"""Ranks that work through cases, one engine after the other: for the tests of the engine.

A case is the command line of a run and what to do with it; its result is that of every rank, or the
message of a UserError.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.forkserver import run_ranks

STEPS, SAMPLES, N, V = 3, 8, 16, 8
COMMON = [
    "--model.layers", "2", "--model.width", "32", "--model.dropout", "0", "--device", "cpu",
    "--batch.global-samples", str(SAMPLES), "--batch.micro-samples", "2", "--optim.lr", "1e-2",
]  # fmt: skip


def run_cases(
    cases: dict[str, dict[str, Any]], folder: Path, ranks: int = 2, timeout_s: float = 300
) -> dict[str, Any]:
    """Name -> result of the cases, which the same processes work through one after the other."""
    target = folder / "results.json"
    run_ranks(work, ranks, folder, cases, target, timeout_s=timeout_s)
    return json.loads(target.read_text())


def train(argv: list[str], few_rows: bool = False) -> dict[str, Any]:
    """Losses and norms of a few steps on made rows, what DeepSpeed reads of its configuration, and
    its records of collectives; `few_rows`: rank 1 has far fewer of them."""
    import torch
    import torch.distributed as dist
    from deepspeed.comm import comm

    from elemdist.batch_plan import plan_batch
    from elemdist.commandline import parse
    from elemdist.config import TrainSettings
    from elemdist.engine import Ranks, build_engine
    from elemdist.guard import Guard
    from elemdist.model import Model
    from elemdist.model_config import model_config
    from elemdist.objectives import targets_of
    from tests.deepspeed_reads import fields_read

    settings = parse(TrainSettings, [*COMMON, *argv], "test")
    rank, size = dist.get_rank(), dist.get_world_size()
    plan = plan_batch(settings.batch, N * V, size)
    config = model_config(settings, N, V)
    torch.manual_seed(1)
    ranks = Ranks(rank, rank, size, torch.device("cpu"))
    with fields_read() as read:
        engine = build_engine(Model(config, settings.memory), settings, plan, ranks)
        losses, norms = [], []
        for step in range(STEPS):
            total = torch.zeros(())
            for number in range(plan.passes):
                micro = plan.samples(plan.micro_batch(rank, number))
                batch = made_batch(step * SAMPLES, micro, few_rows and rank == 1)
                target = targets_of(batch, config, 0.5, 1)
                place = (batch.position_T, batch.segments)
                nats_M, _ = engine(target.rows_TV, *place, target.select_M, target.target_MV)
                loss = nats_M.sum() / (SAMPLES * N * V)
                engine.backward(loss * size * plan.passes)
                if not engine.is_gradient_accumulation_boundary():
                    engine.step()
                total += loss.detach()
            dist.all_reduce(total)
            losses.append(float(total))
            norms.append(Guard(settings.guard).step(engine)[0])
    engine.destroy()
    records = dict(comm.comms_logger.comms_dict)
    return {"losses": losses, "norms": norms, "read": sorted(read), "records": records}


def made_batch(first: int, micro: range, short: bool) -> Any:
    """Samples of random letters, each of its own length; `short`: of a few rows only."""
    import numpy as np

    from elemdist.batch import unpad
    from elemdist.rows import DOC, PAD

    rows_BNV = np.full((len(micro), N, V), PAD, np.uint8)
    for row, sample in enumerate(micro):
        random = np.random.default_rng(first + sample)
        length = 2 if short else int(random.integers(N // 2, N + 1))
        rows_BNV[row, :length] = random.integers(97, 123, (length, V))
        rows_BNV[row, 0, 0] = DOC
    return unpad(rows_BNV, None, first + np.arange(micro.start, micro.stop))


@contextmanager
def address_space(more_bytes: int) -> Iterator[None]:
    """Has the system give this process so much memory more and nothing beyond."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + more_bytes, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def find(
    argv: list[str], n: int, memory_mb: list[int], address_space_mb: list[int] | None = None
) -> int:
    """The micro-batch that is found where the ranks may take so much memory more, each;
    `address_space_mb`: so much in truth, in the passes without collectives."""
    import torch
    import torch.distributed as dist

    from elemdist import auto_micro_batch
    from elemdist.commandline import parse
    from elemdist.config import TrainSettings
    from elemdist.engine import Ranks
    from elemdist.model_config import model_config
    from elemdist.sequence_parallel import open_groups

    settings = parse(TrainSettings, [*COMMON, *argv], "test")
    rank, size = dist.get_rank(), dist.get_world_size()
    ranks = Ranks(rank, rank, size, torch.device("cpu"))
    share = open_groups(settings.sequence_parallel)
    config = model_config(settings, n, V)
    trial, may_take = auto_micro_batch.Trial, memory_mb[rank] * 1_000_000
    whole = trial.passes_without_collectives

    def scarce(self: Any, size: int) -> bool:
        with address_space(address_space_mb[rank] * 1_000_000):
            return whole(self, size)

    try:
        if address_space_mb is not None:
            trial.passes_without_collectives = scarce
        return auto_micro_batch.find_micro_samples(settings, config, ranks, share, may_take)
    finally:
        trial.passes_without_collectives = whole


def work(cases: dict[str, dict[str, Any]], target: Path) -> None:
    """A rank; the first one writes the results."""
    import torch.distributed as dist

    from elemdist.config import TrainSettings
    from elemdist.engine import join_ranks
    from elemdist.errors import UserError

    ranks = join_ranks(TrainSettings(device="cpu"))
    results: dict[str, Any] = {}
    for name, case in cases.items():
        print(f"== {name}", flush=True)
        action = find if "n" in case else train
        try:
            mine = action(**case)
        except UserError as error:
            mine = {"error": str(error)}
        results[name] = [None] * ranks.world_size
        dist.all_gather_object(results[name], mine)
    if ranks.first:
        target.write_text(json.dumps(results))
    dist.destroy_process_group()
