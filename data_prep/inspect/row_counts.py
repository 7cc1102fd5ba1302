"""The compiled count of materials by their length, and of the rows that documents need.

A file of its own, with all that it calls: numba's cache looks only at the file of the function
that it compiles. How a long material goes on in the next row is as in kernels.row_end.
"""

from __future__ import annotations

from elemdist.compiled import compiled


@compiled
def count_rows(data, marks, starts, ends, widths, anywhere, lengths, rows):  # type: ignore[no-untyped-def]
    """Counts the materials of D documents, and their rows at each of W widths.

    Args:
        data: (bytes,) uint8, valid UTF-8. starts, ends: (D,) int64, each document's bytes.
        marks: (bytes,) uint8, 1 where a material starts.
        widths: (W,) int64, values of v. anywhere: a row may end within a character.
        lengths: (longest + 1,) int64, added to: materials by their bytes; the last entry takes all
            that are longer.
        rows: (D, W) int64, the result.
    """
    longest = len(lengths) - 1
    for d in range(len(starts)):
        i, end = starts[d], ends[d]
        rows[d] = 0
        while i < end:
            j = i + 1
            while j < end and not marks[j]:
                j += 1
            lengths[min(j - i, longest)] += 1
            for w in range(len(widths)):
                v = widths[w]
                if anywhere:
                    rows[d, w] += (j - i + v - 1) // v
                    continue
                row = i
                while j - row > v:
                    stop = row + v
                    while stop > row and data[stop] & 0xC0 == 0x80:
                        stop -= 1
                    row = stop if stop > row else row + v
                    rows[d, w] += 1
                rows[d, w] += 1
            i = j
