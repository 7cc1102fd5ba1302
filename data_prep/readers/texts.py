"""The documents of a text file.

What a document is: `file`, its exact bytes; `line`, a line without its newline (a carriage return
stays; an empty line is an empty document); `block`, the lines between blank lines, without the
newline of the last one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from data_prep.documents import Batch, Part
from data_prep.losses import MARK, RETURNS
from data_prep.readers import spans
from data_prep.readers.content import checked
from data_prep.readers.deliver import Delivery
from data_prep.readers.files import PartStream, Stored
from data_prep.readers.task import ReadTask
from data_prep.readers.unpack import DamagedError
from data_prep.readers.utf8 import BYTE_ORDER_MARK
from elemdist.remote import public


class TextReader:
    """Reads one part of a text file, in batches of about a MiB; longer documents stream."""

    def __init__(self, task: ReadTask) -> None:
        self._source, self._problems = task.part.source, task.problems
        self._start = task.part.start
        self._document = task.settings.input.document
        self._stream = PartStream(task.part, task.progress)
        self._lines = LinePlace(task.part)
        self._delivery = Delivery(task, self.where)
        self._delivery.offset = task.part.start
        self._digest = ""

    def batches(self) -> Iterator[Batch]:
        """The documents, in order.

        Raises:
            UserError: a file that cannot be read, or changed; a problem, unless they are skipped.
        """
        chunks = self._noted(checked(self._stream.chunks(), self._source, self._start))
        try:
            if self._document == "file":
                yield from self._delivery.long(chunks, public(self._source.path))
            elif self._document == "line":
                live = self._source.live
                yield from self._documents(spans.line_pieces(chunks, live), spans.line_spans)
            else:
                yield from self._documents(spans.block_pieces(chunks), spans.block_spans)
        except DamagedError as error:
            self._problems.add(self._source.path, "", str(error))
        self._digest = self._stream.finish()

    def _documents(
        self, pieces: Iterator[bytes | spans.Long], spans_of: Callable[[bytes], spans.Spans]
    ) -> Iterator[Batch]:
        for piece in pieces:
            if isinstance(piece, spans.Long):
                yield from self._delivery.long(piece.fragments)
                for fragment in piece.fragments:  # of a document that was left out
                    self._delivery.advance(fragment)
                self._delivery.advance(piece.behind)
            else:
                if self._document == "line":
                    self._note(RETURNS, piece.count(b"\r"))
                starts, ends = spans_of(piece)
                first = self._delivery.line if self._document == "line" else 0
                yield self._delivery.whole(piece, starts, ends, first)

    def _noted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Note a byte order mark at the start of the file."""
        first = next(chunks, b"")
        if self._start == 0 and first.startswith(BYTE_ORDER_MARK):
            self._note(MARK, 1)
        yield from itertools.chain([first] if first else [], chunks)

    def _note(self, reason: str, count: int) -> None:
        self._problems.leave_out(reason, self._source.path, count=count)

    def digest(self) -> str:
        """xxh3_128 of the stored bytes of the part, once all batches are read."""
        return self._digest

    def where(self, place: int) -> str:
        """The line, counted in the whole file; `place` counts from 1 within the part."""
        return self._lines(place)


class LinePlace:
    """Counts lines from the start of the file, for errors in a part of it."""

    def __init__(self, part: Part) -> None:
        self._part, self._before = part, -1

    def __call__(self, place: int) -> str:
        """The place of a line of the part, counted from 1.

        Raises:
            UserError: the file cannot be read.
        """
        if self._before < 0:
            self._before = 0 if self._part.start == 0 else self._counted()
        return f"line {self._before + place:,}"

    def _counted(self) -> int:
        """Return how many lines end before the part."""
        found = 0
        with Stored(self._part.source) as stored:
            at, end = 0, self._part.start
            while at < end and (chunk := stored.read(at, min(stored.read_size, end - at))):
                found += chunk.count(b"\n")
                at += len(chunk)
        return found
