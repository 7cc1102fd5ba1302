"""What a process does with one work item: go over its documents, or convert it into shards."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from data_prep.documents import Batch, Part, Problems, notes_of
from data_prep.losses import DUPLICATE, EMPTY_FILE, UNKNOWN_LABEL
from data_prep.mds import MdsWriter, hash_names
from data_prep.plan import Done, Item, Job, SetPart
from data_prep.readers.parts import Reader, open_part
from data_prep.route import Router
from data_prep.settings import MIB, ShardSettings
from data_prep.store import open_store
from elemdist.errors import nearest
from elemdist.json_text import json_text
from elemdist.remote import public

COLUMNAR = ("parquet", "arrow", "datasets")  # whose parts do not count bytes
Progress = Callable[[int], None]
HELD_BYTES = 1 << 22  # of rejects in memory; more go to a temporary file


@dataclass
class Scanned:
    """What the first pass finds in an item.

    Attributes:
        documents: how many. labels: how often each label comes.
        hashes: their table (data_prep/dedup.py), if duplicates are to be found.
    """

    documents: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    hashes: bytes | None = None


def scan(item: Item, settings: ShardSettings, progress: Progress) -> Scanned:
    """Counts the documents of an item and collects its labels and hashes.

    Raises:
        UserError: as readers.open_part.
    """
    from data_prep.dedup import Hasher

    found = Scanned()
    # The second pass lists them.
    problems = Problems(settings.on_error == "skip", lambda _: None, settings.strict)
    hasher = None if settings.dedup == "off" else Hasher(settings.dedup == "normalized")
    for part in item.parts:
        for batch in open_part(part, settings, problems, progress).batches():
            found.documents += len(batch) - batch.begun
            for labels in batch.labels[batch.begun :]:
                found.labels.update(set(labels))
            if hasher is not None:
                hasher.add(batch)
    if hasher is not None:
        found.hashes = hasher.table()
    return found


def convert(job: Job, settings: ShardSettings, progress: Progress) -> Done:
    """Converts an item into shards of its own, in the folder of each set.

    Raises:
        UserError: as readers.open_part; an unknown label; a full disk.
    """
    names = Names(job.names)
    outputs = [Output(job, folder, settings) for folder in job.sets]
    router = Router(job, settings)
    digests = []
    with tempfile.SpooledTemporaryFile(HELD_BYTES) as rejects:

        def reject(record: dict[str, Any]) -> None:
            rejects.write(json_text(record).encode() + b"\n")

        problems = Problems(settings.on_error == "skip", reject, settings.strict)
        losses = problems.losses
        for part in job.item.parts:
            reader = open_part(part, settings, problems, progress)
            name, before, documents = public(part.source.path), problems.listed, 0
            for batch in reader.batches():
                documents += len(batch)
                notes_of(batch, losses, name, job.names is not None)
                bitmaps, refused = names.bitmaps(
                    batch, partial(_report, problems, part.source.path, reader)
                )
                outputs[0].counts["replaced_documents"] += batch.replaced
                for routed in router.sort(batch, refused):
                    outputs[routed.set].add(routed.batch, bitmaps[routed.chosen])
            digests.append(reader.digest())
            if not documents and problems.listed == before and _is_whole(part):
                losses.add(EMPTY_FILE, name)
        if problems.listed:
            rejects.seek(0)
            store = open_store(settings.out)
            store.write(rejects_name(job.item.number), rejects.read(), flush=True)
    losses.add(DUPLICATE, count=int(router.duplicates[:, 0].sum()))
    for output, (documents, size) in zip(outputs, router.duplicates.tolist(), strict=True):
        output.counts["duplicate_documents"] = documents
        output.counts["duplicate_bytes"] = size
    sets = {folder: output.finish(names) for folder, output in zip(job.sets, outputs, strict=True)}
    return Done(job.item.number, digests, sets, problems.listed, losses)


def _is_whole(part: Part) -> bool:
    """Return True if a part is all of its source, or that has no content at all."""
    return part.start == 0 and (part.end == part.source.size or part.source.format in COLUMNAR)


def _report(problems: Problems, path: str, reader: Reader, place: int, problem: str) -> None:
    """Adds a problem of a document that the reader has already delivered."""
    problems.add(path, reader.where(place), problem, UNKNOWN_LABEL, place)


def rejects_name(item: int) -> str:
    """Where the rejects of an item are kept until the set is complete."""
    return f".elemdist/rejects/{item:08d}.jsonl"


class Names:
    """Label names and their bits.

    Args:
        names: in the order of the bits; None for shards without labels.
    """

    def __init__(self, names: tuple[str, ...] | None) -> None:
        self.names = names
        self._bits = {name: bit for bit, name in enumerate(names or ())}

    def bitmaps(
        self, batch: Batch, problem: Callable[[int, str], None]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The labels of D documents as packed bits, (D, ceil(L / 8)) uint8.

        Args:
            problem: told the place and the fault of a document with an unknown label.

        Returns:
            The bitmaps, and which documents have an unknown label, (D,) bool; None for none.
        """
        if self.names is None:
            return np.zeros((len(batch), 0), np.uint8), None
        hot_DL = np.zeros((len(batch), len(self._bits)), np.uint8)
        refused = None
        for document, labels in enumerate(batch.labels):
            for label in labels:
                bit = self._bits.get(label)
                if bit is not None:
                    hot_DL[document, bit] = 1
                    continue
                if refused is None:
                    refused = np.zeros(len(batch), bool)
                if not refused[document] and not (document == 0 and batch.begun):
                    known = f"none of the {len(self._bits)} known ones"
                    place = batch.places[document] if batch.places else 0
                    problem(place, f"unknown label '{label}', {known}{nearest(label, self._bits)}")
                refused[document] = True
        return np.packbits(hot_DL, axis=1), refused


