"""Documents of a text file: whole lines out of pieces of it, and where documents begin and end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

BATCH_BYTES = 1 << 20  # of whole documents: what stays in a core's cache while it is worked on
BLANK_LINES = re.compile(rb"\n(?:[ \t\r\f\v]*\n)+")
BLANK_START = re.compile(rb"(?:[ \t\r\f\v]*\n)*")

Spans = tuple[np.ndarray, np.ndarray]  # starts, ends: (D,) int64 each


def whole(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The whole file as one piece."""
    yield b"".join(chunks)


def line_blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces of about BATCH_BYTES that end with a newline; the last one may lack it."""
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size < BATCH_BYTES:
            continue
        cut = chunk.rfind(b"\n") + 1
        if cut:
            held[-1] = chunk[:cut]
            yield b"".join(held)
            held = [chunk[cut:]]
            size = len(held[0])
    if size:
        yield b"".join(held)


def text_blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces of about BATCH_BYTES that end with a blank line, the last one aside."""
    held: list[bytes] = []
    for block in line_blocks(chunks):
        cut = max((blank.end() for blank in BLANK_LINES.finditer(block)), default=0)
        held.append(block[:cut] if cut else block)
        if cut:
            yield b"".join(held)
            held = [block[cut:]]
    if any(held):
        yield b"".join(held)


def one_span(text: bytes) -> Spans:
    """The whole piece as one document."""
    return np.zeros(1, np.int64), np.array([len(text)], np.int64)


def line_spans(text: bytes) -> Spans:
    """Each line a document, without its newline."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    starts = np.concatenate([np.zeros(1, np.int64), ends + 1])
    if text.endswith(b"\n"):
        starts = starts[:-1]
    else:
        ends = np.append(ends, len(text))
    return starts, ends


def block_spans(text: bytes) -> Spans:
    """Each run of lines between blank lines a document, without the newline of its last line."""
    begin = BLANK_START.match(text)
    first = begin.end() if begin else 0
    starts, ends = [first], []
    for blank in BLANK_LINES.finditer(text, first):
        ends.append(blank.start())
        starts.append(blank.end())
    ends.append(len(text) - text.endswith(b"\n"))
    spans = [
        (start, end) for start, end in zip(starts, ends, strict=True) if text[start:end].strip()
    ]
    table = np.array(spans, np.int64).reshape(-1, 2)
    return table[:, 0].copy(), table[:, 1].copy()
