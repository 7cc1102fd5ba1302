"""The compiled check of the rows of a shard: everything that the byte layout says about them.

Each sample is gone over in passes without branches, which the compiler turns into vector
instructions. Nothing here calls a compiled function of another file: numba's cache would not see
when that one changes.
"""

from __future__ import annotations

import numpy as np
from numpy import uint8

from elemdist.compiled import compiled, inlined
from elemdist.rows import DOC, MASK, PAD, SEP

# What can be wrong with a sample, as bits of its flags.
RESERVED, BEHIND, PADDING, BEGINNING, PLACE, TEXT, CONTINUES, EXTRA_LABELS, OTHER_LABELS = (
    1 << bit for bit in range(9)
)
OF_ROWS = EXTRA_LABELS - 1  # all but those of labels
MEANING = {
    RESERVED: "a byte that never stands in a shard: MASK, C0, C1, or F5 to FB",
    BEHIND: "a row whose bytes are not left-aligned: a byte behind PAD, DOC or SEP in one row, or "
    "DOC or SEP behind slot 0",
    PADDING: "a padding row in front of other rows",
    BEGINNING: "its first row begins nothing: neither DOC nor what goes on with a document",
    PLACE: "a DOC or SEP row where the packing has none",
    TEXT: "its text is not valid UTF-8",
    CONTINUES: "it goes on with a document, but the sample before it has room left, or is none",
    EXTRA_LABELS: "label bits beyond the number of labels",
    OTHER_LABELS: "its labels are not those of the sample in which its document starts",
}
# Places in the counts.
DOCUMENTS, SEPARATORS, PADDING_ROWS, TEXT_BYTES, LEADING = range(5)
COUNTS_SIZE = 5
LONGEST = 3  # bytes of an unfinished character


@inlined
def byte_flags(cells, inner):  # type: ignore[no-untyped-def]
    """RESERVED and BEHIND of one sample, (n * v,) uint8; `inner` is 0 at each slot 0, else 1."""
    reserved = False
    for k in range(len(cells)):
        b = cells[k]
        reserved |= (uint8(b - 0xC0) < 2) | (uint8(b - 0xF5) < 7) | (b == MASK)
    before, here, within = cells[:-1], cells[1:], inner[1:]
    behind = False
    for k in range(len(here)):
        b, p = here[k], before[k]
        wrong = ((p >= SEP) & (b != PAD)) | (b == DOC) | (b == SEP)
        behind |= wrong & (within[k] != 0)
    return reserved * RESERVED | behind * BEHIND


@inlined
def row_flags(cells, v, packed, counts):  # type: ignore[no-untyped-def]
    """PADDING, BEGINNING and PLACE of one sample, by its slots 0, which are counted."""
    first = cells[0]
    flags = 0
    if first == PAD or not (packed or first in (DOC, SEP)):
        flags |= BEGINNING
    padded = False
    for k in range(0, len(cells), v):
        b = cells[k]
        if b == PAD:
            counts[PADDING_ROWS] += 1
            padded = True
            continue
        if padded:
            flags |= PADDING
        counts[DOCUMENTS] += b == DOC
        counts[SEPARATORS] += b == SEP
        if (b == SEP and (packed or k > 0)) or (b == DOC and not packed and k > 0):
            flags |= PLACE
    return flags


@inlined
def is_text(stream, start):  # type: ignore[no-untyped-def]
    """Whether stream[start:] is UTF-8 but for its last character; DOC must not cut a character."""
    b_, p_ = stream[start:], stream[start - 1 : -1]
    q_, r_ = stream[start - 2 : -2], stream[start - 3 : -3]
    wrong = False
    for k in range(len(b_)):
        b, p = b_[k], p_[k]
        # Is one, two or three bytes back the first byte of a character that long?
        due = (uint8(p - 0xC2) < 0x33) | (uint8(q_[k] - 0xE0) < 0x15) | (uint8(r_[k] - 0xF0) < 5)
        wrong |= due != ((b & 0xC0) == 0x80)
        wrong |= ((p == 0xE0) & (b < 0xA0)) | ((p == 0xF0) & (b < 0x90))  # longer than needed
        wrong |= ((p == 0xED) & (b > 0x9F)) | ((p == 0xF4) & (b > 0x8F))  # surrogates, too large
    return not wrong


