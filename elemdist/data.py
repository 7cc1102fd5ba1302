"""Shards to batches: the order of the samples, the gather, and the thread that keeps ahead.

The order is a pure function of (seed, epoch, place), so it needs neither memory nor a plan at the
start, and a run that is resumed at step k, on any number of ranks, sees the very same global
batches. A batch leaves here unpadded, see elemdist/batch.py.
Shape suffixes: see elemdist/rows.py.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from elemdist.batch import Batch, Reading, unpad
from elemdist.batch_plan import BatchPlan
from elemdist.shards import ShardSet

__all__ = [
    "Batch",
    "Order",
    "evaluation_batches",
    "sample_ids",
    "shuffled",
    "training_steps",
    "unpad",
]

MASK_64 = (1 << 64) - 1
SAMPLES_AT_ONCE = 1 << 14  # of a rank, whose numbers are worked out together
AHEAD = 8  # batches whose shards an evaluation asks for


def mix(x: np.ndarray, key: int) -> np.ndarray:
    """A keyed 64-bit hash of uint64 numbers (splitmix64's finaliser)."""
    x = x + np.uint64(key & MASK_64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shuffled(places: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Where a random permutation of range(size) sends `places`, without ever building it.

    A Feistel network permutes the next power of four; numbers beyond `size` walk on until they
    fall inside. Each place costs a few hashes, whether `size` is ten or ten billion.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)

    def rounds(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & low
        for number in range(6):
            key = seed * 0x9E3779B97F4A7C15 + number * 0xD1342543DE82EF95
            left, right = right, left ^ (mix(right, key) & low)
        return (left << half) | right

    x = rounds(places.astype(np.uint64))
    outside = np.flatnonzero(x >= size)
    while len(outside):
        walked = rounds(x[outside])
        x[outside] = walked
        outside = outside[walked >= size]
    return x.astype(np.int64)


def sample_ids(places: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Sample numbers of the training order at `places` (int64, counted from the run's start).

    Every epoch is a permutation of all `size` samples, another one each time.
    """
    epochs = places // size
    ids = np.empty_like(places)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        ids[now] = shuffled(places[now] % size, size, seed * 1_000_003 + int(epoch))
    return ids


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


def steps_ahead(shards: ShardSet, order: Order, steps: range) -> Iterator[list[Passes]]:
    """(places, sample numbers), (B,) int64 each, of the micro-batches of many steps at once. Those
    shards that do not lie on this machine are then on their way."""
    # Batch by batch the shuffle would cost more than the gather.
    at_once = max(1, SAMPLES_AT_ONCE * order.plan.groups // order.plan.global_samples)
    for first in range(steps.start, steps.stop, at_once):
        some = range(first, min(first + at_once, steps.stop))
        places = [part for step in some for part in order.places(step)]
        ids = sample_ids(np.concatenate(places), shards.samples, order.seed)
        shards.prefetch(ids)
        parts = np.split(ids, np.cumsum([len(part) for part in places])[:-1])
        passes = list(zip(places, parts, strict=True))
        width = order.plan.passes
        yield [passes[place : place + width] for place in range(0, len(passes), width)]


def training_steps(
    shards: ShardSet, order: Order, steps: range, ahead: int = 2, reading: Reading | None = None
) -> Iterator[list[Batch]]:
    """For every step the micro-batches of this rank, gathered by a thread `ahead` steps ahead.

    `reading`: of the model's input, see elemdist/inputs.py; None: elementwise.
    """

    def produce() -> Iterator[list[Batch]]:
        coming = steps_ahead(shards, order, steps)
        now = next(coming, None)
        while now is not None:
            following = next(coming, None)  # before these are gathered: their shards take time
            for passes in now:
                batches = []
                for places, ids in passes:
                    rows_BNV, labels_BL = shards.gather(ids)
                    batches.append(unpad(rows_BNV, labels_BL, places, reading))
                yield batches
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
