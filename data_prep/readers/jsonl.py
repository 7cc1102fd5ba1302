"""One line of JSON Lines: its text, labels and id, or what is wrong with it."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from data_prep.losses import NO_FIELD, WRONG_TYPE
from data_prep.readers.labels import LabelReader
from data_prep.readers.values import RecordError, id_of, kind, missing, reason_of
from data_prep.settings import InputSettings

REPLACEMENT = "\ufffd"
INEXACT = (float, list, dict)  # orjson reads integers of more than 64 bits as floats
LONE_SURROGATE = re.compile("[\ud800-\udfff]")

Record = tuple[bytes, list[str], Any]  # text, labels, id; none and "" where they are not asked for


class InvalidTextError(Exception):
    """Text that UTF-8 cannot hold, at a byte of the line."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset = offset


class Parser:
    """Takes lines apart.

    Args:
        settings: which fields hold the text, the labels and the id. optional_id: as ReadTask has
            it.
    """

    def __init__(self, settings: InputSettings, optional_id: bool = False) -> None:
        self._optional_id = optional_id
        self._text_field, self._labels_field = settings.text_field, settings.labels_field
        self._id_field, self._read_labels = settings.id_field, LabelReader(settings)

    def block(self, lines: list[bytes]) -> tuple[list[bytes], list[list[str]], list[Any]] | None:
        """Texts, labels and ids of lines that are all good; None if one is not, or blank."""
        field = self._text_field
        try:
            if self._labels_field is None and self._id_field is None:
                return [orjson.loads(line)[field].encode() for line in lines], [], []
            records = [orjson.loads(line) for line in lines]
            texts = [record[field].encode() for record in records]
            labels = [] if self._labels_field is None else [self._labels(r) for r in records]
            ids = [] if self._id_field is None else [self._id(r) for r in records]
            if self._optional_id and any(isinstance(id, INEXACT) for id in ids):
                return None
        except (ValueError, TypeError, KeyError, AttributeError, RecordError):
            return None  # whatever is wrong, line by line it is found out
        return texts, labels, ids

    def __call__(self, line: bytes) -> Record | None:
        """Text, labels and id of a line; None for a blank one.

        Raises:
            RecordError: no JSON object, or one without the fields.
            InvalidTextError: invalid UTF-8, or half of a surrogate pair.
        """
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if not line.strip():
                return None
            record = _read_again(line, str(error))
        text, labels, id = self._parts(record)
        if self._optional_id:
            if isinstance(id, INEXACT):
                id = self._id(_read_again(line, "the id is too large"))
            values = [text, *labels]  # the id is handed on as it is
        else:
            values = [text, *labels, id]
        for value in values:
            half = LONE_SURROGATE.search(value)
            if half:
                raise InvalidTextError(0, f"half of a surrogate pair, \\u{ord(half.group()):04x}")
        return text.encode(), labels, id

    def mended(self, line: bytes) -> Record:
        """The same of a line with invalid text, with U+FFFD for all that is invalid.

        Raises:
            RecordError: the line is no record for other reasons.
        """
        try:
            record = json.loads(line.decode(errors="replace"))
        except (ValueError, RecursionError) as error:
            raise RecordError(f"not valid JSON ({error})") from None
        text, labels, id = self._parts(record)
        text = LONE_SURROGATE.sub(REPLACEMENT, text)
        if isinstance(id, str):
            id = LONE_SURROGATE.sub(REPLACEMENT, id)
        return text.encode(), [LONE_SURROGATE.sub(REPLACEMENT, label) for label in labels], id

    def _parts(self, record: Any) -> tuple[str, list[str], Any]:
        text = self._field(record, self._text_field, "text_field")
        if not isinstance(text, str):
            problem = f"field '{self._text_field}' holds {kind(text)}, not a string"
            raise RecordError(problem, reason_of(text))
        labels = [] if self._labels_field is None else self._labels(record)
        return text, labels, "" if self._id_field is None else self._id(record)

    def _labels(self, record: Any) -> list[str]:
        field = self._labels_field or ""
        value = self._field(record, field, "labels_field")
        return self._read_labels(value, f"field '{field}'")

    def _id(self, record: Any) -> Any:
        field = self._id_field or ""
        if self._optional_id:
            return record.get(field)
        return id_of(self._field(record, field, "id_field"), f"field '{field}'")

    def _field(self, record: Any, field: str, setting: str) -> Any:
        if not isinstance(record, dict):
            raise RecordError(f"holds {kind(record)}, not an object with fields", WRONG_TYPE)
        if field not in record:
            raise RecordError(missing(field, list(record), setting), NO_FIELD)
        return record[field]


def _read_again(line: bytes, complaint: str) -> Any:
    """A line that orjson refuses: invalid text, lone surrogates, NaN, or no JSON at all."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InvalidTextError(error.start, f"byte 0x{line[error.start]:02x}") from None
    except (ValueError, RecursionError):
        raise RecordError(f"not valid JSON ({complaint})") from None
