"""Documents of a text file: whole lines out of pieces of it, and where documents begin and end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.readers.unpack import DamagedError

BATCH_BYTES = 1 << 20  # of whole documents: what stays in a core's cache while it is worked on
LONG_BYTES = 2 << 20  # a line or block that has not ended by then is not held, it streams
BLANK_BYTES = 16 << 20  # of white space in one line: whether the line is blank has to be found out
BLANK_LINES = re.compile(rb"\n(?:[ \t\r\f\v]*\n)+")
BLANK_START = re.compile(rb"(?:[ \t\r\f\v]*\n)*")

Spans = tuple[np.ndarray, np.ndarray]  # starts, ends: (D,) int64 each


@dataclass
class Long:
    """A line or block too long to be held.

    Attributes:
        fragments: its bytes, in pieces; they have to be read to their end before going on.
        behind: what stands between it and the next document, once the fragments are read.
    """

    fragments: Iterator[bytes]
    behind: bytes = b""


def held(long: Long, limit: int) -> tuple[bytes | None, int]:
    """All bytes of a long line, or None if they are more than the limit; and how many they are.

    Of a line that is too long, only its end is looked for.
    """
    fragments: list[bytes] = []
    size = 0
    for fragment in long.fragments:
        size += len(fragment)
        if size <= limit:
            fragments.append(fragment)
        else:
            fragments.clear()
    return (b"".join(fragments) if size <= limit else None), size


def line_pieces(chunks: Iterable[bytes], live: bool = False) -> Iterator[bytes | Long]:
    """Pieces of about BATCH_BYTES that end with a newline (the last may lack it), and long lines.

    Args:
        live: hand whole lines on as soon as they are there.

    Raises:
        DamagedError: as the chunks, after all lines that came whole.
    """
    source = iter(chunks)
    least = 1 if live else BATCH_BYTES
    held: list[bytes] = []
    size = 0
    try:
        for chunk in source:
            held.append(chunk)
            size += len(chunk)
            if size < least:
                continue
            cut = chunk.rfind(b"\n") + 1
            if cut:
                held[-1] = chunk[:cut]
                yield b"".join(held)
                held = [chunk[cut:]]
            elif size >= LONG_BYTES:
                text = b"".join(held)
                cut = text.rfind(b"\n") + 1
                if cut:
                    yield text[:cut]
                    held = [text[cut:]]
                else:
                    held = []
                    yield _long_line(text, source, held)
            else:
                continue
            size = sum(map(len, held))
    except DamagedError:
        text = b"".join(held)
        if b"\n" in text:
            yield text[: text.rfind(b"\n") + 1]
        raise
    if size:
        yield b"".join(held)


def _long_line(text: bytes, source: Iterator[bytes], held: list[bytes]) -> Long:
    """A line that begins with `text`; what comes behind it in its last chunk goes to `held`."""

    def fragments() -> Iterator[bytes]:
        yield text
        for chunk in source:
            cut = chunk.find(b"\n")
            if cut >= 0:
                held.append(chunk[cut + 1 :])
                long.behind = b"\n"
                yield chunk[:cut]
                return
            yield chunk

    long = Long(fragments())
    return long


def line_spans(text: bytes) -> Spans:
    """Each line a document, without its newline."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    starts = np.concatenate([np.zeros(1, np.int64), ends + 1])
    if text.endswith(b"\n"):
        starts = starts[:-1]
    else:
        ends = np.append(ends, len(text))
    return starts, ends


def block_pieces(chunks: Iterable[bytes]) -> Iterator[bytes | Long]:
    """Pieces of about BATCH_BYTES that end behind a blank line or the file, and long blocks.

    Raises:
        DamagedError: as the chunks, after all blocks that came whole; a line of white space only
            that is longer than BLANK_BYTES.
    """
    source = iter(chunks)
    text = b""
    try:
        for chunk in source:
            text += chunk
            if len(text) < BATCH_BYTES:
                continue
            cut = _last_blank(text)
            if cut:
                yield text[:cut]
                text = text[cut:]
            elif len(text) >= LONG_BYTES and not _may_be_blank(text):
                held: list[bytes] = []
                yield _long_block(text, source, held)
                text = b"".join(held)
    except DamagedError:
        cut = _last_blank(text)
        if cut:
            yield text[:cut]
        raise
    if text:
        yield text


def _last_blank(text: bytes) -> int:
    """Where the last blank lines end; 0 if there are none.

    Blank lines at the very start belong to no block and count too.
    """
    begin = BLANK_START.match(text)
    first = begin.end() if begin else 0
    return max((blank.end() for blank in BLANK_LINES.finditer(text, first)), default=first)


def _may_be_blank(line: bytes) -> bool:
    """Whether all of a line that has begun is white space, so that it may become a blank one."""
    if line.strip():
        return False
    if len(line) > BLANK_BYTES:
        raise DamagedError(f"has a line with more than {BLANK_BYTES >> 20} MiB of white space only")
    return True


def _long_block(text: bytes, source: Iterator[bytes], held: list[bytes]) -> Long:
    """A block that begins with `text`; what comes behind its blank lines goes to `held`."""

    def fragments() -> Iterator[bytes]:
        rest = text
        while True:
            # The newline belongs to the block only if what follows is no blank line.
            newline = rest.rfind(b"\n")
            cut = len(rest)
            if newline >= 0 and _may_be_blank(rest[newline:]):
                cut = newline
            yield rest[:cut]
            chunk = next(source, None)
            if chunk is None:
                long.behind = rest[cut:]
                return
            rest = rest[cut:] + chunk
            blank = BLANK_LINES.search(rest)
            if blank:
                long.behind = blank.group()
                held.append(rest[blank.end() :])
                yield rest[: blank.start()]
                return

    long = Long(fragments())
    return long


def block_spans(text: bytes) -> Spans:
    """Each run of lines between blank lines a document, without the newline of its last line.

    White space only behind the last newline is a blank line too.
    """
    if not text.endswith(b"\n"):
        text += b"\n"
    begin = BLANK_START.match(text)
    first = begin.end() if begin else 0
    starts, ends = [first], []
    for blank in BLANK_LINES.finditer(text, first):
        ends.append(blank.start())
        starts.append(blank.end())
    ends.append(len(text) - 1)
    table = np.array(list(zip(starts, ends, strict=True)), np.int64).reshape(-1, 2)
    table = table[table[:, 0] < table[:, 1]]
    return table[:, 0].copy(), table[:, 1].copy()
