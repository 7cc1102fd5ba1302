"""Segmenters that stand on a library: Unicode's words and sentences (ICU), a tokenizer's tokens.

A library looks both ways and holds its whole text, so a long document is cut into *pieces* first.
A piece ends where the document's own bytes say, counted from its start: while more than PIECE_BYTES
are left, behind the last newline of the next PIECE_BYTES, else behind the last space, else behind
the last whole character. So the materials of a document do not depend on how it was read, and the
time and memory of a library are bounded, whatever the document.

A library only marks where materials start. What lies between two marks is one material, so nothing
is lost whatever the library drops or changes.
"""

from __future__ import annotations

import itertools
import os
from importlib.metadata import version
from typing import Protocol

import numpy as np

from elemdist.errors import UserError
from elemdist.file_info import content_of

NAMES = ("uax29", "sentence", "subword")
PIECE_BYTES = 1 << 20
GROUP_BYTES = 1 << 18  # pieces that go to a library in one call
# The rules of no language: the user's own locale must not change shards.
ROOT_LOCALE = "und"


class Library(Protocol):
    """A library's rules."""

    def starts(self, data: np.ndarray, begins: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Finds the materials of P pieces, none of them empty.

        Args:
            data: (bytes,) uint8. begins, stops: (P,) int64; piece p is data[begins[p]:stops[p]],
                valid UTF-8.

        Returns:
            (M,) int64, the places in data where materials start, in any order; those of the
            pieces' own starts may be missing.
        """

    def versions(self) -> dict[str, str]:
        """What the materials depend on, besides the text."""


def open_library(name: str, tokenizer: str | None) -> Library:
    """The library of a segmenter, loaded only now.

    Args:
        name: one of NAMES. tokenizer: the tokenizer file, for subword.

    Raises:
        UserError: the tokenizer file is not named, cannot be read, or is none.
    """
    if name != "subword":
        return UnicodeRules(name)
    if tokenizer is None:
        raise UserError("segmenter subword needs tokenizer, the tokenizer.json that cuts the text")
    return Tokens(tokenizer)


def piece_end(data: np.ndarray, start: int, end: int) -> int:
    """Where the piece ends that begins at data[start], in a document whose bytes end at `end`."""
    if end - start <= PIECE_BYTES:
        return end
    stop = start + PIECE_BYTES
    window = data[start:stop].tobytes()
    for byte in (b"\n", b" "):
        found = window.rfind(byte)
        if found >= 0:
            return start + found + 1
    while data[stop] & 0xC0 == 0x80:
        stop -= 1
    return stop


def settled(data: np.ndarray, start: int, end: int) -> int:
    """Up to where the pieces of an unfinished document are known; `start` if not even the first.

    A document that went from start only to there would have the same pieces.

    Args:
        data: (bytes,) uint8, where an unfinished document goes from `start`, the beginning of a
            piece, to `end`, where the bytes end that are known.
    """
    bounds = [start]
    while end - bounds[-1] > PIECE_BYTES:
        bounds.append(piece_end(data, bounds[-1], end))
    # Two pieces that are no longer than one may be would be one, did the document end with them.
    while len(bounds) > 2 and bounds[-1] - bounds[-3] <= PIECE_BYTES:
        bounds.pop()
    return bounds[-1]


def pieces(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of D documents, none of them empty, in order.

    Args:
        data: (bytes,) uint8, valid UTF-8. starts, ends: (D,) int64, each document's bytes.

    Returns:
        begins, stops: (P,) int64 each.
    """
    begins = [starts[starts < ends]]
    for document in np.flatnonzero(ends - starts > PIECE_BYTES).tolist():
        end = int(ends[document])
        cuts = [int(starts[document])]
        while (cut := piece_end(data, cuts[-1], end)) < end:
            cuts.append(cut)
        begins.append(np.array(cuts[1:], np.int64))
    all_begins = np.sort(np.concatenate(begins))
    # A piece stops where the next one of its document begins, the last one with its document.
    document_ends = ends[starts < ends]
    of = np.searchsorted(begins[0], all_begins, "right") - 1
    following = np.append(all_begins[1:], np.iinfo(np.int64).max)
    return all_begins, np.minimum(document_ends[of], following)


def mark(
    library: Library, data: np.ndarray, starts: np.ndarray, ends: np.ndarray, marks: np.ndarray
) -> None:
    """Marks the materials of D documents, in order and apart, that of each first byte included.

    Args:
        data: (bytes,) uint8, valid UTF-8. starts, ends: (D,) int64, each document's bytes.
        marks: (bytes,) uint8, all zero; the result.

    Raises:
        UserError: the library cannot cut the text.
    """
    begins, stops = pieces(data, starts, ends)
    marks[begins] = 1
    group_of = np.cumsum(stops - begins) // GROUP_BYTES
    bounds = [0, *(np.flatnonzero(np.diff(group_of)) + 1).tolist(), len(begins)]
    for first, last in itertools.pairwise(bounds):
        if first < last:
            marks[library.starts(data, begins[first:last], stops[first:last])] = 1


class UnicodeRules:
    """The word and sentence boundaries of Unicode Standard Annex #29, by ICU.

    In scripts that put no spaces between words (Thai, Lao, Khmer, Burmese, Chinese, Japanese), ICU
    finds words with its dictionaries, as the annex recommends; and it parts Hangul from letters and
    digits of other scripts.

    Args:
        name: uax29 or sentence.
    """

    def __init__(self, name: str) -> None:
        from icu4py import breakers

        self._breaker = breakers.WordBreaker if name == "uax29" else breakers.SentenceBreaker

    def starts(self, data: np.ndarray, begins: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """As Library.starts; one call of ICU for all pieces, which short documents need.

        Newlines stand between the pieces. The rules never look over one, so each piece is cut as
        it is alone.
        """
        spans = zip(begins.tolist(), stops.tolist(), strict=True)
        joined = b"\n".join([data[begin:stop].tobytes() for begin, stop in spans])
        units = [start for start, _ in self._breaker(joined.decode(), ROOT_LOCALE).segments()]
        found = unit_places(joined)[np.array(units, np.int64)]
        lengths = stops - begins
        joined_begins = np.cumsum(lengths + 1) - lengths - 1
        of = np.searchsorted(joined_begins, found, "right") - 1
        within = found - joined_begins[of]
        inside = within < lengths[of]  # the newlines between the pieces are not the text's
        places: np.ndarray = (begins[of] + within)[inside]
        return places

    def versions(self) -> dict[str, str]:
        """icu4py tells the version of ICU, but not that of Unicode, which follows from it."""
        import icu4py

        return {"icu4py": version("icu4py"), "icu": icu4py.icu_version}


def unit_places(text: bytes) -> np.ndarray:
    """The byte of every UTF-16 unit of a text, in which ICU counts: (units,) int64.

    A character beyond the Basic Multilingual Plane has four bytes and two units.
    """
    data = np.frombuffer(text, np.uint8)
    places = np.flatnonzero(data & 0xC0 != 0x80)
    double = data[places] >= 0xF0
    return np.repeat(places, 1 + double) if double.any() else places


class Tokens:
    """The tokens of a file of the `tokenizers` library, by their offsets in the text.

    What the tokenizer drops, as white space, goes with the token before, or with the first one.
    Tokens that start with the same character, as those of byte-level BPE, are one material.

    Args:
        path: a tokenizer.json. Its truncation, padding and special tokens are left out.

    Raises:
        UserError: the file cannot be read, or is no tokenizer.
    """

    def __init__(self, path: str) -> None:
        # The processes of a run share the cores already. The library asks only for its first text.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import xxhash
        from tokenizers import Tokenizer

        self._path, content = path, content_of(path)
        self._digest = xxhash.xxh3_128(content).hexdigest()
        try:
            self._tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:
            raise UserError(f"{path} is no file of the tokenizers library: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def starts(self, data: np.ndarray, begins: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """As Library.starts.

        Raises:
            UserError: the tokenizer refuses the text, as one without an unknown token can.
        """
        spans = zip(begins.tolist(), stops.tolist(), strict=True)
        texts = [data[begin:stop].tobytes().decode() for begin, stop in spans]
        try:
            found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        except Exception as error:
            raise UserError(f"the tokenizer {self._path} cannot cut a text: {error}") from error
        places = [np.zeros(0, np.int64)]
        for encoding, begin, stop in zip(found, begins.tolist(), stops.tolist(), strict=True):
            characters = np.unique(np.array([start for start, _ in encoding.offsets], np.int64))
            leads = np.flatnonzero(data[begin:stop] & 0xC0 != 0x80)
            # What comes before the first token goes with it. A token of no character can stand
            # at the very end.
            inner = characters[1:]
            places.append(begin + leads[inner[inner < len(leads)]])
        return np.concatenate(places)

    def versions(self) -> dict[str, str]:
        """The library's version, and the hash of the tokenizer file."""
        return {"tokenizers": version("tokenizers"), "tokenizer_xxh3_128": self._digest}
