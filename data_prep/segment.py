"""Segmenters: how text is cut into materials.

- `byte`: blocks of v bytes.
- `char`: one Unicode scalar a row.
- `word`: a run of letters and digits with the one space that follows it; a run of other white
  space; a run of one and the same ASCII punctuation character; every other character by itself.
  "Hello, world  x" gives "Hello" "," " " "world " " " "x". data_prep/classes.py has the classes.
- `uax29`: what lies between two word boundaries of Unicode Standard Annex #29. Spaces stand alone;
  "can't" and "3.14" are one; Thai, Khmer, Lao, Burmese, Chinese and Japanese words come from ICU's
  dictionaries.
- `sentence`: what lies between two sentence boundaries of the same annex; a newline ends one.
- `subword`: the tokens of a tokenizer file, by their offsets in the text.
  data_prep/library_segmenters.py has these three.

A material longer than v goes on in the next row. Only `byte`, and a v below 4 with a character
longer than v, cuts a character. The bytes of the rows, in order, are the bytes of the text.
"""

from __future__ import annotations

import numpy as np

from data_prep import kernels, library_segmenters
from data_prep.classes import class_table
from elemdist.rows import PAD

KERNEL_CONTEXT = 8  # two characters of four bytes


class Segmenter:
    """Marks where materials start, into memory of its own that it uses over and over.

    Args:
        name: byte, char, word, uax29, sentence or subword.
        tokenizer: the tokenizer.json of subword.

    Attributes:
        anywhere: whether its rows may end within a character.
        context: the most bytes before a byte of a document that its mark depends on, where cut
            lets a document be marked up to any byte; else 0.

    Raises:
        UserError: the tokenizer file is missing, unreadable or none.
    """

    def __init__(self, name: str, tokenizer: str | None = None) -> None:
        self._name = name
        self._library: library_segmenters.Library | None = None
        if name in library_segmenters.NAMES:
            self._library = library_segmenters.open_library(name, tokenizer)
        self.anywhere = name == "byte"
        self.context = 0 if self._library else KERNEL_CONTEXT
        self._table = class_table()
        self._kinds = self._marks = np.zeros(0, np.uint8)

    def marks(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Marks the materials of documents.

        Args:
            data: (bytes,) uint8, valid UTF-8 with the documents in it, in order and apart.
            starts, ends: (D,) int64; document d is data[starts[d]:ends[d]].

        Returns:
            Shape (bytes,), uint8: 1 where a material starts. At the first byte of a document,
            where one always starts, and between documents it means nothing. Valid until the next
            call.

        Raises:
            UserError: the tokenizer of subword refuses the text.
        """
        if len(self._marks) < len(data):
            self._marks = np.zeros(len(data), np.uint8)
            self._kinds = np.zeros(len(data) if self._name == "word" else 0, np.uint8)
        marks = self._marks[: len(data)]
        if self._library is not None:
            marks[:] = 0
            library_segmenters.mark(self._library, data, starts, ends, marks)
        elif self._name == "word":
            kernels.mark_words(data, starts, self._table, self._kinds[: len(data)], marks)
        elif self._name == "char":
            kernels.mark_characters(data, marks)
        return marks  # for `byte`, still all zero: the width alone ends a row

    def cut(self, data: np.ndarray, start: int, end: int) -> int:
        """Up to where an unfinished document can be marked without seeing more of it.

        Marking it up to there, and later from there on as a document of its own with `context`
        bytes before it, gives the marks of the whole.

        Args:
            data: (bytes,) uint8. start: the document's next byte without a mark, its first or one
                that this method returned. end: where its bytes so far end.

        Returns:
            From start, if nothing can be marked yet, to end.
        """
        return end if self._library is None else library_segmenters.settled(data, start, end)


def segmenter_versions(name: str, tokenizer: str | None = None) -> dict[str, str]:
    """What a segmenter's materials depend on besides the text, for the manifest.

    Returns:
        Versions by the names of libraries, and for subword the hash of the tokenizer file. Empty
        for byte, char and word, whose tables are classes.CLASSES_VERSION.

    Raises:
        UserError: as Segmenter.
    """
    if name not in library_segmenters.NAMES:
        return {}
    return library_segmenters.open_library(name, tokenizer).versions()


def rows_of(
    text: bytes, v: int, segmenter: str = "word", tokenizer: str | None = None
) -> np.ndarray:
    """The rows of one document, without a DOC row.

    Args:
        text: valid UTF-8; what invalid bytes give is not defined.
        v: bytes of a row, at least 1.
        segmenter, tokenizer: as for Segmenter.

    Returns:
        Shape (T, v), uint8, left-aligned, PAD behind.

    Raises:
        UserError: as Segmenter and its marks.
    """
    cutter = Segmenter(segmenter, tokenizer)
    data = np.frombuffer(text, np.uint8)
    marks = cutter.marks(data, np.zeros(1, np.int64), np.array([len(data)], np.int64))
    lengths = np.diff(kernels.row_ends(data, marks, v, cutter.anywhere), prepend=0)
    rows_TV = np.full((len(lengths), v), PAD, np.uint8)
    rows_TV[np.arange(v) < lengths[:, None]] = data  # C order: row after row
    return rows_TV
