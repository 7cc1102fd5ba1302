"""A StreamingDataset that maps its shards, for programs that already use StreamingDataset.

    dataset = MappedDataset(local="shards/news/train", batch_size=64, shuffle=True, batched=True)
    for batch in StreamingDataLoader(dataset, batch_size=None):
        ...  # batch["rows"]: (64, n, v) uint8

Order, partition over ranks and workers, and resumption are streaming's own. But a batch is gathered
from memory maps in one go, where streaming opens, reads and decodes a file for every sample. Epochs
in a process and then in DataLoader workers hang, as they do with streaming: use one of the two.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from elemdist import stale_memory
from elemdist.errors import UserError
from elemdist.remote import public
from elemdist.shards import ShardSet
from elemdist.streaming_compat import import_streaming

streaming: Any = import_streaming()

STATE_KEY = "elemdist_sets"
BATCHES_AHEAD = 64  # whose shards are asked for before they are needed


@functools.cache
def meeting_place() -> Any:
    """The store where the ranks of this run meet; kept, so that it outlives all process groups.

    A store that ends with its group and begins again on the same port lets a fast rank meet the old
    one: it reads addresses that are gone, and the run hangs.
    """
    store, _, _ = next(rendezvous("env://"))
    return store


meetings = itertools.count()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The ranks' process group, made for this time where the program has not made one.

    As StreamingDataset would make one, NCCL with a GPU and gloo without.
    """
    distributed = streaming.base.distributed
    ranks = distributed.get_world_size()
    if ranks == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo",
        store=dist.PrefixStore(f"streaming_dataset_{next(meetings)}", meeting_place()),
        rank=distributed.get_rank(),
        world_size=ranks,
    )
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def clean_shared_memory() -> None:
    """Removes what dead runs left; the first rank of a machine does, before any takes its own."""
    if streaming.base.distributed.get_local_rank() == 0:
        stale_memory.remove_stale()
        stale_memory.pass_over()
    streaming.base.distributed.barrier()


class MappedDataset(streaming.StreamingDataset):
    """StreamingDataset over sets made by `elemdist shard`: the same samples in the same order.

    Attributes:
        sets: the shard set of each stream.
        batched: whether an iteration yields whole batches.
    """

    def __init__(
        self,
        *,
        batched: bool = False,
        verify: bool = False,
        cache: str | None = None,
        **options: Any,
    ) -> None:
        """Opens the sets and compares the sizes of their files.

        Args:
            batched: yield batches of batch_size samples (fewer at the end of an epoch) instead of
                single ones: {"rows": (B, n, v) uint8}, and with labels "labels": (B, L) uint8, the
                bitmaps, which np.unpackbits() turns into label bits. For a DataLoader with
                batch_size=None.
            verify: compare the hash of every file on this machine first; its ranks share the work.
            cache: the folder for what is fetched or unpacked, as of ShardSet.
            options: of StreamingDataset. A `remote` is mapped where it lies, or fetched into
                `cache`; only its index goes to `local`.

        Raises:
            UserError: a stream is no shard set, is not whole, or differs in shape from the others.
        """
        if options.get("cache_limit"):
            raise UserError("MappedDataset has no cache_limit: shards stay in its cache folder")
        with joined():
            clean_shared_memory()
            super().__init__(**options)
        world = self._unique_rank_world
        stale_memory.hold(self._shm_prefix_int, world.is_local_leader)
        self.batched = batched
        paths = [os.path.join(s.remote or s.local, s.split).rstrip("/") for s in self.streams]
        self.sets = [ShardSet(path, cache) for path in paths]
        first = self.sets[0]
        for shards, samples in zip(self.sets, self.samples_per_stream, strict=True):
            if (shards.n, shards.v, shards.labels) != (first.n, first.v, first.labels):
                raise UserError(
                    f"{public(shards.path)} has not the n, v and labels of {public(first.path)}"
                )
            if shards.samples != samples:
                raise UserError(
                    f"{public(shards.path)} has {shards.samples:,} samples, the index in `local`"
                    f" {samples:,}: remove that folder"
                )
            if verify:
                shards.verify(world.rank_of_node, world.ranks_per_node)
        self._epochs_begun = 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """This worker's samples of the next epoch, or of the rest of a resumed one."""
        self._epochs_begun = begun = self._epochs_begun + 1
        self._unique_worker_world = self._unique_rank_world.detect_workers()
        self._parallel_worker_world = self._parallel_rank_world.detect_workers()
        epoch, sample_in_epoch = self._resume_incr_epoch()
        ids = self._get_work(epoch, sample_in_epoch)
        ids = ids[ids != -1]  # which fill up the last batches
        ahead = BATCHES_AHEAD * self.batch_size
        for first in range(0, len(ids), self.batch_size):
            if first % ahead == 0:
                self._prefetch(ids[first : first + 2 * ahead])
            batch = self._gather(ids[first : first + self.batch_size])
            columns = list(batch.items())
            each = range(len(batch["rows"]))
            for sample in (
                [batch]
                if self.batched
                else ({name: column[place] for name, column in columns} for place in each)
            ):
                yield sample
                if self._epochs_begun != begun:  # as in streaming, a new epoch ends this one
                    return

    def _by_set(self, ids: np.ndarray) -> Iterator[tuple[ShardSet, np.ndarray, np.ndarray]]:
        """Each set with the places in `ids` that are its, and their numbers in it."""
        if len(self.sets) == 1:
            yield self.sets[0], np.arange(len(ids)), ids
            return
        set_of = np.searchsorted(self.sample_offset_per_stream, ids, side="right") - 1
        for number in np.unique(set_of).tolist():
            here = np.flatnonzero(set_of == number)
            yield self.sets[number], here, ids[here] - self.sample_offset_per_stream[number]

    def _prefetch(self, ids: np.ndarray) -> None:
        for shards, _, numbers in self._by_set(ids):
            shards.prefetch(numbers)

    def _gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of these samples, each (B, ...), in streaming's order and encoding."""
        first = self.sets[0]
        if len(self.sets) == 1:
            block = first.blocks(ids)
        else:
            parts = [(here, shards.blocks(numbers)) for shards, here, numbers in self._by_set(ids)]
            block = np.empty((len(ids), parts[0][1].shape[1]), np.uint8)
            for here, part in parts:
                block[here] = part
        rows_BNV = block[:, -first.n * first.v :].reshape(len(ids), first.n, first.v)
        if not first.labels:
            return {"rows": rows_BNV}
        return {"labels": block[:, : -first.n * first.v], "rows": rows_BNV}

    def _names(self) -> list[dict[str, str]]:
        return [{"fingerprint": s.fingerprint, "path": public(s.path)} for s in self.sets]

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """streaming's state, and which sets it belongs to."""
        return super().state_dict(num_samples, from_beginning) | {STATE_KEY: self._names()}

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        """Resumes at a state, on any number of ranks; one of a stock StreamingDataset, too.

        Raises:
            UserError: the state belongs to other sets.
        """
        state = dict(obj)
        then, now = state.pop(STATE_KEY, None), self._names()
        if then is None:
            warnings.warn("the state does not say which data it belongs to", stacklevel=2)
        elif [one["fingerprint"] for one in then] != [one["fingerprint"] for one in now]:
            told, here = (
                ", ".join(f"{one['path']} (fingerprint {one['fingerprint']})" for one in names)
                for names in (then, now)
            )
            raise UserError(f"the state belongs to {told}; this data set is {here}")
        super().load_state_dict(state)
