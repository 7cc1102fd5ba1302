"""Documents straight out of the buffers of Arrow columns, without a Python object for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.documents import Batch, batch_of
from data_prep.losses import CLASS_NONE, INVALID, NULL, TOO_LARGE
from data_prep.readers import utf8
from data_prep.readers.labels import LabelReader
from data_prep.readers.values import RecordError, id_of
from data_prep.settings import InputSettings


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold the text, however it is encoded."""
    if isinstance(kind, pa.BaseExtensionType):
        return is_text(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return is_text(kind.value_type)
    types = pa.types
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or _is_view(kind)
    )


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _plain(text: pa.Array) -> pa.Array:
    """A text column without an extension type, and with runs as a dictionary.

    Raises:
        pa.ArrowInvalid: it is damaged.
    """
    if isinstance(text.type, pa.BaseExtensionType):
        return _plain(text.storage)
    if pa.types.is_run_end_encoded(text.type):
        text.validate(full=True)
        first, count = text.find_physical_offset(), text.find_physical_length()
        ends = text.run_ends.to_numpy()[first : first + count].astype(np.int64) - text.offset
        lengths = np.diff(np.minimum(ends, len(text)), prepend=0)
        runs = np.repeat(np.arange(first, first + count), lengths)
        return _plain(pa.DictionaryArray.from_arrays(pa.array(runs), text.values))
    if pa.types.is_dictionary(text.type):
        values = _plain(text.dictionary)
        if _is_view(values.type):
            values = _large(_bytes_view(values))
        if values is not text.dictionary:
            return pa.DictionaryArray.from_arrays(text.indices, values)
    return text


def _bytes_view(text: pa.Array) -> pa.Array:
    """A column of views as bytes, whose UTF-8 is checked later, each in its own place.

    Raises:
        pa.ArrowInvalid: one points outside the data.
    """
    buffers, kind = text.buffers(), pa.binary_view()
    found = pa.Array.from_buffers(kind, len(text), buffers, text.null_count, text.offset)
    found.validate(full=True)
    return found


def _large(views: pa.Array) -> pa.Array:
    """A column of views with its bytes one behind the other."""
    try:
        return views.cast(pa.large_binary())
    except pa.ArrowNotImplementedError:  # by an older pyarrow
        return pa.array(views.to_pylist(), pa.large_binary())


def _lengths(text: pa.Array) -> np.ndarray:
    """Bytes of each value of a plain column or one of views: (rows,)."""
    if not _is_view(text.type):
        return np.diff(_buffers(text)[0])
    # A view has 16 bytes, of which the first four are the length.
    views = np.frombuffer(text.buffers()[1] or b"", "<i4").reshape(-1, 4)
    found = views[text.offset : text.offset + len(text), 0]
    return np.where(text.is_valid().to_numpy(zero_copy_only=False), found, 0)