class Output:
    """The shards of one item in one set.

    Attributes:
        counts: what is counted outside of the packer.
    """

    def __init__(self, job: Job, folder: str, settings: ShardSettings) -> None:
        # Not at the top: the packer brings the compiler, which the first pass does not need.
        from data_prep.pack import Packer

        self.counts: Counter[str] = Counter()
        self._labels = len(job.names or ())
        self._hot = np.zeros((self._labels + 7) // 8 * 8, np.int64)
        self._writer = MdsWriter(
            open_store(settings.out).within(folder),
            f"shard.{job.item.number:05d}",
            n=settings.n,
            v=settings.v,
            labels=self._labels,
            size_limit=settings.shard_mb * MIB,
            compression=settings.compression,
            hashes=tuple(hash_names(settings.hashes)),
        )
        self._packer = Packer(
            np.empty((self._writer.samples_per_shard, self._writer.sample_bytes), np.uint8),
            self._writer.write,
            n=settings.n,
            v=settings.v,
            segmenter=settings.segmenter,
            packing=settings.packing,
            overlong=settings.overlong,
            tokenizer=settings.tokenizer,
        )

    def add(self, batch: Batch, bitmaps: np.ndarray) -> None:
        """Packs a batch; bitmaps: (D, label bytes) uint8."""
        self._packer.add(
            batch.data, batch.starts, batch.ends, bitmaps, begun=batch.begun, open=batch.open
        )
        if self._labels:
            whole = bitmaps[batch.begun :]
            self._hot += np.unpackbits(whole, axis=1).sum(0, dtype=np.int64)

    def finish(self, names: Names) -> SetPart:
        """Writes what is left; what became of the documents."""
        self.counts.update(self._packer.finish())
        hot = self._hot.tolist()
        label_counts = Counter(dict(zip(names.names or (), hot, strict=False)))
        return SetPart(self._writer.shards, self.counts, label_counts)
