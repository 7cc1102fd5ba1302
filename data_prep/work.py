"""What a process does with one work item: count it, or convert it into shards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.mds import MdsWriter
from data_prep.plan import Item
from data_prep.readers import Batch, DocumentReader
from data_prep.settings import MIB, ShardSettings
from elemdist.errors import nearest

Progress = Callable[[int], None]


@dataclass
class Scanned:
    """What the first pass finds in an item: its documents, and how often each label comes."""

    documents: int = 0
    labels: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Share:
    """Documents of an item that go to one set: those before `last`, or all that are left.

    `folder` is the set's folder within the output folder, "" for that folder itself.
    """

    folder: str
    last: int | None = None


@dataclass(frozen=True)
class Job:
    """One item to convert, for shards with these label names (None: without labels)."""

    item: Item
    names: tuple[str, ...] | None
    shares: tuple[Share, ...]


@dataclass
class Converted:
    """What one item gave to one set."""

    folder: str
    shards: list[dict[str, Any]]
    counts: Counter[str]
    label_counts: Counter[str]
    sources: list[dict[str, Any]]


def scan(item: Item, settings: ShardSettings, progress: Progress) -> Scanned:
    """Counts the documents of an item and collects its labels.

    Raises:
        UserError: as DocumentReader.batches.
    """
    found = Scanned()
    for part in item.parts:
        reader = DocumentReader(part, settings.input, settings.on_invalid, progress)
        for batch in reader.batches():
            found.documents += len(batch)
            for labels in batch.labels:
                found.labels.update(set(labels))
    return found


def convert(job: Job, settings: ShardSettings, progress: Progress) -> list[Converted]:
    """Converts an item into shards of its own, in the folder of each share.

    Raises:
        UserError: as DocumentReader.batches; an unknown label; a full disk.
    """
    shares = iter(job.shares)
    output = Output(job, next(shares), settings)
    outputs = [output]
    sources = []
    seen = 0
    for part in job.item.parts:
        reader = DocumentReader(part, settings.input, settings.on_invalid, progress)
        for batch in reader.batches():
            while output.last is not None and seen + len(batch) > output.last:
                cut = output.last - seen
                output.add(batch.span(0, cut), reader)
                output.finish()
                batch, seen = batch.span(cut, len(batch)), output.last
                output = Output(job, next(shares), settings)
                outputs.append(output)
            output.add(batch, reader)
            seen += len(batch)
        sources.append(
            {
                "path": part.source.path,
                "start": part.start,
                "end": part.end,
                "size": part.source.size,
                "xxh3_128": reader.digest(),
            }
        )
    output.finish()
    return [output.converted(sources) for output in outputs]


class Output:
    """The shards of one item in one set.

    Attributes:
        last: the share's end, as in Share.
    """

    def __init__(self, job: Job, share: Share, settings: ShardSettings) -> None:
        # Not at the top: the packer brings the compiler, which the first pass does not need.
        from data_prep.pack import Packer

        self.last = share.last
        self._folder, self._names = share.folder, job.names
        self._bits = {name: bit for bit, name in enumerate(job.names or ())}
        self._hot = np.zeros(len(self._bits), np.int64)
        self._counts: Counter[str] = Counter()
        self._writer = MdsWriter(
            os.path.join(settings.out, share.folder),
            f"shard.{job.item.number:05d}",
            n=settings.n,
            v=settings.v,
            labels=len(self._bits),
            size_limit=settings.shard_mb * MIB,
        )
        self._packer = Packer(
            np.empty((self._writer.samples_per_shard, self._writer.sample_bytes), np.uint8),
            self._writer.write,
            n=settings.n,
            v=settings.v,
            segmenter=settings.segmenter,
            packing=settings.packing,
            overlong=settings.overlong,
        )

    def add(self, batch: Batch, reader: DocumentReader) -> None:
        """Packs a batch; the reader knows where its documents stand, for errors."""
        bitmaps = None if self._names is None else self._bitmaps(batch, reader)
        self._packer.add(batch.data, batch.starts, batch.ends, bitmaps)
        self._counts["replaced_documents"] += batch.replaced
        self._counts["skipped_documents"] += batch.skipped

    def finish(self) -> None:
        """Writes what is left."""
        self._counts.update(self._packer.finish())

    def converted(self, sources: list[dict[str, Any]]) -> Converted:
        """What became of the documents."""
        label_counts = Counter(dict(zip(self._bits, self._hot.tolist(), strict=True)))
        return Converted(self._folder, self._writer.shards, self._counts, label_counts, sources)

    def _bitmaps(self, batch: Batch, reader: DocumentReader) -> np.ndarray:
        """The labels of a batch as packed bits: (D, ceil(L / 8)) uint8."""
        hot_DL = np.zeros((len(batch), len(self._bits)), np.uint8)
        for document, labels in enumerate(batch.labels):
            for label in labels:
                bit = self._bits.get(label)
                if bit is None:
                    known = f"none of the {len(self._bits)} known ones"
                    hint = nearest(label, self._bits)
                    reader.fail(batch.lines[document], f"unknown label '{label}', {known}{hint}")
                hot_DL[document, bit] = 1
        self._hot += hot_DL.sum(0, dtype=np.int64)
        return np.packbits(hot_DL, axis=1)
