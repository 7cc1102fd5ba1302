"""Shards to batches: the order of the samples, the gather, and the thread that keeps ahead.

The order is a pure function of (seed, place in the run), see elemdist/shuffle.py and
elemdist/mixture.py, so a run that is resumed at step k, on any number of ranks, sees the very same
global batches. A batch leaves here unpadded, see elemdist/batch.py.
Shape suffixes: see elemdist/rows.py.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from elemdist.batch import Batch, Reading, unpad
from elemdist.batch_plan import BatchPlan
from elemdist.mixture import Mixture, as_mixture
from elemdist.shards import ShardSet
from elemdist.shuffle import sample_ids, shuffled

__all__ = [
    "Batch",
    "Order",
    "evaluation_batches",
    "sample_ids",
    "shuffled",
    "training_steps",
    "unpad",
]

SAMPLES_AT_ONCE = 1 << 14  # of a rank, whose numbers are worked out together
AHEAD = 8  # batches whose shards an evaluation asks for


@dataclass(frozen=True)
class Order:
    """Which samples a group of ranks takes in every micro-batch of every step."""

    plan: BatchPlan
    group: int
    seed: int

    def places(self, step: int) -> list[np.ndarray]:
        """Places in the run, int64, of each of this group's micro-batches of `step`."""
        first = step * self.plan.global_samples
        parts = [
            self.plan.samples(self.plan.micro_batch(self.group, number))
            for number in range(self.plan.passes)
        ]
        return [np.arange(first + part.start, first + part.stop) for part in parts]


Passes = list[tuple[np.ndarray, np.ndarray]]


def steps_ahead(mixture: Mixture, order: Order, steps: range) -> Iterator[list[Passes]]:
    """(places, sample numbers), (B,) int64 each, of the micro-batches of many steps at once. Those
    shards that do not lie on this machine are then on their way."""
    # Batch by batch the shuffle would cost more than the gather.
    at_once = max(1, SAMPLES_AT_ONCE * order.plan.groups // order.plan.global_samples)
    for first in range(steps.start, steps.stop, at_once):
        some = range(first, min(first + at_once, steps.stop))
        places = [part for step in some for part in order.places(step)]
        ids = mixture.sample_ids(np.concatenate(places), order.seed)
        mixture.prefetch(ids)
        parts = np.split(ids, np.cumsum([len(part) for part in places])[:-1])
        passes = list(zip(places, parts, strict=True))
        width = order.plan.passes
        yield [passes[place : place + width] for place in range(0, len(passes), width)]


def training_batch(
    mixture: Mixture, places: np.ndarray, ids: np.ndarray, reading: Reading | None
) -> Batch:
    """The batch of the samples `ids` at `places` of the run, with the source of each."""
    rows_BNV, labels_BL = mixture.gather(ids)
    batch = unpad(rows_BNV, labels_BL, places, reading)
    return replace(batch, source_B=torch.from_numpy(mixture.source_of(ids)))


def training_steps(
    shards: ShardSet | Mixture,
    order: Order,
    steps: range,
    ahead: int = 2,
    reading: Reading | None = None,
) -> Iterator[list[Batch]]:
    """For every step the micro-batches of this rank, gathered by a thread `ahead` steps ahead.

    `reading`: of the model's input, see elemdist/inputs.py; None: elementwise.

    Raises:
        UserError: a shard cannot be had any more, or a tokenizer refuses the text.
    """
    mixture = as_mixture(shards)

    def produce() -> Iterator[list[Batch]]:
        coming = steps_ahead(mixture, order, steps)
        now = next(coming, None)
        while now is not None:
            following = next(coming, None)  # before these are gathered: their shards take time
            for passes in now:
                yield [training_batch(mixture, *one, reading) for one in passes]
            now = following

    ready: queue.Queue[list[Batch] | BaseException | None] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: list[Batch] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batches in produce():
                put(batches)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, who raises it
            put(error)

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


def evaluation_batches(
    shards: ShardSet,
    micro_samples: int,
    rank: int,
    world_size: int,
    samples: int = 0,
    reading: Reading | None = None,
) -> Iterator[tuple[Batch, int]]:
    """(batch, number of its samples that count) over the first `samples` (0: all) in order, as
    the model's input reads them (None: elementwise).

    Every rank gets the same number of batches, as ZeRO-3 asks for: one that has run out repeats
    the last sample, and none of it counts.
    """
    total = min(samples, shards.samples) if samples else shards.samples
    passes = -(-total // (micro_samples * world_size))
    for number in range(passes):
        first = (number * world_size + rank) * micro_samples
        shards.prefetch(np.arange(first, min(first + AHEAD * micro_samples, total)))
        ids = np.arange(first, first + micro_samples)
        counted = int((ids < total).sum())
        ids = ids[:counted] if counted else np.array([total - 1])
        rows_BNV, labels_BL = shards.gather(ids)
        yield unpad(rows_BNV, labels_BL, ids, reading), counted
