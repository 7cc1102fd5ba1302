"""Samples per second of our loader against stock StreamingDataset, on the same shards.

    .venv/bin/python tests/bench/bench_loader.py [--megabytes 256] [--rounds 5]

All read whole shuffled epochs in one process and hand over batches: (B, n, v) uint8 arrays, and
"in training" the unpadded tensors that the model takes, out of the prefetching thread. The rounds
alternate; the table shows the medians, and the median and range of the ratio within a round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.shard import ShardSettings
from data_prep.shard import run as make_shards
from elemdist.data import Order, sample_ids, training_steps
from elemdist.shards import ShardSet
from elemdist.streaming_compat import import_streaming

BATCH = 32


def corpus(path: Path, megabytes: int) -> None:
    rng = np.random.default_rng(0)
    words = [
        "".join(map(chr, rng.integers(97, 123, length))) for length in rng.integers(1, 14, 5000)
    ]
    with path.open("w") as file:
        for _ in range(megabytes):
            file.write(" ".join(rng.choice(words, 130_000)) + "\n")


def ours(shards: ShardSet) -> int:
    ids = sample_ids(np.arange(shards.samples), shards.samples, 1)
    for first in range(0, shards.samples, BATCH):
        shards.gather(ids[first : first + BATCH])
    return shards.samples


def as_in_training(shards: ShardSet) -> int:
    steps = shards.samples // BATCH
    for _ in training_steps(shards, Order(BATCH, BATCH, 0, 1, 1), range(steps)):
        pass
    return steps * BATCH


def stock(folder: str, samples: int) -> Callable[[], int]:
    streaming = import_streaming()
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)

    def epoch() -> int:
        batch = []
        for sample in dataset:
            batch.append(sample["rows"])
            if len(batch) == BATCH:
                np.stack(batch)
                batch = []
        return samples

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=64, help="text to make shards of")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus(Path(folder, "made.txt"), options.megabytes)
        out = str(Path(folder, "set"))
        make_shards(ShardSettings([f"{folder}/made.txt"], out, packing="packed", quiet=True))
        shards = ShardSet(out)
        peers: dict[str, Callable[[], int]] = {
            "ours, gathered": lambda: ours(shards),
            "ours, in training": lambda: as_in_training(shards),
            "StreamingDataset": stock(out, shards.samples),
        }
        rates: dict[str, list[float]] = {name: [] for name in peers}
        for peer in peers.values():
            peer()  # warm the page cache
        for _ in range(options.rounds):
            for name, peer in peers.items():
                start = time.perf_counter()
                done = peer()
                rates[name].append(done / (time.perf_counter() - start))
    size = shards.n * shards.v / 1e6
    print(f"{shards.samples:,} samples of {shards.n} x {shards.v} bytes, batches of {BATCH}")
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates["StreamingDataset"], strict=True)]
        print(
            f"{name:18} {statistics.median(values):10,.0f} samples/s"
            f" {statistics.median(values) * size:8,.0f} MB/s"
            f"  x{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        )


if __name__ == "__main__":
    main()
