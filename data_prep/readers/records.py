"""The documents of a JSON Lines file: one object a line, blank lines are left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_prep.documents import Batch, batch_of
from data_prep.losses import BLANK, INVALID, TOO_LARGE
from data_prep.readers import jsonl, spans
from data_prep.readers.content import checked
from data_prep.readers.files import PartStream
from data_prep.readers.task import ReadTask
from data_prep.readers.texts import LinePlace
from data_prep.readers.unpack import DamagedError
from data_prep.readers.utf8 import BYTE_ORDER_MARK, MENDING
from data_prep.readers.values import RecordError, document_too_large, too_large
from data_prep.settings import MIB


class JsonlReader:
    """Reads one part of a JSON Lines file, in batches of about a MiB or one larger record."""

    def __init__(self, task: ReadTask) -> None:
        self._part, self._problems = task.part, task.problems
        self._input = task.settings.input
        self._replace = task.settings.on_invalid == "replace"
        self._stream = PartStream(task.part, task.progress)
        self._lines = LinePlace(task.part)
        self._parse = jsonl.Parser(self._input, task.optional_id)
        self._line, self._offset = 1, task.part.start
        self._digest = ""

    def batches(self) -> Iterator[Batch]:
        """The documents, in order; places are lines.

        Raises:
            UserError: a file that cannot be read, or changed; a problem, unless they are skipped.
        """
        try:
            chunks = checked(self._stream.chunks(), self._part.source, self._part.start)
            for piece in spans.line_pieces(chunks, self._part.source.live):
                block = self._held(piece) if isinstance(piece, spans.Long) else piece
                if block:
                    yield self._batch(block)
        except DamagedError as error:
            self._problems.add(self._part.source.path, "", str(error))
        self._digest = self._stream.finish()

    def digest(self) -> str:
        """xxh3_128 of the stored bytes of the part, once all batches are read."""
        return self._digest

    def where(self, place: int) -> str:
        """The line, counted in the whole file; `place` counts from 1 within the part."""
        return self._lines(place)

    def _held(self, long: spans.Long) -> bytes:
        """A long line, with its newline; nothing if it is a problem."""
        line, size = spans.held(long, self._input.max_record_mb * MIB)
        if line is not None:
            return line + long.behind
        self._refuse(self._line, too_large(self._input.max_record_mb), TOO_LARGE)
        self._line += 1
        self._offset += size + len(long.behind)
        return b""

    def _batch(self, block: bytes) -> Batch:
        """The documents of whole lines, the last of which may lack its newline."""
        lines = block.removesuffix(b"\n").split(b"\n")
        first, offset = self._line, self._offset
        self._line += len(lines)
        self._offset += len(block)
        if offset == 0 and block.startswith(BYTE_ORDER_MARK):
            lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
            offset = len(BYTE_ORDER_MARK)
        # No line is larger than the block, so that most often none has to be looked at.
        small = len(block) <= MIB * min(self._input.max_record_mb, self._input.max_document_mb)
        found = self._parse.block(lines) if small else None
        if found is None:
            return self._line_by_line(lines, first, offset)
        documents, labels, ids = found
        places = list(range(first, first + len(lines)))
        return batch_of(documents, labels=labels, ids=ids, places=places)

    def _line_by_line(self, lines: list[bytes], first: int, offset: int) -> Batch:
        """The same for lines of which some are blank, or no good record."""
        documents: list[bytes] = []
        labels: list[list[str]] = []
        ids: list[Any] = []
        places: list[int] = []
        replaced = 0
        for number, line in enumerate(lines, first):
            try:
                record, mended = self._record(line, offset)
                if record is None:
                    self._leave_out(number)
            except RecordError as error:
                self._refuse(number, str(error), error.reason)
                record, mended = None, False
            offset += len(line) + 1
            if record is not None:
                documents.append(record[0])
                labels.append(record[1])
                ids.append(record[2])
                places.append(number)
                replaced += mended
        return batch_of(
            documents,
            labels=[] if self._input.labels_field is None else labels,
            ids=[] if self._input.id_field is None else ids,
            places=places,
            replaced=replaced,
        )

    def _record(self, line: bytes, offset: int) -> tuple[jsonl.Record | None, bool]:
        """What one line holds, None if it is blank; and whether it was mended.

        Raises:
            RecordError: it is no good record.
        """
        if len(line) > self._input.max_record_mb * MIB:
            raise RecordError(too_large(self._input.max_record_mb), TOO_LARGE)
        mended = False
        try:
            record = self._parse(line)
        except jsonl.InvalidTextError as error:
            if not self._replace:
                place = f"byte {offset + error.offset:,}"
                problem = f"invalid UTF-8 at {place} ({error}); {MENDING}"
                raise RecordError(problem, INVALID) from None
            record, mended = self._parse.mended(line), True
        if record is not None and len(record[0]) > self._input.max_document_mb * MIB:
            raise RecordError(document_too_large(self._input.max_document_mb), TOO_LARGE)
        return record, mended

    def _leave_out(self, line: int) -> None:
        self._problems.leave_out(BLANK, self._part.source.path, lambda: self.where(line))

    def _refuse(self, line: int, problem: str, reason: str) -> None:
        self._problems.add(self._part.source.path, self.where(line), problem, reason, line)
