"""The documents of Parquet and Arrow files, and of data sets that Hugging Face datasets saved."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data_prep.documents import Batch, Part, Source
from data_prep.losses import NO_FIELD, WRONG_TYPE
from data_prep.readers import arrow_text, class_names, content
from data_prep.readers.arrow_text import Columns
from data_prep.readers.files import Stored, StoredFile
from data_prep.readers.labels import LabelReader
from data_prep.readers.task import ReadTask
from data_prep.readers.values import document_too_large, missing, too_large
from data_prep.settings import MIB, InputSettings
from elemdist.errors import UserError
from elemdist.remote import is_url

BATCH_BYTES = 4 << 20  # of text in a batch, and what Parquet reads ahead of a column
MOST_ROWS = 1 << 14  # of Parquet at a time; what a value takes is known only on average
ARROW_MAGIC = b"ARROW1"
UNPACKED = 3  # bytes of text for each stored byte, for the progress
UNITS = {"parquet": "row group", "arrow": "record batch", "datasets": "record batch"}


class ColumnsError(Exception):
    """A file that does not hold what is asked for; message and reason (losses.py) say why."""

    def __init__(self, problem: str, reason: str = WRONG_TYPE) -> None:
        super().__init__(problem)
        self.reason = reason


class Opened:
    """An open Parquet file, or Arrow file in the file or the stream format.

    Args:
        source: the file. columns: which ones are read. The text's, the first, is read out of
            Parquet as a dictionary: a text that comes many times is then held once, and a file
            that unpacks to very much is no danger.

    Attributes:
        schema: its columns. groups: how many row groups or record batches there are; 1 for a
            stream, which is read as a whole.

    Raises:
        UserError: the file cannot be read, or changed. pa.ArrowException, OSError: it is damaged.
    """

    def __init__(self, source: Source, columns: list[str]) -> None:
        self._columns = columns
        with ExitStack() as stack:
            self._stored = stack.enter_context(Stored(source))
            self._stored.check()
            self._parquet: pq.ParquetFile | None = None
            self._arrow: Any = None
            if source.format == "parquet":
                file = self._file(source) if is_url(source.path) else source.path
                first = pq.ParquetFile(file, pre_buffer=False)
                self.schema, self.groups = first.schema_arrow, first.num_row_groups
                coded = [name for name in columns[:1] if is_text_column(self.schema, name)]
                self._parquet = pq.ParquetFile(
                    file,
                    metadata=first.metadata,
                    read_dictionary=coded,
                    pre_buffer=False,
                    buffer_size=BATCH_BYTES,
                )
            else:
                self._whole = self._stored.read(0, len(ARROW_MAGIC)) == ARROW_MAGIC
                self.schema = self._open_arrow(source, None).schema
                fields = [k for k, name in enumerate(self.schema.names) if name in columns]
                self._arrow = self._open_arrow(source, fields)
                self.groups = self._arrow.num_record_batches if self._whole else 1
            self._stack = stack.pop_all()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open_arrow(self, source: Source, fields: list[int] | None) -> Any:
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        # Mapped, so that of a large record batch only what is worked on is in memory.
        file = self._file(source) if is_url(source.path) else pa.memory_map(source.path)
        return (pa.ipc.open_file if self._whole else pa.ipc.open_stream)(file, options=options)

    def _file(self, source: Source) -> Any:
        return pa.PythonFile(StoredFile(self._stored, source.size), mode="r")

    def check(self) -> None:
        """Raises a UserError if the file changed since the plan."""
        self._stored.check()

    def sizes(self, group: int) -> tuple[int, int]:
        """Bytes of the columns of a row group of a Parquet file, as stored and unpacked."""
        assert self._parquet is not None
        found = self._parquet.metadata.row_group(group)
        chunks = [found.column(k) for k in range(found.num_columns)]
        chunks = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in self._columns]
        stored = sum(chunk.total_compressed_size for chunk in chunks)
        return stored, sum(chunk.total_uncompressed_size for chunk in chunks)

    def read(self, start: int, end: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The record batches of the groups from start to end, each with its group."""
        if self._parquet is None and not self._whole:
            yield from ((number, batch) for number, batch in enumerate(self._arrow))
            return
        for group in range(start, min(end, self.groups)):
            if self._parquet is None:
                yield group, self._arrow.get_batch(group)
                continue
            rows = self._parquet.metadata.row_group(group).num_rows
            few = min(MOST_ROWS, max(1, BATCH_BYTES * rows // max(1, self.sizes(group)[1])))
            for batch in self._parquet.iter_batches(few, [group], self._columns, use_threads=False):
                yield group, batch


def cut(source: Source, limit: int, settings: InputSettings) -> list[Part]:
    """Parts of whole row groups or record batches, of about `limit` stored bytes.

    A file that is damaged is one part: whoever reads it finds out what is wrong.

    Raises:
        UserError: the file cannot be read, or changed.
    """
    try:
        with Opened(source, wanted(settings)) as opened:
            groups = opened.groups
            if source.format == "parquet":
                weights = [opened.sizes(group)[0] for group in range(groups)]
            else:
                weights = [source.size // max(1, groups)] * groups
    except (pa.ArrowException, OSError):
        return [Part(source, 0, 1, source.size)]
    parts = []
    start = held = 0
    for group, weight in enumerate(weights):
        held += weight
        if held >= limit or group == groups - 1:
            parts.append(Part(source, start, group + 1, held))
            start, held = group + 1, 0
    return parts or [Part(source, 0, 0, 0)]


def wanted(settings: InputSettings) -> list[str]:
    """The columns that are read: the text's first."""
    names = [settings.text_field, settings.labels_field, settings.id_field]
    return list(dict.fromkeys(name for name in names if name is not None))


def is_text_column(schema: pa.Schema, name: str) -> bool:
    """Whether there is one column of that name, and it can hold text."""
    at = schema.get_field_index(name)  # -1 also where there are several
    return at >= 0 and arrow_text.is_text(schema.field(at).type)


class ColumnReader:
    """Reads row groups or record batches, in batches of about 4 MiB or one larger value."""

    def __init__(self, task: ReadTask) -> None:
        self._part, self._settings, self._problems = task.part, task.settings, task.problems
        self._input, self._optional_id = task.settings.input, task.optional_id
        self._progress, self._told = task.progress, 0
        # Places count rows within the part; here is where each record batch begins.
        self._firsts: list[int] = []
        self._places: list[tuple[int, int]] = []  # its group, and its first row in that
        self._rows = 0
        # Apart, so that the digest does not depend on how the content falls into batches.
        self._texts, self._lengths = xxhash.xxh3_128(), xxhash.xxh3_128()

    def batches(self) -> Iterator[Batch]:
        """The documents, in order; places are rows.

        Raises:
            UserError: a file that cannot be read, or changed; a problem, unless they are skipped.
        """
        path = self._part.source.path
        try:
            with Opened(self._part.source, wanted(self._input)) as opened:
                self._check(opened.schema)
                for batch in self._read(opened):
                    lengths = batch.ends - batch.starts
                    self._lengths.update(lengths)
                    self._texts.update(_text_of(batch))
                    yield batch
                opened.check()
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise UserError(f"cannot read {path}: {error.strerror}") from error
            told = " ".join(str(error).split())
            format = self._part.source.format
            hint = self._hint() or f"is damaged, cut short, or no {format} file: {told}"
            self._problems.add(path, "", hint)
        except ColumnsError as error:
            self._problems.add(path, "", str(error), error.reason)
        self._progress(max(0, self._part.weight - self._told))

    def _hint(self) -> str:
        """What the file is, if its first bytes show that it is of another format."""
        source = self._part.source
        with Stored(source) as stored:
            return content.advice(stored.read(0, content.LOOK_BYTES), source)

    def digest(self) -> str:
        """xxh3_128 of the documents' bytes and lengths, once all batches are read."""
        both = self._texts.digest() + self._lengths.digest()
        return xxhash.xxh3_128_hexdigest(both)

    def where(self, place: int) -> str:
        """The row, counted from 1 within its row group or record batch, from 1 as well."""
        number = bisect.bisect_right(self._firsts, place) - 1
        group, row = self._places[number]
        unit = UNITS[self._part.source.format]
        return f"row {row + place - self._firsts[number]:,} of {unit} {group + 1:,}"

    def _check(self, schema: pa.Schema) -> None:
        """Refuses a file that lacks a column, or whose columns hold something else."""
        if self._optional_id and self._input.id_field not in schema.names:
            self._input = replace(self._input, id_field=None)
        for setting in ("text_field", "labels_field", "id_field"):
            name = getattr(self._input, setting)
            if name is not None and schema.names.count(name) > 1:
                raise ColumnsError(f"several columns are named '{name}'")
            if name is not None and name not in schema.names:
                raise ColumnsError(missing(name, schema.names, setting, "column"), NO_FIELD)
        text = self._input.text_field
        if not is_text_column(schema, text):
            kind = schema.field(text).type
            raise ColumnsError(f"column '{text}' holds {kind}, not text: set --input.text-field")

    def _read(self, opened: Opened) -> Iterator[Batch]:
        input = self._input
        names = class_names.of(self._part.source, opened.schema, input.labels_field)
        columns = Columns(
            input,
            LabelReader(input, names),
            replace=self._settings.on_invalid == "replace",
            limit=min(input.max_record_mb, input.max_document_mb) * MIB,
            too_large=too_large(input.max_record_mb)
            if input.max_record_mb <= input.max_document_mb
            else document_too_large(input.max_document_mb),
            refuse=lambda place, problem, reason: self._problems.add(
                self._part.source.path, self.where(place), problem, reason, place
            ),
            note=lambda reason, count: self._problems.leave_out(
                reason, self._part.source.path, count=count
            ),
            typed_ids=self._optional_id,
        )
        row, group_before = 1, -1
        for group, rows in opened.read(self._part.start, self._part.end):
            row = row if group == group_before else 1
            group_before = group
            self._firsts.append(self._rows + 1)
            self._places.append((group, row))
            for batch in columns.batches(rows, self._rows + 1, BATCH_BYTES):
                yield batch
                # What is left of the weight, text unpacking to more than is stored, comes last.
                told = min(len(batch.data) // UNPACKED, self._part.weight - self._told)
                self._told += told
                self._progress(told)
            self._rows += rows.num_rows
            row += rows.num_rows


def _text_of(batch: Batch) -> Any:
    """All bytes of the documents of a batch, which lie in it one behind the other."""
    if not len(batch):
        return b""
    return batch.data[batch.starts[0] : batch.ends[-1]]
