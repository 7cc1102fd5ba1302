"""The documents of a CSV or TSV file: a header that names the columns, and a record a row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from data_prep.documents import Batch, batch_of
from data_prep.losses import BLANK, INVALID, NO_FIELD, NOT_A_RECORD, TOO_LARGE
from data_prep.readers import spans
from data_prep.readers.content import checked
from data_prep.readers.files import PartStream
from data_prep.readers.labels import LabelReader
from data_prep.readers.task import ReadTask
from data_prep.readers.unpack import DamagedError
from data_prep.readers.utf8 import BYTE_ORDER_MARK, complaint
from data_prep.readers.values import RecordError, document_too_large, missing, too_large
from data_prep.settings import MIB

BATCH_BYTES = 1 << 20
DELIMITERS = {"csv": ",", "tsv": "\t"}
NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}

Row = tuple[bytes, list[str], str]  # text, labels, id


class _Lines:
    """The lines of a file as text, for the csv module, which joins those of one record.

    Attributes:
        number: the last line. first: the first one. size: the record's bytes so far. invalid: what
            is wrong with the record's text; its invalid bytes are surrogates.
    """

    def __init__(self, chunks: Iterator[bytes], limit_mb: int, live: bool) -> None:
        self._lines = _bytes_lines(chunks, limit_mb * MIB, live)
        self._limit_mb = limit_mb
        self._offset = 0
        self.number, self.size, self.invalid, self.first = 0, 0, "", ""

    def begin(self) -> None:
        """A record begins with the next line."""
        self.size, self.invalid = 0, ""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line, size = next(self._lines)
        offset = self._offset
        self.number += 1
        self.size += size
        self._offset += size
        if line is None or self.size > self._limit_mb * MIB:
            raise RecordError(too_large(self._limit_mb), TOO_LARGE)
        if offset == 0:
            line = line.removeprefix(BYTE_ORDER_MARK)
            offset = size - len(line)
            self.first = line.decode(errors="replace")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.invalid = self.invalid or complaint(offset + error.start, line[error.start])
            return line.decode(errors="surrogateescape")


def _bytes_lines(
    chunks: Iterator[bytes], limit: int, live: bool
) -> Iterator[tuple[bytes | None, int]]:
    """Lines with their newlines and their sizes; None for one above the limit."""
    for piece in spans.line_pieces(chunks, live):
        if isinstance(piece, spans.Long):
            line, size = spans.held(piece, limit)
            yield (None if line is None else line + b"\n"), size + 1
        else:
            for line in piece.removesuffix(b"\n").split(b"\n"):
                yield line + b"\n", len(line) + 1


class TableReader:
    """Reads a CSV or TSV file, in batches of about a MiB or one larger record."""

    def __init__(self, task: ReadTask) -> None:
        self._source, self._problems = task.part.source, task.problems
        self._input, self._optional_id = task.settings.input, task.optional_id
        self._batch_bytes = 1 if task.part.source.live else BATCH_BYTES
        self._replace = task.settings.on_invalid == "replace"
        self._stream = PartStream(task.part, task.progress)
        self._columns: list[str] = []
        self._read_labels = LabelReader(self._input)
        self._digest = ""

    def batches(self) -> Iterator[Batch]:
        """The documents, in order; places are the first lines of records.

        Raises:
            UserError: a file that cannot be read, or changed; a problem, unless they are skipped.
        """
        try:
            yield from self._batches()
        except DamagedError as error:
            self._problems.add(self._source.path, "", str(error))
        self._digest = self._stream.finish()

    def digest(self) -> str:
        """xxh3_128 of the stored bytes of the file, once all batches are read."""
        return self._digest

    def where(self, place: int) -> str:
        """The line."""
        return f"line {place:,}"

    def _batches(self) -> Iterator[Batch]:
        rows: list[Row] = []
        places: list[int] = []
        size = replaced = 0
        try:
            for place, row, mended in self._rows():
                rows.append(row)
                places.append(place)
                size += len(row[0])
                replaced += mended
                if size >= self._batch_bytes:
                    yield self._batch(rows, places, replaced)
                    rows, places, size, replaced = [], [], 0, 0
        except DamagedError:
            if rows:
                yield self._batch(rows, places, replaced)
            raise
        if rows:
            yield self._batch(rows, places, replaced)

    def _batch(self, rows: list[Row], places: list[int], replaced: int) -> Batch:
        return batch_of(
            [text for text, _, _ in rows],
            labels=[] if self._input.labels_field is None else [labels for _, labels, _ in rows],
            ids=[] if self._input.id_field is None else [row_id for _, _, row_id in rows],
            places=places,
            replaced=replaced,
        )

    def _rows(self) -> Iterator[tuple[int, Row, bool]]:
        """Each record's first line, what it holds, and whether it was mended.

        Raises:
            DamagedError: as the chunks, or a header without the columns.
        """
        chunks = checked(self._stream.chunks(), self._source, 0)
        lines = _Lines(chunks, self._input.max_record_mb, self._source.live)
        # The same limit for all: whatever is above it, `lines` has refused before.
        csv.field_size_limit(max(csv.field_size_limit(), self._input.max_record_mb * MIB))
        delimiter = DELIMITERS[self._source.format]
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            lines.begin()
            place = lines.number + 1
            try:
                fields = next(reader)
                mended = bool(lines.invalid)
                if mended:
                    fields = self._mended(fields, lines.invalid)
                if not fields:
                    where = partial(self.where, place)
                    self._problems.leave_out(BLANK, self._source.path, where)
                    continue
                if self._columns:
                    yield place, self._row(fields), mended
                else:
                    self._begin(fields)
            except StopIteration:
                return
            except (RecordError, csv.Error) as error:
                told, reason = str(error), getattr(error, "reason", NOT_A_RECORD)
                if told.startswith("new-line character"):  # and advice for programmers
                    told = "a carriage return stands in a field without quotes"
                if not self._columns:
                    told += self._other_delimiter(lines.first)
                    raise DamagedError(f"has no header that can be used: {told}") from error
                self._problems.add(self._source.path, self.where(place), told, reason, place)

    def _other_delimiter(self, header: str) -> str:
        """What to add to a complaint about a header whose fields stand between something else."""
        own = DELIMITERS[self._source.format]
        found = max(NAMES, key=header.count)
        if own in header or found not in header:
            return ""
        if found == "\t":
            return "; its fields stand between tabs: --input.format tsv"
        if found == ",":
            return "; its fields stand between commas: --input.format csv"
        return f"; its fields stand between {NAMES[found]}: write it with {NAMES[own]} between them"

    def _mended(self, fields: list[str], invalid: str) -> list[str]:
        if not self._replace:
            raise RecordError(invalid, INVALID)
        raw = [field.encode(errors="surrogateescape") for field in fields]
        return [field.decode(errors="replace") for field in raw]

    def _begin(self, header: list[str]) -> None:
        """Takes the header."""
        if self._optional_id and self._input.id_field not in header:
            self._input = replace(self._input, id_field=None)
        for setting in ("text_field", "labels_field", "id_field"):
            name = getattr(self._input, setting)
            if name is not None and header.count(name) != 1:
                twice = f"several columns are named '{name}'"
                raise RecordError(
                    twice if name in header else missing(name, header, setting, "column"),
                    NO_FIELD,
                )
        self._columns = header

    def _row(self, fields: list[str]) -> Row:
        """What one record holds.

        Raises:
            RecordError: it has not one field for each column, or its text is too large.
        """
        if len(fields) != len(self._columns):
            raise RecordError(
                f"has {len(fields)} fields, and the header has {len(self._columns)}: quote fields "
                f"that hold a delimiter, a quote or a newline"
            )
        record = dict(zip(self._columns, fields, strict=True))
        text = record[self._input.text_field].encode()
        if len(text) > self._input.max_document_mb * MIB:
            raise RecordError(document_too_large(self._input.max_document_mb), TOO_LARGE)
        labels: list[str] = []
        if self._input.labels_field is not None:
            cell = record[self._input.labels_field]
            labels = self._read_labels(cell, f"column '{self._input.labels_field}'") if cell else []
        return text, labels, "" if self._input.id_field is None else record[self._input.id_field]
