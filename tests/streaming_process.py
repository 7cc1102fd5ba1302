"""A process of a run, for the tests of MappedDataset: python -m tests.streaming_process WHAT ...

wait KIND FOLDER [workers]       opens a set and reads some of it, says which number its shared
                                 memory has, and waits
ranks FOLDER STATE               one of several ranks (environment): reads an epoch with both kinds,
                                 compares them, also resumed from STATE; prints the state of rank 0
                                 in the middle of an epoch
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.utils.data import DataLoader

from elemdist.streaming_dataset import MappedDataset, joined, streaming

OPTIONS: dict[str, Any] = {
    "batch_size": 4, "shuffle": True, "shuffle_seed": 3, "num_canonical_nodes": 2,
}  # fmt: skip


def both(folder: str) -> tuple[Any, Any]:
    mapped = MappedDataset(local=folder, **OPTIONS)
    with joined():  # its own way of meeting is not safe twice on one port
        return streaming.StreamingDataset(local=folder, **OPTIONS), mapped


def same(stock: Any, mapped: Any) -> list[int]:
    """Checks that two samples after samples are equal; their numbers."""
    numbers = []
    for one, two in itertools.zip_longest(stock, mapped):
        assert list(one) == list(two)
        for name in one:
            assert np.array_equal(one[name], two[name]), name
        numbers.append(int.from_bytes(bytes(two["rows"][0]), "little"))
    return numbers


def wait(kind: str, folder: str, workers: int) -> None:
    make = MappedDataset if kind == "mapped" else streaming.StreamingDataset
    dataset = make(local=folder, **OPTIONS)
    if workers:
        samples = iter(DataLoader(dataset, batch_size=4, num_workers=workers))
    else:
        samples = iter(dataset)
    next(samples)
    print(dataset._shm_prefix_int, flush=True)
    while True:
        time.sleep(0.1)


def ranks(folder: str, state_path: str) -> None:
    for _ in range(50):  # meet and part; where a meeting can reach the one before, it hangs
        with joined():
            streaming.base.distributed.barrier()
    dist.init_process_group("gloo")  # a program's own, made later
    dist.barrier()
    dist.destroy_process_group()
    stock, mapped = both(folder)
    found: dict[str, Any] = {"epoch": same(stock, mapped)}
    some = itertools.islice(mapped, 6)
    found["begun"] = [int.from_bytes(bytes(sample["rows"][0]), "little") for sample in some]
    if mapped._unique_rank_world.is_leader:
        found["state"] = mapped.state_dict(6 * mapped._unique_rank_world.num_ranks, True)
    stock, mapped = both(folder)
    with open(state_path) as file:
        state = json.load(file)
    for dataset in (stock, mapped):
        dataset.load_state_dict(state)
    found["resumed"] = same(stock, mapped)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "wait":
        wait(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        ranks(sys.argv[2], sys.argv[3])
