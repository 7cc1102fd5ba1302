"""The largest micro-batch that fits the device: found by real steps of an engine made for that.

Every size is tried on the worst batch there can be, samples without padding. A size is only tried
when the ones before it, extrapolated, say that it fits on every rank: so no machine comes near to
swapping, and no rank is likely to run out of memory in a collective, where the others would wait
for it. Without ZeRO 3 and shared sequences a forward and backward pass without any collective comes
first all the same, so that running out of memory there only ends the search. With them it ends the
rank, and whoever started the ranks ends the others.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from elemdist.batch import Batch, unpad
from elemdist.batch_plan import BatchPlan, global_samples
from elemdist.config import TrainSettings
from elemdist.device_memory import Memory
from elemdist.engine import Ranks, build_engine, on_every
from elemdist.errors import AgreedError, UserError
from elemdist.inputs import open_reading
from elemdist.metric_writers import tell
from elemdist.model import Model
from elemdist.model_config import ModelConfig
from elemdist.passes import Pass, loss_of, passes_of
from elemdist.rows import DOC, special_row
from elemdist.sequence_parallel import Share
from elemdist.units import amount, counted

PASSES = 2  # of a try, so that sums of gradients are kept from one to the next


def find_micro_samples(
    settings: TrainSettings,
    config: ModelConfig,
    ranks: Ranks,
    share: Share | None = None,
    memory_bytes: int | None = None,
) -> int:
    """The largest batch.micro_samples that fits every rank's device, at most a group's part of the
    global batch. All ranks call it together, before the run's own engine takes memory; the random
    numbers of torch are others afterwards.

    Args:
        share: this rank's part in a group that shares sequences.
        memory_bytes: the most that this rank may take beside what it uses now; None: 92 % of a GPU
            in all, on a CPU its share of 80 % of what the machine has available.

    Raises:
        UserError: not even one sample fits, or memory ran out in a collective step.
    """
    groups = ranks.world_size // settings.sequence_parallel
    most = -(-global_samples(settings.batch, config.n * config.v) // groups)
    least(1, ranks.device)  # none has taken memory before all have looked
    memory = on_every(lambda: Memory(ranks.device, memory_bytes))
    trial = Trial(settings, config, ranks, share)
    try:
        return search(trial, memory, most)
    finally:
        trial.close()
        gc.collect()
        if memory.cuda:
            torch.cuda.empty_cache()


def search(trial: Trial, memory: Memory, most: int) -> int:
    """The largest size up to `most` that fits, equal on all ranks."""
    trial.check(1, 0)  # makes the optimizer's state
    trial.keep_spare(memory)
    memory.start()
    rest = memory.used()
    points = [(0, rest)]
    fits, fails, size = 0, most + 1, 1
    while size > fits:
        peak = trial.peak(size, fits, memory)
        limit = memory.limit()
        fitting = least(int(peak is not None and peak <= limit), trial.ranks.device)
        if trial.ranks.first:
            shown = "out of memory" if peak is None else f"{amount(peak)} of {amount(limit)}"
            verdict = "" if fitting else ", too much for some rank"
            tell(f"auto_micro_batch: {counted(size, 'sample')} a pass: {shown}{verdict}")
        if fitting and peak is not None:
            points.append((size, peak))
            fits = size
        elif not fits:
            raise AgreedError(
                "auto_micro_batch: not even one sample a pass fits; take --memory.checkpoint-every"
                " 1, --memory.tile-rows, a higher --zero.stage, or shard with a smaller --n"
            )
        else:
            fails = size
        upper = 2 * fits if fails > most else (fits + fails) // 2
        size = least(min(expected(points, limit), upper, most), trial.ranks.device)
    return fits


def expected(points: list[tuple[int, int]], limit: int) -> int:
    """The size at which the memory will reach `limit`, from (size, bytes) of smaller ones: in
    proportion to the last two, or to all, whichever grows faster."""
    (zero, rest), (before, low), (size, high) = points[0], points[-2], points[-1]
    slope = max((high - low) / (size - before), (high - rest) / (size - zero), 1.0)
    return size + int((limit - high) // slope)


def least(number: int, device: torch.device) -> int:
    """The smallest of all ranks' numbers."""
    tensor = torch.tensor(number, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return int(tensor)


class Trial:
    """An engine of its own on which micro-batches of any size are tried."""

    def __init__(
        self, settings: TrainSettings, config: ModelConfig, ranks: Ranks, share: Share | None
    ) -> None:
        self.settings, self.config, self.ranks, self.share = settings, config, ranks, share
        degree = settings.sequence_parallel
        groups = ranks.world_size // degree
        self.plan = BatchPlan(groups * PASSES, groups, degree, PASSES)
        self.reading = open_reading(config)
        self.engine = build_engine(Model(config, settings.memory), settings, self.plan, ranks)
        self.alone = settings.zero.stage < 3 and share is None  # no collective in a forward pass
        self.spare_bytes = 0

    def keep_spare(self, memory: Memory) -> None:
        """Measures what a step takes beyond a pass without collectives, to be kept free in them."""
        if self.alone:
            memory.start()
            self.passes_without_collectives(1)
            low = memory.peak()
            memory.start()
            self.check(1, 0)
            self.spare_bytes = max(0, memory.peak() - low)

    def peak(self, size: int, fits: int, memory: Memory) -> int | None:
        """The most bytes in a step of `size` samples a pass; None: a rank ran out of memory.
        `fits`: a size that does fit."""
        if self.alone and not self.passes_without_collectives(size):
            return None
        memory.start()
        self.check(size, fits)
        return memory.peak()

    def passes_without_collectives(self, size: int) -> bool:
        """Whether on every rank there is more than room for a forward and backward pass of `size`
        samples, so that a step of as many will not fail for lack of memory."""
        parameters = list(self.engine.module.parameters())
        more = size + 1 + size // 8

        def gradients(one: Pass) -> list[Any]:
            # Gradients that are asked for reach no parameter, so none of DeepSpeed's hooks runs.
            loss = self.loss(Bare(self.engine), one)
            return list(torch.autograd.grad(loss, parameters, allow_unused=True))

        def work() -> None:
            spare = torch.empty(self.spare_bytes, dtype=torch.uint8, device=self.ranks.device)
            kept = [gradients(one) for one in self.passes(more)]  # as a step keeps their sums
            del spare, kept

        return bool(least(int(has_room(work)), self.ranks.device))

    def check(self, size: int, fits: int) -> None:
        """A step of the engine. Raises UserError where this rank runs out of memory."""

        def work() -> None:
            for one in self.passes(size):
                self.engine.backward(self.loss(self.engine, one))
                self.engine.step()

        if not has_room(work):
            advice = f"set --batch.micro-samples {fits}" if fits else "not even one sample fits"
            raise UserError(
                f"auto_micro_batch: rank {self.ranks.rank} ran out of memory in a step of {size}"
                f" samples a pass; {advice}"
            )

    def passes(self, size: int) -> Iterator[Pass]:
        """The passes of a step with micro-batches of `size` samples."""
        group = self.ranks.rank // self.plan.sequence_parallel
        batches = [self.batch(size, number) for number in range(PASSES)]
        return passes_of(
            batches,
            0,
            self.plan,
            group,
            self.share,
            self.config,
            self.settings,
            self.ranks.device,
        )

    def batch(self, size: int, number: int) -> Batch:
        """Samples without padding, each one document of random letters."""
        config, random = self.config, np.random.default_rng(number)
        rows_BNV = random.integers(97, 123, (size, config.n, config.v)).astype(np.uint8)
        rows_BNV[:, 0] = special_row(DOC, config.v)
        labels_BL = np.zeros((size, len(config.labels))) if config.labels else None
        return unpad(rows_BNV, labels_BL, np.arange(size), self.reading)

    def loss(self, engine: Any, one: Pass) -> torch.Tensor:
        """The loss of a pass, 0-d, as in training."""
        return loss_of(engine, one, float(one.batch.text_bytes), self.share, 1)[0]

    def close(self) -> None:
        """Gives the engine's memory back."""
        self.engine.destroy()
        del self.engine


class Bare:
    """The module of an engine, called past the engine."""

    def __init__(self, engine: Any) -> None:
        self.module, self.device = engine.module, engine.device

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)


def has_room(work: Callable[[], None]) -> bool:
    """Does `work`; whether there was memory enough for it."""
    try:
        work()
    except (torch.OutOfMemoryError, MemoryError):
        return False
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch's words for it on a CPU
            raise
        return False
    return True
