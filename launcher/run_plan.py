"""The run of a plan: how the ranks share the batch, memory, work, hours, the longest samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from elemdist.batch_plan import BatchPlan, plan_batch
from elemdist.deepspeed_config import config_text, deepspeed_config, use_bf16
from elemdist.engine import Ranks
from elemdist.errors import UserError
from elemdist.flops import GPUS, step_flops
from elemdist.model_config import ModelConfig
from elemdist.sequence_parallel import check_split
from elemdist.units import counted
from launcher.memory_plan import (
    Case,
    in_host,
    longest_sample,
    on_device,
    predicted_rows,
    sample_rows,
    total,
)
from launcher.plan import PlanSettings

GPU = torch.device("cuda")
TILE_ROWS, TILE_LOSS_ROWS = 16384, 4096


def case_of(settings: PlanSettings, config: ModelConfig, sizes: dict[str, int]) -> Case:
    """The case of these settings. Raises UserError where no run can be so."""
    check_split(config.model.heads, settings.sequence_parallel)
    batch = batch_of(settings, config)
    zero = configuration(settings, batch)["zero_optimization"]
    threshold = zero.get("stage3_param_persistence_threshold", 0)
    return Case(
        config=config,
        settings=settings,
        parameters=sum(sizes.values()),
        small=sum(size for size in sizes.values() if size <= threshold),
        ranks=settings.world_size,
        micro_samples=batch.micro_samples,
        passes=batch.passes,
        bf16=use_bf16(settings, GPU),
        zero=zero,
    )


def batch_of(settings: PlanSettings, config: ModelConfig) -> BatchPlan:
    """How the ranks share a step. Raises UserError where they cannot."""
    sample_bytes = config.n * config.v
    world_size = settings.world_size
    return plan_batch(settings.batch, sample_bytes, world_size, settings.sequence_parallel)


def configuration(settings: PlanSettings, batch: BatchPlan) -> dict[str, Any]:
    """DeepSpeed's, of a rank on a GPU. Raises UserError where it cannot be."""
    # Only the device is looked at: nothing is started.
    return deepspeed_config(settings, batch, Ranks(0, 0, settings.world_size, GPU))


def deepspeed_text(settings: PlanSettings, config: ModelConfig) -> str:
    """The same as JSON."""
    return config_text(configuration(settings, batch_of(settings, config)))


def memory_lines(settings: PlanSettings, case: Case) -> list[str]:
    """The memory of a rank by part."""
    parts, most = on_device(case), settings.memory_bytes
    precision = "bf16" if case.bf16 else "fp32"
    found = [f"{'memory':20}{'GB':>8} a rank; {precision}, ZeRO {case.stage}, flash attention"]
    found += [f"{part:20}{size / 1e9:8.2f}" for part, size in parts.items()]
    whole = total(case)
    verdict = "fits" if whole <= most else "does not fit"
    found.append(f"{'all':20}{whole / 1e9:8.2f} of {most / 1e9:g}: {verdict}")
    if host := in_host(case):
        ranks = min(settings.gpus_per_node, case.ranks)
        found.append(
            f"{'offloaded':20}{host * ranks / 1e9:8.2f} in the memory of a machine with"
            f" {counted(ranks, 'rank')}"
        )
    return found


def remedies(settings: PlanSettings) -> Iterator[list[tuple[str, PlanSettings]]]:
    """What takes less memory, those first that cost least: each a list of growing changes, which
    starts from the settings that the one before it has ended with."""
    micro = settings.batch.micro_samples
    fewer = [micro >> halvings for halvings in range(1, micro.bit_length())]
    yield [(f"--batch.micro-samples {m}", with_(settings, "batch", micro_samples=m)) for m in fewer]
    settings = with_(settings, "batch", micro_samples=1)
    if settings.memory.checkpoint_every != 1:
        settings = with_(settings, "memory", checkpoint_every=1)
        yield [("--memory.checkpoint-every 1", settings)]
    if not (settings.memory.tile_rows and settings.memory.tile_loss_rows):
        tiles = {"tile_rows": TILE_ROWS, "tile_loss_rows": TILE_LOSS_ROWS}
        settings = with_(settings, "memory", **tiles)
        words = f"--memory.tile-rows {TILE_ROWS} --memory.tile-loss-rows {TILE_LOSS_ROWS}"
        yield [(words, settings)]
    stages = [
        (f"--zero.stage {stage}", with_(settings, "zero", stage=stage))
        for stage in range(settings.zero.stage + 1, 4)
        if settings.world_size > 1
    ]
    yield stages
    settings = stages[-1][1] if stages else settings
    if settings.zero.stage and settings.zero.offload_optimizer == "none":
        settings = with_(settings, "zero", offload_optimizer="cpu")
        yield [("--zero.offload-optimizer cpu", settings)]
    yield [
        (f"--sequence-parallel {ranks}", replace(settings, sequence_parallel=ranks))
        for ranks in range(settings.sequence_parallel + 1, settings.world_size + 1)
    ]


