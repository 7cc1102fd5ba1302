"""Documents to samples: the rows of batches of documents, written into a block, shard by shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data_prep import kernels
from data_prep.documents import batch_of
from data_prep.segment import Segmenter
from elemdist.rows import PAD

SAMPLES_AT_ONCE = 64  # of samples_of


class Packer:
    """Turns documents into samples of n rows and hands over every full block of samples.

    `packing` document: a DOC row, the materials, PAD rows; a longer document goes on in a new
    sample behind a SEP row (`overlong` split) or loses its end (truncate). `packing` packed:
    documents back to back, each behind a DOC row, cut every n rows, only the last sample padded.

    A document may come in pieces: what ends a piece is held until the next one shows whether it
    ends a row, too. So the samples do not depend on where a document was cut.

    Args:
        block: (samples, label_bytes + n * v) uint8, C order; written over and over.
        full: called with the filled part of the block, whenever it is full and once at the end.
        tokenizer: the file of segmenter subword.
    """

    def __init__(
        self,
        block: np.ndarray,
        full: Callable[[np.ndarray], None],
        *,
        n: int,
        v: int,
        segmenter: str,
        packing: str,
        overlong: str,
        tokenizer: str | None = None,
    ) -> None:
        self._block, self._full, self._n, self._v = block, full, n, v
        self._segmenter = Segmenter(segmenter, tokenizer)
        self._packed = packing == "packed"
        self._truncate = overlong == "truncate" and not self._packed
        self._head = block.shape[1] - n * v
        self._state = np.zeros(kernels.STATE_SIZE, np.int64)
        self._counts = np.zeros(kernels.COUNTS_SIZE, np.int64)
        self._documents = self._text_bytes = self._samples = 0
        # Of an unfinished document: the bytes not yet in rows, behind the context of their marks.
        self._held = np.zeros(0, np.uint8)
        self._done = 0  # how many of those are context

    def add(
        self,
        data: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        bitmaps: np.ndarray | None = None,
        *,
        begun: bool = False,
        open: bool = False,
    ) -> None:
        """Packs D documents.

        Args:
            data: (bytes,) uint8, valid UTF-8. starts, ends: (D,) int64, each document's bytes.
            bitmaps: (D, label_bytes) uint8, what precedes the rows of each document's samples.
            begun: the first document goes on with what the call before left open.
            open: the last document goes on in the next call.
        """
        if bitmaps is None:
            bitmaps = np.zeros((len(starts), 0), np.uint8)
        self._documents += len(starts) - begun
        self._text_bytes += int(ends.sum() - starts.sum())
        self._state[kernels.AT_DOCUMENT] = 0
        self._state[kernels.AT_BYTE] = -1
        if begun:
            data = np.concatenate([self._held, data[starts[0] :]])
            shift = len(self._held) - starts[0]
            starts, ends = starts + shift, ends + shift
            starts[0] = 0
            self._state[kernels.AT_BYTE] = self._done
        marked = ends
        if open:
            first = self._done if begun and len(starts) == 1 else int(starts[-1])
            marked = ends.copy()
            marked[-1] = self._segmenter.cut(data, first, int(ends[-1]))
        marks = self._segmenter.marks(data, starts, marked)
        hold = self._segmenter.context > 0
        while True:
            kernels.pack(
                *(data, starts, marked, bitmaps, marks, self._state, self._counts),
                *(self._block, self._n, self._v, self._segmenter.anywhere),
                *(self._packed, self._truncate, open, hold),
            )
            if self._state[kernels.AT_SAMPLE] < len(self._block):
                break
            self._hand_over(len(self._block))
        if open:
            self._hold(data, int(starts[-1]), int(ends[-1]))

    def _hold(self, data: np.ndarray, start: int, end: int) -> None:
        """Keeps what is not yet in rows of the document data[start:end]."""
        at = int(self._state[kernels.AT_BYTE])
        base = max(start, at - self._segmenter.context)
        while base > start and data[base] & 0xC0 == 0x80:
            base -= 1
        self._held, self._done = data[base:end].copy(), at - base

    def finish(self) -> dict[str, int]:
        """Pads and hands over what is left, and returns the counts."""
        samples, rows = (int(self._state[k]) for k in (kernels.AT_SAMPLE, kernels.AT_ROW))
        if rows:
            self._block[samples, self._head + rows * self._v :] = PAD
            self._counts[kernels.PADDING_ROWS] += self._n - rows
            samples += 1
        if samples:
            self._hand_over(samples)
        return self._summary()

    def _hand_over(self, samples: int) -> None:
        self._full(self._block[:samples])
        self._samples += samples
        self._state[kernels.AT_SAMPLE] = 0
        self._state[kernels.AT_ROW] = 0

    def _summary(self) -> dict[str, int]:
        counts = [int(count) for count in self._counts]
        padding_rows = counts[kernels.PADDING_ROWS]
        return {
            "documents": self._documents,
            "text_bytes": self._text_bytes,
            "rows": self._samples * self._n - padding_rows,
            "padding_rows": padding_rows,
            "samples": self._samples,
            "separator_rows": counts[kernels.SEPARATORS],
            "split_documents": counts[kernels.SPLIT],
            "truncated_documents": counts[kernels.TRUNCATED],
            "dropped_bytes": counts[kernels.DROPPED_BYTES],
        }


def samples_of(
    texts: Sequence[bytes],
    n: int,
    v: int,
    segmenter: str = "word",
    overlong: str = "split",
    tokenizer: str | None = None,
) -> np.ndarray:
    """The samples of documents in memory, as `elemdist shard --packing document` makes them.

    Args:
        texts: valid UTF-8. The others: as for Packer.

    Returns:
        Shape (B, n, v), uint8.

    Raises:
        UserError: as Segmenter and its marks.
    """
    found: list[np.ndarray] = []
    block = np.empty((SAMPLES_AT_ONCE, n * v), np.uint8)
    packer = Packer(
        block,
        lambda part: found.append(part.copy()),
        n=n, v=v, segmenter=segmenter, packing="document", overlong=overlong, tokenizer=tokenizer,
    )  # fmt: skip
    batch = batch_of(list(texts))
    packer.add(batch.data, batch.starts, batch.ends)
    packer.finish()
    return np.concatenate(found).reshape(-1, n, v)
