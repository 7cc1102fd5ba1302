"""The compiled loops that take rows apart, and count what they hold.

A file of its own: numba's cache looks only at the file of the function that it compiles.
"""

from __future__ import annotations

from numpy import uint8

from elemdist.compiled import compiled
from elemdist.rows import DOC, FIRST_SPECIAL, PAD, SEP


@compiled
def take_text(block, head, v, rows, data, starts, samples):  # type: ignore[no-untyped-def]
    """Writes the text of rows, and the places of DOC rows in it.

    Args:
        block: (S, head + n * v) uint8, samples with their label bitmaps. rows: how many of the
            S * n rows are taken.
        data: (S * n * v + v,) uint8, overwritten: the bytes that are no symbols.
        starts: (S * n,) int64, overwritten: where each document starts in the data.
        samples: (S * n,) int64, overwritten: the sample in which it starts.

    Returns:
        The number of bytes and the number of documents.
    """
    n = (block.shape[1] - head) // v
    size = documents = 0
    for s in range(block.shape[0]):
        cells = block[s, head:]
        for r in range(min(n, rows - s * n)):
            row = cells[r * v : r * v + v]
            if row[0] == PAD:
                continue
            if row[0] == DOC:
                starts[documents], samples[documents] = size, s
                documents += 1
                continue
            # All slots: what is no text is overwritten by the next row, for rows are left-aligned.
            out = data[size : size + v]
            length = 0
            for k in range(v):
                out[k] = row[k]
                length += row[k] < uint8(FIRST_SPECIAL)
            size += length
    return size, documents


@compiled
def count_rows(block, head, v, counts):  # type: ignore[no-untyped-def]
    """Counts what rows hold.

    Args:
        block: (S, head + n * v) uint8, samples with their label bitmaps.
        counts: (4,) int64, added to: bytes of text; rows that are DOC, SEP, and padding.
    """
    for s in range(block.shape[0]):
        cells = block[s, head:]
        text = 0
        for k in range(len(cells)):
            text += cells[k] < uint8(FIRST_SPECIAL)
        counts[0] += text
        for k in range(0, len(cells), v):
            counts[1] += cells[k] == DOC
            counts[2] += cells[k] == SEP
            counts[3] += cells[k] == PAD
