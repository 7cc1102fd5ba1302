"""The compiled loops: text bytes to marks, marks to rows and samples.

A segmenter is a function that marks the first byte of every material of a text: one uint8 for each
byte, 1 at a start. It goes over the text in passes without branches, which the compiler turns into
vector instructions. The packer, the same for every segmenter, cuts what lies between two marks
into rows. It takes linear time for any text, a word of 100 MB as well, and can stop and go on after
every row. Rows follow each other without a gap: nothing is lost.

All stands in one file because numba's cache looks only at the file of the function that it
compiles, not at the files of what that function calls.
"""

from __future__ import annotations

import numpy as np
from numpy import uint8

from data_prep.classes import REPEAT, WHITE, WORD
from elemdist.compiled import compiled, inlined
from elemdist.rows import DOC, PAD, SEP

SPACE = ord(" ")
WINDOW = 4096  # bytes whose marks become positions at a time: they stay in the fastest cache

# Places in the packer's state: document, byte (-1: not begun), is it split, is its end being
# dropped; sample, row of it.
AT_DOCUMENT, AT_BYTE, AT_SPLIT, AT_DROPPING, AT_SAMPLE, AT_ROW = range(6)
STATE_SIZE = 6
# Places in the packer's counts.
SEPARATORS, SPLIT, TRUNCATED, DROPPED_BYTES, PADDING_ROWS = range(5)
COUNTS_SIZE = 5


@inlined
def ascii_kind(b):  # type: ignore[no-untyped-def]
    """The class of an ASCII byte, by comparisons, which unlike a table become vector instructions.

    Bytes of longer characters give SINGLE.
    """
    word = (uint8(uint8(b | 32) - 97) < 26) | (uint8(b - 48) < 10)
    white = (b == SPACE) | (uint8(b - 9) < 5)
    repeat = (uint8(b - 33) < 94) & (not word)
    return uint8(word * WORD + white * WHITE + repeat * REPEAT)


@inlined
def positions(flags, start, stop, found):  # type: ignore[no-untyped-def]
    """Writes where flags[start:stop] is 1 into `found`, and returns how often that is."""
    window = flags[start:stop]
    count = 0
    for k in range(len(window)):
        found[count] = start + k
        count += window[k]
    return count


@inlined
def mark_long_characters(data, table, kinds, leads, found):  # type: ignore[no-untyped-def]
    """Sets the class of all bytes of each WORD character beyond ASCII."""
    for k in range(len(data)):
        leads[k] = data[k] >= 0xC0
    for start in range(0, len(data), WINDOW):
        for at in range(positions(leads, start, min(start + WINDOW, len(data)), found)):
            i = found[at]
            b = np.int64(data[i])
            if b < 0xE0:
                length, point = 2, b & 0x1F
            elif b < 0xF0:
                length, point = 3, b & 0x0F
            else:
                length, point = 4, b & 0x07
            for k in range(1, length):
                point = point << 6 | data[i + k] & 0x3F
            if table[point] == WORD:
                for k in range(length):
                    kinds[i + k] = WORD


@compiled
def mark_words(data, starts, table, kinds, marks):  # type: ignore[no-untyped-def]
    """Marks the materials of the `word` segmenter.

    Args:
        data: (bytes,) uint8, valid UTF-8. starts: (D,) int64, where documents start in it.
        table: data_prep.classes.class_table().
        kinds: (bytes,) uint8, overwritten.
        marks: (bytes,) uint8, the result; at the first byte of a document it means nothing.
    """
    high = uint8(0)
    for k in range(len(data)):
        high |= data[k]
        kinds[k] = ascii_kind(data[k])
    if high >= 0x80:
        mark_long_characters(data, table, kinds, marks, np.empty(WINDOW + 1, np.int64))
    # One and two bytes back; the slices let the compiler see that nothing overlaps.
    b_, p_ = data[2:], data[1:-1]
    kind_, before_, earlier_ = kinds[2:], kinds[1:-1], kinds[:-2]
    out = marks[2:]
    for k in range(len(out)):
        space = b_[k] == SPACE
        # A space behind a word belongs to it, so that white space behind that starts anew.
        taken = (p_[k] == SPACE) & (earlier_[k] == WORD)
        joined = (b_[k] & 0xC0) == 0x80
        joined |= (before_[k] == WORD) & ((kind_[k] == WORD) | space)
        joined |= (before_[k] == WHITE) & (kind_[k] == WHITE) & (not taken)
        joined |= (kind_[k] == REPEAT) & (b_[k] == p_[k])
        out[k] = not joined
    for d in range(len(starts)):  # the second byte of each document, without what is before it
        i = starts[d] + 1
        if i < len(data):
            word = (kinds[i - 1] == WORD) & ((kinds[i] == WORD) | (data[i] == SPACE))
            white = (kinds[i - 1] == WHITE) & (kinds[i] == WHITE)
            repeat = (kinds[i] == REPEAT) & (data[i] == data[i - 1])
            marks[i] = not (word | white | repeat | (data[i] & 0xC0 == 0x80))


@compiled
def mark_characters(data, marks):  # type: ignore[no-untyped-def]
    """Marks the materials of the `char` segmenter, as mark_words does."""
    for k in range(len(data)):
        marks[k] = data[k] & 0xC0 != 0x80


@inlined
def row_end(data, i, material_end, v, anywhere):  # type: ignore[no-untyped-def]
    """The end of the row that starts at byte i: at most v bytes, no character cut if it can be."""
    j = material_end
    if j - i > v:
        j = i + v
        if not anywhere:
            while j > i and data[j] & 0xC0 == 0x80:
                j -= 1
            if j == i:
                j = i + v
    return j


