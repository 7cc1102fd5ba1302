"""Samples per second of our loader against its peers, on the same samples.

    elemdist bench loader [--megabytes 256] [--rounds 5] [--quick] [--json FILE]

All hand over shuffled batches of 64 in one process: (B, n, v) uint8 arrays, or "in training" the
unpadded tensors that the model takes, out of the prefetching thread. The peers: streaming's own
StreamingDataset, litdata's TokensLoader, and the bare gather of a numpy map over one big file.
Before they are measured, their epochs are compared as sets of samples.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from data_prep.shard import ShardSettings
from data_prep.shard import run as make_shards
from elemdist.batch_plan import BatchPlan
from elemdist.data import SAMPLES_AT_ONCE, Order, sample_ids, training_steps
from elemdist.shards import ShardSet
from elemdist.streaming_dataset import MappedDataset, streaming
from tests.bench.rounds import Peer, Rates, made_text, parser, report

BATCH = 64
Epoch = Callable[[], Iterator[np.ndarray]]  # batches (B, n, v) or (B, n * v)
STOCK, TOKENS, BARE = "StreamingDataset", "TokensLoader", "bare memmap gather"


def gathered(shards: ShardSet) -> Epoch:
    def epoch() -> Iterator[np.ndarray]:
        for begin in range(0, shards.samples, SAMPLES_AT_ONCE):
            end = min(begin + SAMPLES_AT_ONCE, shards.samples)
            ids = sample_ids(np.arange(begin, end), shards.samples, 1)
            for first in range(0, len(ids), BATCH):
                yield shards.gather(ids[first : first + BATCH])[0]

    return epoch


def in_training(shards: ShardSet) -> Peer:
    steps = shards.samples // BATCH

    def peer() -> float:
        for _ in training_steps(shards, Order(BatchPlan(BATCH, 1, 1, 1), 0, 1), range(steps)):
            pass
        return steps * BATCH

    return peer


def bare(shards: ShardSet, path: Path) -> Epoch:
    """Every sample in one file; a gather of random ones is all that happens."""
    with path.open("wb") as file:
        for first in range(0, shards.samples, BATCH):
            ids = np.arange(first, min(first + BATCH, shards.samples))
            file.write(shards.blocks(ids).data)
    samples = np.memmap(path, np.uint8, "r", shape=(shards.samples, shards.n * shards.v))
    order = np.random.default_rng(1).permutation(shards.samples)

    def epoch() -> Iterator[np.ndarray]:
        for first in range(0, len(order), BATCH):
            yield samples[order[first : first + BATCH]]

    return epoch


def stock(folder: str) -> Epoch:
    dataset = streaming.StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)

    def epoch() -> Iterator[np.ndarray]:
        batch: list[np.ndarray] = []
        for sample in dataset:
            batch.append(sample["rows"])
            if len(batch) == BATCH:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)

    return epoch


def mapped(folder: str) -> Epoch:
    dataset = MappedDataset(local=folder, shuffle=True, batch_size=BATCH, batched=True)
    return lambda: (batch["rows"] for batch in dataset)


def tokens(shards: ShardSet, folder: Path) -> Epoch:
    """litdata's fastest reader, of fixed blocks of tokens; here a token is a byte."""
    os.environ.setdefault("DISABLE_VERSION_CHECK", "1")
    from litdata import StreamingDataset, TokensLoader
    from litdata.streaming.cache import Cache

    size = shards.n * shards.v
    cache = Cache(str(folder), chunk_bytes=64 << 20, item_loader=TokensLoader(block_size=size))
    for number in range(shards.samples):
        block = shards.blocks(np.array([number]))[0].copy()
        cache._add_item(number, torch.from_numpy(block))
    cache.done()
    cache.merge()
    dataset = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=size), shuffle=True)

    def epoch() -> Iterator[np.ndarray]:
        batch: list[torch.Tensor] = []
        for sample in dataset:
            batch.append(sample)
            if len(batch) == BATCH:
                yield torch.stack(batch).numpy()
                batch = []
        if batch:
            yield torch.stack(batch).numpy()

    return epoch


def content(epoch: Epoch) -> list[bytes]:
    """The samples of an epoch in an order that does not depend on how they came."""
    return sorted(hashlib.md5(bytes(sample)).digest() for batch in epoch() for sample in batch)


def counted(epoch: Epoch) -> Peer:
    return lambda: float(sum(len(batch) for batch in epoch()))


def main() -> None:
    options = parser(__doc__, rounds=5)
    options.add_argument("--megabytes", type=float, default=64, help="of text (default 64)")
    chosen = options.parse_args()
    size, rounds = (0.5, 2) if chosen.quick else (chosen.megabytes, chosen.rounds)
    with tempfile.TemporaryDirectory() as folder:
        made_text(Path(folder, "made.txt"), size)
        out = str(Path(folder, "set"))
        make_shards(ShardSettings([f"{folder}/made.txt"], out, packing="packed", quiet=True))
        shards = ShardSet(out)
        epochs: dict[str, Epoch] = {
            "ours, gathered": gathered(shards),
            "MappedDataset": mapped(out),
            BARE: bare(shards, Path(folder, "bare")),
            STOCK: stock(out),
            TOKENS: tokens(shards, Path(folder, "tokens")),
        }
        expected = content(epochs[BARE])
        for name, epoch in epochs.items():
            # streaming gives some samples twice to fill its last batches
            if set(content(epoch)) != set(expected):
                raise SystemExit(f"{name} gives other samples")
        peers: dict[str, Peer] = {name: counted(epoch) for name, epoch in epochs.items()}
        peers["ours, in training"] = in_training(shards)
        table = Rates(
            f"{shards.samples:,} samples of {shards.n} x {shards.v} bytes, batches of {BATCH}",
            "samples/s",
            [
                *(
                    (name, base, least)
                    for name in ("ours, gathered", "MappedDataset")
                    for base, least in ((STOCK, 50), (TOKENS, 3), (BARE, 0.5))
                ),
                ("ours, in training", STOCK, None),
            ],
        )
        table.measure(peers, rounds)
        report([table], chosen.json)


if __name__ == "__main__":
    main()
