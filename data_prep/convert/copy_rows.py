"""Samples of shard sets as they are into other shards: their rows are never taken apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xxhash

from data_prep.convert import choose
from data_prep.convert.choose import Choice, chosen
from data_prep.convert.copy_plan import writer_of
from data_prep.documents import Part
from data_prep.plan import Done, Job, SetPart
from data_prep.readers import row_text
from data_prep.readers.mds_files import MdsFolder, opened
from data_prep.settings import ShardSettings
from elemdist.rows import DOC, PAD, SEP

LABELLED = 1 << 20  # bits of label bitmaps unpacked at a time

# Counts that the rows show; of text_bytes those that were not dropped.
SHOWN = ("documents", "text_bytes", "rows", "padding_rows", "samples", "separator_rows",
         "split_documents")  # fmt: skip

Progress = Callable[[int], None]


class Copier:
    """Gathers samples into a block, and writes and counts every one that is full.

    Attributes:
        before: slot 0 of the sample in front of the next block; None: not known yet.
        counts: those of Packer.finish(). samples_of_item: that an item has, but for the last one.
    """

    def __init__(self, job: Job, settings: ShardSettings) -> None:
        self._names = job.names or ()
        self._writer = writer_of(settings, len(self._names), job.item.number, job.sets[0])
        self._head = self._writer.sample_bytes - settings.n * settings.v
        self._n, self._v = settings.n, settings.v
        shape = (self._writer.samples_per_shard, self._writer.sample_bytes)
        self._block = np.empty(shape, np.uint8)
        self._filled = 0
        self.before: int | None = None
        self.samples_of_item = len(self._block) * max(1, settings.item_mb // settings.shard_mb)
        self.counts: Counter[str] = Counter()
        self._hot = np.zeros(len(self._names), np.int64)

    def room(self, most: int) -> np.ndarray:
        """Where the next samples go, at most so many: (samples, bytes) uint8; then comes took()."""
        return self._block[self._filled : self._filled + most]

    def took(self, samples: int) -> None:
        """So many samples were written where room() said."""
        self._filled += samples
        if self._filled == len(self._block):
            self._flush()

    def finish(self) -> SetPart:
        """Writes what is left; what became of the samples."""
        if self._filled:
            self._flush()
        hot = Counter(dict(zip(self._names, self._hot.tolist(), strict=True)))
        return SetPart(self._writer.shards, self.counts, hot)

    def _flush(self) -> None:
        block = self._block[: self._filled]
        self._writer.write(block)
        self._count(block)
        self._filled = 0

    def _count(self, block: np.ndarray) -> None:
        found = np.zeros(4, np.int64)
        row_text.count_rows(block, self._head, self._v, found)
        text, documents, separators, padding = found.tolist()
        firsts = block[:, self._head]
        before = np.concatenate([[self.before or PAD], firsts[:-1]])
        self.counts.update(
            documents=documents,
            text_bytes=text,
            rows=len(block) * self._n - padding,
            padding_rows=padding,
            samples=len(block),
            separator_rows=separators,
            split_documents=int(np.count_nonzero((firsts == SEP) & (before == DOC))),
            truncated_documents=0,
            dropped_bytes=0,
        )
        self.before = int(firsts[-1])
        if self._names:
            step = max(1, LABELLED // len(self._names))
            bitmaps = block[firsts == DOC, : self._head]
            for first in range(0, len(bitmaps), step):
                hot = np.unpackbits(bitmaps[first : first + step], axis=1, count=len(self._hot))
                self._hot += hot.sum(0, dtype=np.int64)


def copy_item(job: Job, settings: ShardSettings, progress: Progress) -> Done:
    """Copies the samples of one item into shards of its own.

    Raises:
        UserError: a shard is missing or damaged; a full disk.
    """
    # A set that is repaired has the settings of a plain run.
    choice = Choice.of_text(getattr(settings, "work", choose.COPY))
    sources = {part.source.path: part.source for part in job.item.parts}
    folders = {path: opened(path, source.version) for path, source in sources.items()}
    if choice.shuffle is not None:
        return _copy_shuffled(job, settings, choice, folders, progress)
    copier = Copier(job, settings)
    digests = []
    for part in job.item.parts:
        digest = xxhash.xxh3_128()
        if part.start == 0 and not choice.some:
            copier.counts.update(history(folders[part.source.path]))
        for done in _copy_part(copier, folders[part.source.path], part, job, choice, digest):
            progress(done)
        digests.append(digest.hexdigest())
    return Done(job.item.number, digests, {job.sets[0]: copier.finish()})


def history(folder: MdsFolder) -> Counter[str]:
    """What the rows of a set do not show, out of its manifest: what was lost or replaced."""
    told = (folder.manifest or {})["counts"]
    found = Counter({key: int(count) for key, count in told.items() if key not in SHOWN})
    found["text_bytes"] = found["dropped_bytes"]
    return found


def _copy_part(
    copier: Copier, folder: MdsFolder, part: Part, job: Job, choice: Choice, digest: Any
) -> Iterator[int]:
    """Copies what is chosen of a part; yields the stored bytes that this took, shard by shard."""
    at_start = job.item.number == 0 and part is job.item.parts[0]
    skip = 0 if job.names else folder.head
    done = 0
    for shard, low, high in choose.runs(folder, part.start, part.end):
        first = int(folder.ends[shard]) - folder.shards[shard].samples
        # So that the items that share a shard compare its hash only once.
        if choice.verify and (low == first or at_start):
            folder.verify(shard)
        at_start = False
        rows = folder.rows_of(shard)
        taken = chosen(folder, low, high, choice) - first
        if len(taken) and copier.before is None:
            copier.before = _in_front(folder, first + int(taken[0]))
        while len(taken):
            room = copier.room(len(taken))
            now, taken = taken[: len(room)], taken[len(room) :]
            whole = now[-1] - now[0] == len(now) - 1
            room[:] = rows[now[0] : now[-1] + 1, skip:] if whole else rows[now, skip:]
            digest.update(room.data)
            copier.took(len(now))
        now_done = part.weight * (high - part.start) // (part.end - part.start)
        yield now_done - done
        done = now_done


def _in_front(folder: MdsFolder, sample: int) -> int:
    """Slot 0 of the sample in front of this one, if that goes on with a document."""
    two = max(0, sample - 1)
    found = choose.leading_bytes(folder, sample, sample + 1, folder.head + 1)[0, -1]
    if found != SEP:
        return PAD
    return int(choose.leading_bytes(folder, two, two + 1, folder.head + 1)[0, -1])


def _copy_shuffled(
    job: Job,
    settings: ShardSettings,
    choice: Choice,
    folders: dict[str, MdsFolder],
    progress: Progress,
) -> Done:
    """Copies the samples whose places in the random order are this item's."""
    parts = job.item.parts
    order = [folders[part.source.path] for part in parts]
    ends = np.cumsum([folder.samples for folder in order])
    total = int(ends[-1])
    copier = Copier(job, settings)
    size = copier.samples_of_item
    if job.item.number == 0:
        for folder in order:
            copier.counts.update(history(folder))
    if choice.verify:
        for folder in order:
            for shard in range(job.item.number, len(folder.shards), -(-total // size)):
                folder.verify(shard)
    digests = [xxhash.xxh3_128() for _ in parts]
    at, stop = job.item.number * size, min(total, (job.item.number + 1) * size)
    done, weight = 0, job.item.size
    while at < stop:
        room = copier.room(stop - at)
        ids = choose.shuffled(np.arange(at, at + len(room)), total, choice.shuffle or 0)
        owners = np.searchsorted(ends, ids, side="right")
        for place, folder in enumerate(order):
            mine = np.flatnonzero(owners == place)
            local = ids[mine] - (int(ends[place]) - folder.samples)
            _scatter(folder, local, mine, room, 0 if job.names else folder.head)
            digests[place].update(room[mine].data)
        at += len(room)
        copier.took(len(room))
        now_done = weight * (at - job.item.number * size) // max(1, stop - job.item.number * size)
        progress(now_done - done)
        done = now_done
    found = [digest.hexdigest() for digest in digests]
    return Done(job.item.number, found, {job.sets[0]: copier.finish()})


def _scatter(
    folder: MdsFolder, samples: np.ndarray, places: np.ndarray, room: np.ndarray, skip: int
) -> None:
    """Copies samples of a set, without their first `skip` bytes, to places of a block."""
    shards = np.searchsorted(folder.ends, samples, side="right")
    for shard in np.unique(shards):
        here = np.flatnonzero(shards == shard)
        first = int(folder.ends[shard]) - folder.shards[shard].samples
        room[places[here]] = folder.rows_of(int(shard))[samples[here] - first, skip:]