@compiled
def row_ends(data, marks, v, anywhere):  # type: ignore[no-untyped-def]
    """The end of every row of one document that is all of data: (T,) int64."""
    ends = np.empty(len(data), np.int64)
    rows = 0
    i = 0
    while i < len(data):
        j = i + 1
        while j < len(data) and j <= i + v and not marks[j]:
            j += 1
        i = row_end(data, i, j, v, anywhere)
        ends[rows] = i
        rows += 1
    return ends[:rows].copy()


@inlined
def put_symbol(flat, at, v, symbol):  # type: ignore[no-untyped-def]
    """Writes the row of DOC or SEP."""
    flat[at] = symbol
    for k in range(1, v):
        flat[at + k] = PAD


@compiled
def put_rows(data, bounds, count, v, flat, at):  # type: ignore[no-untyped-def]
    """Writes `count` rows at flat[at:]: row k holds data[bounds[k]:bounds[k + 1]], and PAD.

    A loop of its own, over slices, so that the compiler sees that nothing overlaps; v steps for
    every row, because a processor guesses a changing number of steps wrong.
    """
    for k in range(count):
        i, row = bounds[k], flat[at + k * v : at + k * v + v]
        length = bounds[k + 1] - i
        if i + v <= len(data):
            source = data[i : i + v]
            for m in range(v):
                b = source[m]
                row[m] = b if m < length else uint8(PAD)
        else:
            for m in range(v):
                row[m] = data[i + m] if m < length else uint8(PAD)


@inlined
def cut_rows(data, marks, i, end, v, anywhere, hold, room, found, bounds):  # type: ignore[no-untyped-def]
    """Finds the rows of the next WINDOW bytes of data[i:end], at most `room` of them.

    Args:
        hold: what the data end with may go on behind them, so its row is not made yet.
        found: (WINDOW + 1,) int64, overwritten.
        bounds: (WINDOW + 1,) int64, the result: row k is data[bounds[k]:bounds[k + 1]].

    Returns:
        The number of rows.
    """
    stop = min(end, i + WINDOW)
    count = positions(marks, i + 1, stop, found)
    found[count] = stop
    bounds[0] = i
    rows = 0
    next_mark = 0
    while next_mark <= count and rows < room:
        # What ends with the window may go on behind it, so it waits for the next one.
        if next_mark == count and (stop < end or hold) and stop - i <= v:
            break
        i = row_end(data, i, found[next_mark], v, anywhere)
        next_mark += i == found[next_mark]
        rows += 1
        bounds[rows] = i
    return rows


@compiled
def pack(  # type: ignore[no-untyped-def]
    data, starts, ends, bitmaps, marks, state, counts, block, n, v, anywhere, packed, truncate,
    unfinished, hold,
):  # fmt: skip
    """Writes documents as rows into a block of samples, until the block or the documents end.

    Args:
        data: (bytes,) uint8; document d is data[starts[d]:ends[d]], valid UTF-8.
        bitmaps: (D, label bytes) uint8, the bytes that precede the rows of every sample.
        marks: (bytes,) uint8, 1 where a material starts.
        state: (STATE_SIZE,) int64, where to go on; written back.
        counts: (COUNTS_SIZE,) int64, added to.
        block: (samples, label bytes + n * v) uint8, C order.
        anywhere: a row may end within a character.
        packed: documents back to back, else one document a sample. truncate: drop what a sample
            cannot hold, else go on in the next sample behind a SEP row.
        unfinished: the last document goes on with the next call's data. hold: so may its last row.

    Returns:
        None. The block is full when state[AT_SAMPLE] is its length; else all documents are
        written, of an unfinished one all but the bytes from state[AT_BYTE] on.
    """
    d, i, s, r = state[AT_DOCUMENT], state[AT_BYTE], state[AT_SAMPLE], state[AT_ROW]
    head = bitmaps.shape[1]
    flat = block.reshape(-1)
    found, bounds = np.empty(WINDOW + 1, np.int64), np.empty(WINDOW + 1, np.int64)
    while d < len(starts):
        end, more = ends[d], unfinished and d == len(starts) - 1
        # A full sample ends only when something follows, which is seen late in an unfinished one.
        if r == n and (i < 0 or (i < end and not truncate)):
            s, r = s + 1, 0
        if s == len(block):
            break
        sample = s * block.shape[1]
        if r == 0:
            flat[sample : sample + head] = bitmaps[d]
        sample += head
        if i < 0:
            put_symbol(flat, sample + r * v, v, DOC)
            i, r = starts[d], r + 1
            state[AT_SPLIT] = state[AT_DROPPING] = 0
        elif r == 0 and not packed:
            put_symbol(flat, sample, v, SEP)
            counts[SEPARATORS] += 1
            counts[SPLIT] += 1 - state[AT_SPLIT]
            state[AT_SPLIT] = 1
            r = 1
        held = False
        while i < end and r < n and not held:
            rows = cut_rows(data, marks, i, end, v, anywhere, more and hold, n - r, found, bounds)
            put_rows(data, bounds, rows, v, flat, sample + r * v)
            i, r = bounds[rows], r + rows
            held = rows == 0
        if i < end and r == n and truncate:
            counts[TRUNCATED] += 1 - state[AT_DROPPING]
            counts[DROPPED_BYTES] += end - i
            state[AT_DROPPING] = 1
            i = end
        if more and (held or i >= end):
            break
        if i >= end:
            d, i = d + 1, -1
            if not packed:
                flat[sample + r * v : sample + n * v] = PAD
                counts[PADDING_ROWS] += n - r
                s, r = s + 1, 0
    if r == n and s < len(block) and i < 0:
        s, r = s + 1, 0
    state[AT_DOCUMENT], state[AT_BYTE], state[AT_SAMPLE], state[AT_ROW] = d, i, s, r