@dataclass(frozen=True)
class Columns:
    """Makes batches of record batches.

    Attributes:
        labels: reads the labels of a value.
        replace: mend invalid UTF-8. limit: bytes of the longest text. too_large: what is wrong
            with a longer one. refuse: takes the place of a row, what is wrong with it, and a reason
            of losses.py. note: takes a reason of losses.py and a count. typed_ids: ids keep their
            type.
    """

    settings: InputSettings
    labels: LabelReader
    replace: bool
    limit: int
    too_large: str
    refuse: Callable[[int, str, str], None]
    note: Callable[[str, int], None]
    typed_ids: bool = False

    def batches(self, rows: pa.RecordBatch, first: int, size: int) -> Iterator[Batch]:
        """The rows in batches of about `size` bytes of text, or one longer text.

        Args:
            first: the place of the first row.

        Raises:
            pa.ArrowInvalid: the record batch is damaged. UserError: as refuse.
        """
        values: dict[str, Any] = {}
        for field in (self.settings.labels_field, self.settings.id_field):
            if field is not None:
                values[field] = rows.column(field)
                values[field].validate(full=True)
        text = rows.column(self.settings.text_field)
        for start, texts in _slices(text, size):
            others = {name: value.slice(start, len(texts)) for name, value in values.items()}
            yield self._batch(texts, others, first + start)

    def _batch(self, texts: pa.Array, values: dict[str, Any], first: int) -> Batch:
        """One batch: as it lies in memory if all rows are good, else row by row."""
        offsets, data = _buffers(texts)
        data = data[offsets[0] : offsets[-1]]
        bounds = (offsets - offsets[0]).astype(np.int64)
        starts, ends = bounds[:-1], bounds[1:]
        long = (ends - starts).max(initial=0) > self.limit
        if not texts.null_count and not long and _all_utf8(data, starts, ends):
            columns = {name: value.to_pylist() for name, value in values.items()}
            places = list(range(first, first + len(starts)))
            try:
                labels, ids = self._labels(columns), self._ids(columns)
                self._note_none(columns)
                return Batch(data, starts, ends, labels, ids, places)
            except RecordError:
                pass  # row by row it is found out which
        pieces = [data[start:end] for start, end in zip(starts, ends, strict=True)]
        return self._row_by_row(texts, values, first, pieces)

    def _row_by_row(
        self, texts: pa.Array, values: dict[str, Any], first: int, pieces: list[np.ndarray]
    ) -> Batch:
        documents: list[bytes] = []
        labels: list[list[str]] = []
        ids: list[Any] = []
        places: list[int] = []
        replaced = 0
        for row, piece in enumerate(pieces):
            try:
                document = self._text(texts[row].is_valid, piece)
                columns = {name: [value[row].as_py()] for name, value in values.items()}
                labels += self._labels(columns)
                ids += self._ids(columns)
                self._note_none(columns)
            except RecordError as error:
                del labels[len(documents) :]
                self.refuse(first + row, str(error), error.reason)
                continue
            replaced += len(document) != len(piece) or document != piece.tobytes()
            documents.append(document)
            places.append(first + row)
        return batch_of(documents, labels=labels, ids=ids, places=places, replaced=replaced)

    def _text(self, there: bool, piece: np.ndarray) -> bytes:
        """One text, mended where that is asked for."""
        if not there:
            raise RecordError(f"column '{self.settings.text_field}' holds null, not text", NULL)
        if len(piece) > self.limit:
            raise RecordError(self.too_large, TOO_LARGE)
        text = piece.tobytes()
        if utf8.is_utf8(text):
            return text
        if self.replace:
            return utf8.mended(text)
        at = utf8.first_invalid(text)
        raise RecordError(utf8.complaint(at, text[at]), INVALID)

    def _labels(self, columns: dict[str, list[Any]]) -> list[list[str]]:
        field = self.settings.labels_field
        if field is None:
            return []
        return [self.labels(value, f"column '{field}'") for value in columns[field]]

    def _note_none(self, columns: dict[str, list[Any]]) -> None:
        """Count the labels -1 of classes with names."""
        values = columns.get(self.settings.labels_field or "", []) if self.labels.names else []
        none = (value.count(-1) if isinstance(value, list) else value == -1 for value in values)
        self.note(CLASS_NONE, sum(none))

    def _ids(self, columns: dict[str, list[Any]]) -> list[Any]:
        field = self.settings.id_field
        if field is None:
            return []
        if not self.typed_ids:
            return [id_of(value, f"column '{field}'") for value in columns[field]]
        plain = (str, int, float, type(None))  # the others, as dates, JSON does not have
        return [
            value if isinstance(value, plain) else id_of(value, f"column '{field}'")
            for value in columns[field]
        ]


def _slices(text: pa.Array, size: int) -> Iterator[tuple[int, pa.Array]]:
    """A column in plain arrays of about `size` bytes or one longer value, with their first rows."""
    text = _plain(text)
    coded = pa.types.is_dictionary(text.type)
    if _is_view(text.type):
        text = _bytes_view(text)
    lengths = _lengths(text.dictionary if coded else text)
    numbers: np.ndarray | None = None
    if coded:
        indices = text.indices.fill_null(0)
        numbers = indices.to_numpy(zero_copy_only=False).astype(np.int64)
        if not len(lengths):
            lengths = np.zeros(1, np.int64)  # all rows are null
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(lengths):
            raise pa.ArrowInvalid("an index lies outside its dictionary")
        # Distinct texts in their order, as the reader of Parquet gives them.
        plain = len(numbers) == len(lengths) and not text.null_count
        if plain and bool((numbers == np.arange(len(numbers))).all()):
            text, coded = text.dictionary, False
        else:
            lengths = lengths[numbers]
    behind = np.cumsum(lengths, dtype=np.int64)
    start = done = 0
    while start < len(text):
        end = max(start + 1, int(np.searchsorted(behind, done + size, "right")))
        rows = text.slice(start, end - start)
        if coded:
            rows = rows.dictionary.take(rows.indices)
        yield start, _large(rows) if _is_view(rows.type) else rows
        start, done = end, int(behind[end - 1])


def _buffers(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets, (rows + 1,), and data of a column of strings or bytes, checked against each other.

    Raises:
        pa.ArrowInvalid: an offset points outside the data.
    """
    kind = array.type
    wide = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
    item = np.dtype(np.int64 if wide else np.int32)
    _, positions, content = array.buffers()
    if not len(array) or positions is None:
        return np.zeros(1, item), np.zeros(0, np.uint8)
    offsets = np.frombuffer(positions, item, count=positions.size // item.itemsize)
    offsets = offsets[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(content, np.uint8) if content is not None else np.zeros(0, np.uint8)
    whole = len(offsets) == len(array) + 1
    if not whole or offsets[0] < 0 or offsets[-1] > len(data) or (np.diff(offsets) < 0).any():
        raise pa.ArrowInvalid("an offset of a text lies outside its data")
    return offsets, data


def _all_utf8(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> bool:
    """Whether each document is valid UTF-8: all of them as one, and none begins in a character."""
    text = data.tobytes()
    if text.isascii():
        return True
    heads = data[starts[starts < ends]]
    return not ((heads & 0xC0) == 0x80).any() and utf8.is_utf8(text)
