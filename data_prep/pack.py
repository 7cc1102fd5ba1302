"""Documents to samples: the rows of batches of documents, written into a block, shard by shard."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_prep import kernels
from data_prep.segment import Segmenter
from elemdist.rows import PAD


class Packer:
    """Turns documents into samples of n rows and hands over every full block of samples.

    `packing` document: a DOC row, the materials, PAD rows; a longer document goes on in a new
    sample behind a SEP row (`overlong` split) or loses its end (truncate). `packing` packed:
    documents back to back, each behind a DOC row, cut every n rows, only the last sample padded.

    Args:
        block: (samples, label_bytes + n * v) uint8, C order; written over and over.
        full: called with the filled part of the block, whenever it is full and once at the end.
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
    ) -> None:
        self._block, self._full, self._n, self._v = block, full, n, v
        self._segmenter = Segmenter(segmenter)
        self._packed = packing == "packed"
        self._truncate = overlong == "truncate" and not self._packed
        self._head = block.shape[1] - n * v
        self._state = np.zeros(kernels.STATE_SIZE, np.int64)
        self._counts = np.zeros(kernels.COUNTS_SIZE, np.int64)
        self._documents = self._text_bytes = self._samples = 0

    def add(
        self,
        data: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        bitmaps: np.ndarray | None = None,
    ) -> None:
        """Packs D documents.

        Args:
            data: (bytes,) uint8, valid UTF-8. starts, ends: (D,) int64, each document's bytes.
            bitmaps: (D, label_bytes) uint8, what precedes the rows of each document's samples.
        """
        if bitmaps is None:
            bitmaps = np.zeros((len(starts), 0), np.uint8)
        self._documents += len(starts)
        self._text_bytes += int(ends.sum() - starts.sum())
        self._state[kernels.AT_DOCUMENT] = 0
        self._state[kernels.AT_BYTE] = -1
        marks = self._segmenter.marks(data, starts)
        geometry = (self._block, self._n, self._v, self._segmenter.anywhere)
        packing = (self._packed, self._truncate)
        while True:
            kernels.pack(
                *(data, starts, ends, bitmaps, marks, self._state, self._counts),
                *geometry,
                *packing,
            )
            if self._state[kernels.AT_SAMPLE] < len(self._block):
                return
            self._hand_over(len(self._block))

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