@inlined
def keep_text(cells, stream):  # type: ignore[no-untyped-def]
    """Writes the bytes that are neither PAD nor SEP to stream[LONGEST:]; returns their number."""
    kept = 0
    for k in range(len(cells)):
        b = cells[k]
        stream[LONGEST + kept] = b
        kept += (b != PAD) & (b != SEP)
    return kept


@inlined
def leading_bytes(stream, kept, most):  # type: ignore[no-untyped-def]
    """How many bytes that go on with a character the stream begins with, at most `most`."""
    found = 0
    while found < min(most, kept) and stream[LONGEST + found] & 0xC0 == 0x80:
        found += 1
    return found


@inlined
def add_labels(bitmap, hot):  # type: ignore[no-untyped-def]
    """Adds the bits of a bitmap to `hot`, the first label in the highest bit."""
    for k in range(len(bitmap)):
        bits = bitmap[k]
        bit = 8 * k
        while bits:
            hot[bit] += bits >> 7
            bits = uint8(bits << 1)
            bit += 1


@inlined
def is_unfinished(last):  # type: ignore[no-untyped-def]
    """Whether text that ends with these LONGEST bytes ends within a character."""
    due = (uint8(last[2] - 0xC2) < 0x33) | (uint8(last[1] - 0xE0) < 0x15)
    return due | (uint8(last[0] - 0xF0) < 5)


@compiled
def check(  # type: ignore[no-untyped-def]
    block, n, v, packed, truncate, torn, labels, flags, counts, hot, leading, last
):
    """Checks the samples of a shard.

    Args:
        block: (samples, label bytes + n * v) uint8, C order, at least one sample.
        packed: documents back to back, else one document a sample. truncate: documents lost what
            a sample could not hold, which may have cut a character. torn: no sample goes on with
            what is in the one before. labels: how many there are.
        flags: (samples,) uint16, overwritten: what is wrong with each sample.
        counts: (COUNTS_SIZE,) int64, added to; LEADING is how many of `leading` are used.
        hot: (8 * label bytes,) int64, added to: documents that have each label.
        leading: (LONGEST,) uint8, written: what a shard that goes on with a document begins with
            if that may be the end of a character, whose beginning is not known here.
        last: (LONGEST,) uint8, overwritten: the last bytes of the text.

    Returns:
        The sample that holds the bitmap of the last document.
    """
    head = block.shape[1] - n * v
    inner = np.ones(n * v, uint8)
    inner[::v] = 0
    spare = uint8((1 << (8 * head - labels)) - 1)
    stream = np.zeros(LONGEST + n * v + 1, uint8)
    owner, room, at_start = 0, False, True
    unknown = LONGEST  # bytes that may go on with a character whose beginning is not known
    for s in range(len(block)):
        bitmap, cells = block[s, :head], block[s, head:]
        documents = counts[DOCUMENTS]
        found = byte_flags(cells, inner) | row_flags(cells, v, packed, counts)
        if head and bitmap[head - 1] & spare:
            found |= EXTRA_LABELS
        if cells[0] == DOC:
            owner = s
            add_labels(bitmap, hot)
            if is_unfinished(stream) and not truncate:
                flags[s - 1] |= TEXT
            stream[:LONGEST] = 0
        elif s > 0 and not torn:
            found |= room * CONTINUES
            found |= (not np.array_equal(bitmap, block[owner, :head])) * OTHER_LABELS
        kept = keep_text(cells, stream)
        counts[TEXT_BYTES] += kept - (counts[DOCUMENTS] - documents)
        skipped = leading_bytes(stream, kept, unknown)
        for k in range(skipped * at_start):
            leading[counts[LEADING]] = stream[LONGEST + k]
            counts[LEADING] += 1
        unknown = (unknown - skipped) * (skipped == kept)
        at_start = at_start and unknown > 0
        good = is_text(stream[: LONGEST + kept], LONGEST + skipped)
        stream[:LONGEST] = stream[kept : kept + LONGEST].copy()
        room = cells[-v] == PAD
        found |= (not good or (room and is_unfinished(stream))) * TEXT
        flags[s] = found
        if torn or found & OF_ROWS:
            # What comes before the next one is not known: it is judged by itself.
            stream[:LONGEST] = 0
            unknown, room, at_start = LONGEST, False, False
    last[:] = stream[:LONGEST]
    return owner
