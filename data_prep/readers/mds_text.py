"""Documents out of a column of MDS shards that other tools wrote, and labels and ids of others.

A sample is the sizes of its columns of varying size, uint32 each, and then all columns, in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.documents import Batch, batch_of
from data_prep.losses import INVALID, TOO_LARGE
from data_prep.readers import utf8
from data_prep.readers.deliver import Delivery
from data_prep.readers.labels import LabelReader
from data_prep.readers.mds_files import Columns
from data_prep.readers.task import ReadTask
from data_prep.readers.values import RecordError, document_too_large, id_of, missing
from data_prep.settings import MIB
from elemdist.errors import UserError

if TYPE_CHECKING:
    from data_prep.readers.mds import SampleBlocks

LONG_BYTES = 4 << 20  # of a document that is taken whole; a longer one comes in pieces
PIECE_BYTES = 1 << 20
INTEGERS = {"int": np.dtype("<i8")} | {
    f"{kind}int{bits}": np.dtype(f"<{'u' if kind else 'i'}{bits // 8}")
    for kind in ("", "u")
    for bits in (8, 16, 32, 64)
}
# In arrays of varying type or shape, a byte says which.
ARRAY_TYPES = {
    8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 32: "uint32", 33: "int32", 64: "uint64",
    65: "int64",
}  # fmt: skip
SHAPE_TYPES = ("<u1", "<u2", "<u4", "<u8")


class TextDocuments:
    """The documents of a part of a set with a text column."""

    def __init__(self, blocks: SampleBlocks, task: ReadTask, where: Callable[[int], str]) -> None:
        """
        Raises:
            UserError: the set lacks a column that the settings name, or it cannot be read.
        """
        self._blocks, self._task, self._where = blocks, task, where
        self._problems, self._input = task.problems, task.settings.input
        self._read_labels = LabelReader(self._input)
        self._replace = task.settings.on_invalid == "replace"
        for columns in {shard.columns for shard in blocks.folder.shards}:
            self._check(columns)

    def batches(self) -> Iterator[Batch]:
        """The documents, in order.

        Raises:
            UserError: a shard is missing or damaged; a problem, unless they are skipped.
        """
        for number, first, data, offsets in self._blocks:
            shard = self._blocks.folder.shards[number]
            bounds = bounds_of(data, offsets, shard.columns)
            if bounds is None:
                name = f"{self._blocks.folder.name}/{shard.stored.name}"
                raise UserError(
                    f"{name} is damaged, the sizes in a sample do not fit: copy it again"
                )
            yield from self._documents(data, bounds, shard.columns, first - self._blocks.start + 1)

    def _check(self, columns: Columns) -> None:
        text = self._text(columns)
        if columns[text][1] not in ("str", "bytes"):
            raise UserError(
                f"{self._blocks.folder.name}: column '{columns[text][0]}' has encoding "
                f"{columns[text][1]}, text has str or bytes"
            )
        for setting, name in (
            ("labels_field", self._input.labels_field),
            ("id_field", self._input.id_field),
        ):
            if name is not None:
                encoding = columns[self._column(columns, name, setting)][1]
                if not readable(encoding):
                    raise UserError(
                        f"{self._blocks.folder.name}: column '{name}' has encoding {encoding}, "
                        f"which is not read here: str, json, integers or ndarray of integers are"
                    )

    def _column(self, columns: Columns, name: str, setting: str) -> int:
        names = [column for column, _, _ in columns]
        if "rows" in names and "text" not in names:
            raise UserError(
                f"{self._blocks.folder.name} holds byte rows and has no manifest.json: name the "
                f"sets that it was merged from one by one, or join them by `elemdist convert`"
            )
        if name not in names:
            problem = missing(name, names, setting, "column")
            raise UserError(f"{self._blocks.folder.name}: {problem}")
        return names.index(name)

    def _text(self, columns: Columns) -> int:
        """The number of the column with the text."""
        names = [column for column, _, _ in columns]
        name = self._input.text_field
        if name == "text" and "text" not in names and "bytes" in names:
            name = "bytes"
        return self._column(columns, name, "text_field")

    def _documents(
        self, data: np.ndarray, bounds: np.ndarray, columns: Columns, place: int
    ) -> Iterator[Batch]:
        """The documents of some samples; `place` is that of the first one."""
        text = self._text(columns)
        view = data.data
        held: list[tuple[bytes, dict[str, Any]]] = []
        replaced = 0
        for row, (start, end) in enumerate(bounds[:, text : text + 2].tolist(), place):
            try:
                more = self._more(view, bounds[row - place].tolist(), columns, row)
                if end - start > LONG_BYTES:
                    yield _joined(held, replaced)
                    held, replaced = [], 0
                    yield from self._long(view[start:end], more, row)
                    continue
                document = bytes(view[start:end])
                if not utf8.is_utf8(document):
                    if not self._replace:
                        at = utf8.first_invalid(document)
                        raise RecordError(utf8.complaint(at, document[at]), INVALID)
                    document, replaced = utf8.mended(document), replaced + 1
                if end - start > self._input.max_document_mb * MIB:
                    problem = document_too_large(self._input.max_document_mb)
                    raise RecordError(problem, TOO_LARGE)
            except RecordError as error:
                where = self._where(row)
                self._problems.add(self._blocks.folder.path, where, str(error), error.reason, row)
                continue
            held.append((document, more))
        yield _joined(held, replaced)

    def _long(self, document: memoryview, more: dict[str, Any], place: int) -> Iterator[Batch]:
        """One long document in pieces."""
        # Its place is a sample, whatever the line in it.
        delivery = Delivery(self._task, lambda _: self._where(place))
        pieces = (
            bytes(document[at : at + PIECE_BYTES]) for at in range(0, len(document), PIECE_BYTES)
        )
        for batch in delivery.long(pieces):
            columns: dict[str, Any] = {key: [value] for key, value in more.items()}
            yield replace(batch, **columns)

    def _more(
        self, view: memoryview, bounds: list[int], columns: Columns, place: int
    ) -> dict[str, Any]:
        """Labels, id and place of a document, as far as they are asked for.

        Raises:
            RecordError: its labels or its id are none.
        """
        found: dict[str, Any] = {"places": place}

        def value(name: str, setting: str) -> Any:
            number = self._column(columns, name, setting)
            content = bytes(view[bounds[number] : bounds[number + 1]])
            return decoded(columns[number][1], content, f"column '{name}'")

        name = self._input.labels_field
        if name is not None:
            labels = value(name, "labels_field")
            found["labels"] = self._read_labels(labels, f"column '{name}'")
        name = self._input.id_field
        if name is not None:
            found["ids"] = id_of(value(name, "id_field"), f"column '{name}'")
        return found


def _joined(documents: list[tuple[bytes, dict[str, Any]]], replaced: int) -> Batch:
    more: dict[str, list[Any]] = {}
    for _, values in documents:
        for key, value in values.items():
            more.setdefault(key, []).append(value)
    return batch_of([document for document, _ in documents], replaced=replaced, **more)


def bounds_of(data: np.ndarray, offsets: np.ndarray, columns: Columns) -> np.ndarray | None:
    """Where the C columns of K samples lie: column c of sample k ends where column c + 1 starts.

    Args:
        data: (bytes,) uint8. offsets: (K + 1,) int64, where the samples start.

    Returns:
        (K, C + 1) int64; None if the sizes that a sample lists are not its size.
    """
    starts, ends = offsets[:-1], offsets[1:]
    varying = sum(size is None for _, _, size in columns)
    if (ends - starts < 4 * varying).any():
        return None
    heads = data[starts[:, None] + np.arange(4 * varying)].reshape(len(starts), 4 * varying)
    sizes = np.ascontiguousarray(heads).view("<u4").astype(np.int64)
    found = np.empty((len(starts), len(columns) + 1), np.int64)
    found[:, 0] = starts + 4 * varying
    seen = 0
    for column, (_, _, size) in enumerate(columns):
        found[:, column + 1] = found[:, column] + (sizes[:, seen] if size is None else size)
        seen += size is None
    return found if (found[:, -1] == ends).all() else None


def readable(encoding: str) -> bool:
    """Whether decoded() reads values of an encoding; never pkl, which could run code."""
    name, _, kind = encoding.partition(":")
    if name == "ndarray":
        return not kind or kind.partition(":")[0] in ARRAY_TYPES.values()
    return encoding in INTEGERS or encoding in ("str", "bytes", "str_int", "json")


def decoded(encoding: str, content: bytes, field: str) -> Any:
    """A value as streaming encoded it: a string, an integer, a list of integers, or JSON's.

    Raises:
        RecordError: it is none of that encoding.
    """
    try:
        if encoding in INTEGERS:
            return int(np.frombuffer(content, INTEGERS[encoding], 1)[0])
        if encoding == "str_int":
            return int(content)
        if encoding == "json":
            return json.loads(content)
        if encoding.startswith("ndarray"):
            return _array(encoding, content)
        return content.decode()
    except (ValueError, KeyError, IndexError, RecursionError) as error:
        raise RecordError(f"{field} does not hold what {encoding} says ({error})") from error


def _array(encoding: str, content: bytes) -> list[int]:
    """The integers of an array, whatever its shape."""
    _, kind, shape = (encoding + "::").split(":")[:3]
    if not kind:
        kind, content = ARRAY_TYPES[content[0]], content[1:]
    if not shape:
        dimensions = content[0] >> 2
        content = content[1 + dimensions * np.dtype(SHAPE_TYPES[content[0] & 3]).itemsize :]
    return np.frombuffer(content, np.dtype(kind).newbyteorder("<")).tolist()
