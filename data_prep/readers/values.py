"""Labels and ids out of the values of a record, and what is wrong with a record."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from data_prep.losses import NOT_A_RECORD, NULL, WRONG_TYPE
from elemdist.errors import nearest

FIELDS_NAMED = 12  # in an error; a record can have hundreds


class RecordError(Exception):
    """A record that is not as the settings describe it; the message says why.

    Attributes:
        reason: one of losses.py.
    """

    def __init__(self, problem: str, reason: str = NOT_A_RECORD) -> None:
        super().__init__(problem)
        self.reason = reason


def reason_of(value: Any) -> str:
    """Return why a value of the wrong type is none: it is null, or something else."""
    return NULL if value is None else WRONG_TYPE


def kind(value: Any) -> str:
    """What a value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    names[bytes] = "bytes"
    if value is None:
        return "null"
    return names.get(type(value), "a number")


def id_of(value: Any, field: str) -> str:
    """The id that a value stands for: a string or an integer.

    Raises:
        RecordError: the value is none of these.
    """
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        problem = f"{field} holds {kind(value)}: an id is a string or an integer"
        raise RecordError(problem, reason_of(value))
    return str(value)


def missing(name: str, known: Sequence[str], setting: str, what: str = "field") -> str:
    """The complaint about a field or column that is not there, and which there are."""
    names = ", ".join(known[:FIELDS_NAMED]) or "none"
    more = ", ..." if len(known) > FIELDS_NAMED else ""
    return (
        f"no {what} '{name}' (its {what}s: {names}{more}){nearest(name, known)} "
        f"Set --input.{setting.replace('_', '-')}"
    )


def too_large(limit_mb: int) -> str:
    """The complaint about a record that is not held in memory."""
    return f"holds more than {limit_mb:,} MiB: raise --input.max-record-mb"


def document_too_large(limit_mb: int) -> str:
    """The complaint about a document that is larger than allowed."""
    return f"holds more than {limit_mb:,} MiB: raise --input.max-document-mb"
