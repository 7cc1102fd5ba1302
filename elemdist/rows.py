"""The byte layout: what the bytes of a row mean, and how rows become text again.

A *row* is one material: v bytes (uint8), left-aligned. A *sample* is n rows, always n * v bytes.
The special symbols are byte values that valid UTF-8 never contains, so text round-trips without
loss and an element table needs exactly 256 rows.

Shape suffixes, here and in the whole library: B samples of a batch, N materials (rows) of a sample,
V elements (slots) of a material, C width of an element, W width of the model, H heads,
T rows of a batch without padding, M masked rows, L labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

PAD = 0xFF  # an unused slot; a row that starts with PAD is padding
MASK = 0xFE  # a masked row holds MASK in all slots
DOC = 0xFD  # in slot 0: a document starts; this row's output is the document's vector
SEP = 0xFC  # in slot 0: a new segment of the same document (a sample that continues one starts so)
FIRST_SPECIAL = SEP
ELEMENTS = 256  # rows of the element table

SYMBOL_NAMES = {PAD: "PAD", MASK: "MASK", DOC: "DOC", SEP: "SEP"}


def special_row(symbol: int, v: int) -> np.ndarray:
    """The row that stands for DOC or SEP: the symbol in slot 0, PAD behind it. Shape (v,)."""
    row = np.full(v, PAD, np.uint8)
    row[0] = symbol
    return row


def rows_to_bytes(rows: np.ndarray) -> bytes:
    """Text bytes of rows of any leading shape (..., v), in order, special bytes dropped."""
    flat = rows.reshape(-1)
    return flat[flat < FIRST_SPECIAL].tobytes()


def documents(samples: Iterable[np.ndarray]) -> Iterator[bytes]:
    """The documents of consecutive samples, each (n, v) uint8, as UTF-8 bytes.

    A document starts at a DOC row and runs to the next one, over the ends of samples.
    """
    parts: list[bytes] | None = None
    for rows_NV in samples:
        starts = np.flatnonzero(rows_NV[:, 0] == DOC)
        bounds = [0, *starts.tolist(), len(rows_NV)]
        for k, (first, last) in enumerate(itertools.pairwise(bounds)):
            if k > 0:
                if parts is not None:
                    yield b"".join(parts)
                parts = []
            if parts is not None:
                parts.append(rows_to_bytes(rows_NV[first:last]))
    if parts is not None:
        yield b"".join(parts)
