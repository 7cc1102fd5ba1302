"""The documents of MDS sets: of our own byte rows, and of text columns that other tools wrote.

A part counts samples. Of a set of byte rows it has the documents that begin in it: rows in front of
its first DOC row belong to the part before, and its last document may go on behind its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import xxhash

from data_prep.documents import Batch, Part, Source
from data_prep.readers.mds_files import MdsFolder, opened
from data_prep.readers.task import ReadTask

BLOCK_BYTES = 1 << 21  # of samples at a time: what stays in a core's cache while it is worked on


def cut(source: Source, limit: int) -> list[Part]:
    """Parts of about `limit` stored bytes; a compressed shard, unpacked as a whole, is not cut.

    Raises:
        UserError: the source is no MDS set, or a damaged one.
    """
    folder = MdsFolder(source.path)
    parts: list[Part] = []
    start = end = weight = 0
    for shard in folder.shards:
        if weight and weight + shard.stored.size > limit:
            parts.append(Part(source, start, end, weight))
            start, weight = end, 0
        pieces = 1 if shard.compression else -(-shard.stored.size // limit)
        for piece in range(1, pieces):
            place = end + shard.samples * piece // pieces
            if place > start:
                parts.append(Part(source, start, place, shard.stored.size // pieces))
                start = place
        end += shard.samples
        weight += max(1, shard.stored.size // pieces)
    if end > start:
        parts.append(Part(source, start, end, weight))
    return parts


class SampleBlocks:
    """Reads the samples of a part, shard by shard, in pieces of about BLOCK_BYTES.

    Args:
        progress: called with the number of stored bytes after each piece.
    """

    def __init__(self, folder: MdsFolder, part: Part, progress: Callable[[int], None]) -> None:
        self.folder, self.start, self.end = folder, part.start, part.end
        self._weight, self._progress = part.weight, progress
        self.digest = xxhash.xxh3_128()

    def __iter__(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Yields the number of the shard, that of the first sample in the set, the shard's bytes,
        and the offsets in them of the K samples of the piece, (K + 1,) int64.

        Raises:
            UserError: a shard is missing or damaged.
        """
        reported = 0
        first = 0  # of the shard
        for number, shard in enumerate(self.folder.shards):
            low, high = max(self.start, first), min(self.end, first + shard.samples)
            if low < high:
                if low == first:  # so that the parts of a shard compare its hash only once
                    self.folder.verify(number)
                data, offsets = self.folder.samples_of(number)
                while low < high:
                    stop = int(np.searchsorted(offsets, offsets[low - first] + BLOCK_BYTES))
                    stop = min(max(stop - 1 + first, low + 1), high)
                    places = offsets[low - first : stop - first + 1]
                    self.digest.update(data[places[0] : places[-1]].data)
                    yield number, low, data, places
                    low = stop
                    share = (low - self.start) / (self.end - self.start)
                    self._progress(int(self._weight * share) - reported)
                    reported = int(self._weight * share)
            first += shard.samples


class MdsReader:
    """Reads one part of an MDS set, in batches of some MiB.

    Of a set of byte rows, input.labels_field asks for the labels, whatever its name.
    """

    def __init__(self, task: ReadTask) -> None:
        """Raises UserError: no MDS set, or one without the columns that the settings name."""
        part = task.part
        folder = opened(part.source.path, part.source.version)
        task = _without_missing_id(task, folder)
        self._start = part.start
        self._blocks = SampleBlocks(folder, part, task.progress)
        self._documents: Iterator[Batch]
        if folder.manifest is not None:
            from data_prep.readers.mds_rows import RowDocuments

            self._documents = RowDocuments(self._blocks, task.settings).batches()
        else:
            from data_prep.readers.mds_text import TextDocuments

            documents = TextDocuments(self._blocks, task, self.where)
            self._documents = documents.batches()

    def batches(self) -> Iterator[Batch]:
        """The documents, in order; places are samples.

        Raises:
            UserError: a shard is missing or damaged; a problem, unless they are skipped.
        """
        return self._documents

    def digest(self) -> str:
        """xxh3_128 of the samples of the part, once all batches are read."""
        return self._blocks.digest.hexdigest()

    def where(self, place: int) -> str:
        """The sample, counted from 0 in the whole set; `place` counts from 1 within the part."""
        return f"sample {self._start + place - 1:,}"


def _without_missing_id(task: ReadTask, folder: MdsFolder) -> ReadTask:
    """Return the task without the field of ids where it need not be there and is not, as in a set
    of byte rows."""
    chosen = task.settings.input
    if not task.optional_id or chosen.id_field is None:
        return task
    shards = [] if folder.manifest is not None else folder.shards
    if shards and all(chosen.id_field in (one[0] for one in shard.columns) for shard in shards):
        return task
    return replace(task, settings=replace(task.settings, input=replace(chosen, id_field=None)))
