"""One line of JSON Lines: its text and its labels, or what is wrong with it."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from elemdist.errors import nearest

REPLACEMENT = "\ufffd"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
FIELDS_NAMED = 12  # in an error; a record can have hundreds


class RecordError(Exception):
    """A line that is not a record as the settings describe it; the message says why."""


class InvalidTextError(Exception):
    """Text that UTF-8 cannot hold, at a byte of the line."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset = offset


class Parser:
    """Takes lines apart.

    Args:
        text_field: the field that holds the text. labels_field: the one that holds the labels, a
            list, or one, of strings or integers; None for no labels.
    """

    def __init__(self, text_field: str, labels_field: str | None) -> None:
        self._text_field, self._labels_field = text_field, labels_field

    def __call__(self, line: bytes) -> tuple[bytes, list[str]] | None:
        """The UTF-8 text and the labels of a line; None for a blank one.

        Raises:
            RecordError: no JSON object, or one without the fields.
            InvalidTextError: invalid UTF-8, or half of a surrogate pair.
        """
        if self._labels_field is None:
            try:  # most lines of most corpora; whatever is wrong, the careful way below finds out
                return orjson.loads(line)[self._text_field].encode(), []
            except (ValueError, TypeError, KeyError, AttributeError):
                pass
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if not line.strip():
                return None
            record = _read_again(line, str(error))
        text = self._text(record)
        labels = [] if self._labels_field is None else self._labels(record)
        try:
            return text.encode(), labels
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise InvalidTextError(0, f"half of a surrogate pair, \\u{code:04x}") from None

    def mended(self, line: bytes) -> tuple[bytes, list[str]]:
        """The same of a line with invalid text, with U+FFFD for all that is invalid.

        Raises:
            RecordError: the line is no record for other reasons.
        """
        try:
            record = json.loads(line.decode(errors="replace"))
        except (ValueError, RecursionError) as error:
            raise RecordError(f"not valid JSON ({error})") from None
        text = LONE_SURROGATE.sub(REPLACEMENT, self._text(record))
        labels = [] if self._labels_field is None else self._labels(record)
        return text.encode(), [LONE_SURROGATE.sub(REPLACEMENT, label) for label in labels]

    def _text(self, record: Any) -> str:
        text = self._field(record, self._text_field, "text_field")
        if not isinstance(text, str):
            raise RecordError(f"field '{self._text_field}' holds {_kind(text)}, not a string")
        return text

    def _labels(self, record: Any) -> list[str]:
        field = self._labels_field or ""
        value = self._field(record, field, "labels_field")
        labels = value if isinstance(value, list) else [value]
        for label in labels:
            if isinstance(label, bool) or not isinstance(label, (str, int)):
                raise RecordError(
                    f"field '{field}' holds {_kind(label)}: labels are strings or integers"
                )
        return [str(label) for label in labels]

    def _field(self, record: Any, field: str, setting: str) -> Any:
        if not isinstance(record, dict):
            raise RecordError(f"holds {_kind(record)}, not an object with fields")
        if field not in record:
            names = ", ".join(list(record)[:FIELDS_NAMED]) or "none"
            more = ", ..." if len(record) > FIELDS_NAMED else ""
            raise RecordError(
                f"no field '{field}' (its fields: {names}{more}){nearest(field, record)} "
                f"Set --input.{setting.replace('_', '-')}"
            )
        return record[field]


def _read_again(line: bytes, complaint: str) -> Any:
    """A line that orjson refuses: invalid text, lone surrogates, NaN, or no JSON at all."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InvalidTextError(error.start, f"byte 0x{line[error.start]:02x}") from None
    except (ValueError, RecursionError):
        raise RecordError(f"not valid JSON ({complaint})") from None


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")