def with_(settings: PlanSettings, group: str, **values: object) -> PlanSettings:
    """The settings with other values in one of their groups."""
    return replace(settings, **{group: replace(getattr(settings, group), **values)})


def remedy_lines(settings: PlanSettings, config: ModelConfig, sizes: dict[str, int]) -> list[str]:
    """What to change until it fits, and how much each change, with those before it, leaves."""
    found = ["what takes less, each with those above it:"]
    least = total(case_of(settings, config, sizes))
    for changes in remedies(settings):
        line = ""
        for words, changed in changes:
            try:
                size = total(case_of(changed, config, sizes))
            except UserError:  # the batch or the heads do not divide so
                continue
            if size < least:
                least, line = size, f"  {words}: {size / 1e9:.2f} GB"
            if size <= settings.memory_bytes:
                return [*found, line + ", fits"]
        found += [line] if line else []
    return [*found, "  all of it is not enough: take more GPUs, larger ones, or a smaller n"]


@dataclass(frozen=True)
class Work:
    """What a step computes.

    Attributes:
        flops, bytes: of a step. seconds: that it takes if a GPU reaches `mfu` of `peak` TFLOPS.
    """

    flops: float
    bytes: int
    peak: float
    seconds: float


def work_of(settings: PlanSettings, case: Case) -> Work:
    """What a step of these settings computes, at its most: full samples."""
    config, batch = case.config, batch_of(settings, case.config)
    rows = sample_rows(config)
    sample = step_flops(config, [rows], predicted_rows(settings, rows))
    flops, step_bytes = sample * batch.global_samples, batch.global_samples * config.n * config.v
    gpu = GPUS[settings.gpu]
    peak = settings.peak_tflops or (gpu.bf16 if case.bf16 else gpu.fp32)
    seconds = flops / (settings.mfu * peak * 1e12 * case.ranks)
    return Work(flops, step_bytes, peak, seconds)


def work_lines(settings: PlanSettings, case: Case) -> list[str]:
    """The arithmetic of a step, and the time of the run."""
    work = work_of(settings, case)
    return [
        f"work: {work.flops:.3g} FLOPs a step, {work.flops / work.bytes:.3g} a byte, forward and"
        " backward",
        f"time: {duration(work.seconds * settings.steps)} for {counted(settings.steps, 'step')},"
        f" {work.bytes / work.seconds / 1e6:.3g} MB/s, if {counted(case.ranks, 'GPU')} reach"
        f" {settings.mfu:.0%} of {work.peak:g} TFLOPS each (--mfu)",
    ]


def duration(seconds: float) -> str:
    """Seconds in words, in the unit that suits them."""
    for name, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {name}"
    return f"{seconds:.2g} seconds"


def longest_line(settings: PlanSettings, case: Case) -> str:
    """The longest sample that would fit."""
    n = longest_sample(case, settings.memory_bytes)
    if not n:
        return "longest n: none fits, not even a sample of one row"
    shared = settings.sequence_parallel
    on = f" on {shared} ranks" if shared > 1 else ""
    return (
        f"longest n: {n:,} rows ({n * case.config.v:,} bytes) in one sample a pass{on},"
        " with these settings"
    )


def run_lines(
    settings: PlanSettings, config: ModelConfig, sizes: dict[str, int]
) -> tuple[list[str], bool]:
    """What is told of the run, and whether it fits.

    Raises:
        UserError: no run can be so: the batch or the heads do not divide, or ZeRO cannot.
    """
    case = case_of(settings, config, sizes)
    fits = total(case) <= settings.memory_bytes
    found = ["batch: " + batch_of(settings, config).chain(config.n * config.v)]
    found += memory_lines(settings, case)
    if not fits:
        found += remedy_lines(settings, config, sizes)
    return [*found, *work_lines(settings, case), longest_line(settings, case)], fits
