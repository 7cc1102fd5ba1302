"""Segmenters: how text is cut into materials.

- `byte`: blocks of v bytes.
- `char`: one Unicode scalar a row.
- `word`: a run of letters and digits with the one space that follows it; a run of other white
  space; a run of one and the same ASCII punctuation character; every other character by itself.
  "Hello, world  x" gives "Hello" "," " " "world " " " "x". data_prep/classes.py has the classes.

A material longer than v goes on in the next row. Only `byte`, and a v below 4 with a character
longer than v, cuts a character. The bytes of the rows, in order, are the bytes of the text.
"""

from __future__ import annotations

import numpy as np

from data_prep import kernels
from data_prep.classes import class_table
from elemdist.rows import PAD


class Segmenter:
    """Marks where materials start, into memory of its own that it uses over and over.

    Args:
        name: byte, char or word.

    Attributes:
        anywhere: whether its rows may end within a character.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.anywhere = name == "byte"
        self._table = class_table()
        self._kinds = self._marks = np.zeros(0, np.uint8)

    def marks(self, data: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Marks the materials of documents.

        Args:
            data: (bytes,) uint8, the documents, valid UTF-8. starts: (D,) int64, their first bytes.

        Returns:
            Shape (bytes,), uint8: 1 where a material starts; at the first byte of a document,
            where one always starts, it means nothing. Valid until the next call.
        """
        if len(self._marks) < len(data):
            self._marks = np.zeros(len(data), np.uint8)
            self._kinds = np.zeros(len(data) if self._name == "word" else 0, np.uint8)
        marks = self._marks[: len(data)]
        if self._name == "word":
            kernels.mark_words(data, starts, self._table, self._kinds[: len(data)], marks)
        elif self._name == "char":
            kernels.mark_characters(data, marks)
        return marks  # for `byte`, still all zero: the width alone ends a row


def rows_of(text: bytes, v: int, segmenter: str = "word") -> np.ndarray:
    """The rows of one document, without a DOC row.

    Args:
        text: valid UTF-8; what invalid bytes give is not defined.
        v: bytes of a row, at least 1.
        segmenter: byte, char or word.

    Returns:
        Shape (T, v), uint8, left-aligned, PAD behind.
    """
    cutter = Segmenter(segmenter)
    data = np.frombuffer(text, np.uint8)
    marks = cutter.marks(data, np.zeros(1, np.int64))
    lengths = np.diff(kernels.row_ends(data, marks, v, cutter.anywhere), prepend=0)
    rows_TV = np.full((len(lengths), v), PAD, np.uint8)
    rows_TV[np.arange(v) < lengths[:, None]] = data  # C order: row after row
    return rows_TV
