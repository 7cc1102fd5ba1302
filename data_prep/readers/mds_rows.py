"""Byte rows to documents again: what lies between one DOC row and the next, its special bytes
dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.documents import Batch, batch_of
from data_prep.readers import row_text, utf8
from data_prep.settings import ShardSettings
from elemdist.errors import UserError
from elemdist.rows import DOC

if TYPE_CHECKING:
    from data_prep.readers.mds import SampleBlocks
    from data_prep.readers.mds_files import MdsFolder

LONG_BYTES = 4 << 20  # of a document that is held; a longer one comes in several batches
READ_ON_SAMPLES = 256  # at a time, at most, behind the end of a part


def losses(manifest: dict[str, Any]) -> tuple[int, int]:
    """How many documents of a set have lost their end, and how many bytes, the losses of the sets
    that it was converted from included."""
    counts = manifest["counts"]
    documents, size = counts.get("truncated_documents", 0), counts.get("dropped_bytes", 0)
    for source in manifest.get("converted_from", []):
        documents += source["truncated_documents"]
        size += source["dropped_bytes"]
    return documents, size


def goes_on(folder: MdsFolder) -> bool:
    """Whether a document of a set may go on in the next sample."""
    manifest = folder.manifest or {}
    return manifest["packing"] == "packed" or manifest["counts"]["split_documents"] > 0


class RowDocuments:
    """The documents that begin in the samples of a part, of any size: they were taken before."""

    def __init__(self, blocks: SampleBlocks, settings: ShardSettings) -> None:
        """
        Raises:
            UserError: labels are asked for and the set has none; its documents were torn apart.
        """
        self._blocks, self._folder = blocks, blocks.folder
        folder = self._folder
        manifest = folder.manifest or {}
        if manifest.get("torn"):
            raise UserError(
                f"{folder.name}: its documents were torn apart when it was made (--tear): only its "
                f"samples can be copied, as they are"
            )
        self._names: list[str] | None = None
        if settings.input.labels_field is not None:
            if folder.labels is None:
                raise UserError(f"{folder.name} has no labels: leave input.labels_field out")
            self._names = folder.labels
        if settings.input.id_field is not None:
            raise UserError(f"{folder.name} holds no ids: leave input.id_field out")
        # A row may have been the last one before the end of its document was dropped.
        self._cut_characters = losses(manifest)[0] > 0
        self._held = np.zeros(0, np.uint8)  # of the document whose end was not seen yet
        self._labels: list[str] = []
        self._place = 0
        self._inside = self._begun = False

    def batches(self) -> Iterator[Batch]:
        """The documents, in order.

        Raises:
            UserError: a shard is missing or damaged.
        """
        for _, first, data, offsets in self._blocks:
            block = data[offsets[0] : offsets[-1]].reshape(-1, self._folder.sample_bytes)
            yield from self._take(block, first)
        if not self._inside:
            return
        for block, rows in self._behind():
            yield from self._take(block, 0, rows)
        yield self._batch(self._held, np.zeros(1, np.int64), [self._labels], [self._place], False)

    def _behind(self) -> Iterator[tuple[np.ndarray, int]]:
        """Samples behind the part up to the next DOC row, and how many of their rows to take."""
        folder = self._folder
        at, step = self._blocks.end, 1
        while at < folder.samples and goes_on(folder):
            number = int(np.searchsorted(folder.ends, at, side="right"))
            first = int(folder.ends[number]) - folder.shards[number].samples
            block = folder.rows_of(number)[at - first : at - first + step]
            starts = np.flatnonzero(block[:, folder.head :: folder.v].reshape(-1) == DOC)
            yield block, int(starts[0]) if len(starts) else len(block) * folder.n
            if len(starts):
                return
            at += len(block)
            step = min(2 * step, READ_ON_SAMPLES)

    def _take(self, block: np.ndarray, first: int, rows: int | None = None) -> Iterator[Batch]:
        """Takes samples (S, label bytes + n * v), all their rows or only the first so many.

        Args:
            first: the number of the first sample in the set.
        """
        folder = self._folder
        count = len(block) * folder.n if rows is None else rows
        data = np.empty((len(block) * folder.n + 1) * folder.v, np.uint8)
        starts, samples = np.empty((2, len(block) * folder.n), np.int64)
        size, found = row_text.take_text(block, folder.head, folder.v, count, data, starts, samples)
        data, starts, samples = data[:size], starts[:found], samples[:found]
        if not self._inside:
            if not len(starts):
                return
            data, starts = data[starts[0] :], starts - starts[0]
        labels = self._labels_of(block, samples)
        places = (samples + (first - self._blocks.start + 1)).tolist()
        if self._inside:
            data = np.concatenate([self._held, data])
            starts = np.concatenate([[0], starts + len(self._held)])
            labels, places = [self._labels, *labels], [self._place, *places]
        self._inside = True
        self._labels, self._place = labels[-1], places[-1]
        last = int(starts[-1])
        self._held = data[last:]
        if len(self._held) <= LONG_BYTES:
            if len(starts) > 1:
                yield self._batch(data[:last], starts[:-1], labels[:-1], places[:-1], False)
            return
        stop = len(data) - 1  # what is held back is never empty, so that the end has a piece
        while stop > last and data[stop] & 0xC0 == 0x80:
            stop -= 1
        self._held = data[stop:]
        yield self._batch(data[:stop], starts, labels, places, True)

    def _labels_of(self, block: np.ndarray, samples: np.ndarray) -> list[list[str]]:
        """The labels of the documents that begin in these samples of a block."""
        if self._names is None:
            return [[] for _ in samples]
        names = self._names
        hot_DL = np.unpackbits(block[samples, : self._folder.head], axis=1, count=len(names))
        documents, bits = np.nonzero(hot_DL)
        found: list[list[str]] = [[] for _ in samples]
        for document, bit in zip(documents.tolist(), bits.tolist(), strict=True):
            found[document].append(names[bit])
        return found

    def _batch(
        self,
        data: np.ndarray,
        starts: np.ndarray,
        labels: list[list[str]],
        places: list[int],
        open: bool,
    ) -> Batch:
        """Documents that lie back to back, the last one up to the end of the data."""
        ends = np.append(starts[1:], len(data))
        begun, self._begun = self._begun, open
        more: dict[str, Any] = {
            "labels": labels if self._names is not None else [],
            "places": places,
            "begun": begun,
            "open": open,
        }
        if self._cut_characters:
            whole = whole_ends(data, starts, ends)
            if (whole != ends).any():
                pairs = zip(starts.tolist(), whole.tolist(), strict=True)
                batch = batch_of([data[a:b].tobytes() for a, b in pairs], **more)
                return self._checked(batch)
        return self._checked(Batch(data, starts, ends, **more))

    def _checked(self, batch: Batch) -> Batch:
        filled = batch.starts[batch.ends > batch.starts]
        cut = (batch.data[filled] & 0xC0 == 0x80).any()
        if cut or not utf8.is_utf8(batch.data.tobytes()):
            first, last = (self._blocks.start + batch.places[k] - 1 for k in (0, -1))
            raise UserError(
                f"{self._folder.name}: samples {first:,} to {last:,} hold text that is not valid "
                f"UTF-8: the set is damaged, copy it again"
            )
        return batch


def whole_ends(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The ends of documents without an unfinished character at their end: (D,) int64."""
    found = ends.copy()
    for back in (1, 2, 3):
        inside = np.flatnonzero(ends - starts >= back)
        byte = data[ends[inside] - back]
        needed = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0).astype(np.int64)
        found[inside] = np.where(
            (byte >= 0xC0) & (needed > back), ends[inside] - back, found[inside]
        )
    return found
