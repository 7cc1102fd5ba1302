"""Labels out of the values of records: names, numbers of classes, or multi-hot lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from data_prep.losses import UNKNOWN_LABEL, WRONG_TYPE
from data_prep.readers.values import RecordError, kind, reason_of
from data_prep.settings import InputSettings
from elemdist.errors import UserError

HOT = {"0": False, "1": True, "0.0": False, "1.0": True, "False": False, "True": True}
LIST_TEXT = re.compile(r"""\[(.*[,'"].*|[01. ]+)\]""", re.DOTALL)
BARE_LIST = re.compile(r"[01](\.0)?([ ,;|][01](\.0)?){2,}")
HINT = (
    "a list with 0 or 1 for each label is read by --input.labels-as multi_hot and "
    "--input.label-names FILE (a name a line)"
)


class LabelReader:
    """Reads the labels of records.

    Args:
        names: of the labels, by their number; None: as the file in the settings has them.

    Attributes:
        names: the same; None if labels stand for themselves.

    Raises:
        UserError: the file of names cannot be read or used.
    """

    def __init__(self, settings: InputSettings, names: Sequence[str] | None = None) -> None:
        self._separator = settings.labels_separator
        self._multi_hot = settings.labels_as == "multi_hot"
        self.names = names_in(settings.label_names) if settings.label_names else names
        self._length = 0  # of multi-hot lists without names

    def __call__(self, value: Any, field: str) -> list[str]:
        """Return the labels that a value stands for: a list, or one, of strings or integers.

        Args:
            field: the value's field, as an error names it.

        Raises:
            RecordError: the value is none of these.
        """
        if isinstance(value, str) and self._is_list_text(value.strip()):
            raise RecordError(
                f"{field} holds a list that is written as text, {value[:20]!r}: write a list, or "
                f"the labels with --input.labels-separator between them",
                WRONG_TYPE,
            )
        if self._separator is not None and isinstance(value, str):
            parts = value.split(self._separator)
            value = [label for part in parts if (label := part.strip())]
        if self._multi_hot:
            return self._hot(value, field)
        labels = value if isinstance(value, list) else [value]
        for label in labels:
            if isinstance(label, bool) or not isinstance(label, (str, int)):
                hint = f"; {HINT}" if isinstance(value, list) and _is_hot(value) else ""
                problem = f"{field} holds {kind(label)}: labels are strings or integers{hint}"
                raise RecordError(problem, reason_of(label))
        found = [str(label) for label in labels]
        if not all(found):
            raise RecordError(f"{field} holds an empty text, which names no label", WRONG_TYPE)
        if len(found) > 1 and found[0] in HOT and len(set(found)) < len(found) and _is_hot(found):
            raise RecordError(f"{field} names the label {found[0]} twice: {HINT}", WRONG_TYPE)
        return found if self.names is None else self._named(found)

    def _is_list_text(self, value: str) -> bool:
        """Return True for a text that holds a list; 0 and 1 without brackets may be separated."""
        bare = self._separator is None and BARE_LIST.fullmatch(value)
        return bool(bare or LIST_TEXT.fullmatch(value))

    def _named(self, labels: list[str]) -> list[str]:
        """Return names for the numbers of classes; -1 stands for none, as datasets has it."""
        names = self.names or []
        found = []
        for label in labels:
            number = int(label) if label.lstrip("-").isdecimal() else len(names)
            if not -1 <= number < len(names):
                problem = f"label {label} is none of the {len(names)} classes"
                raise RecordError(problem, UNKNOWN_LABEL)
            if number >= 0:
                found.append(names[number])
        return found

    def _hot(self, value: Any, field: str) -> list[str]:
        if not isinstance(value, list) or not _is_hot(value):
            raise RecordError(f"{field} holds no list of 0 and 1, as labels_as multi_hot reads")
        length = self._length or len(value) if self.names is None else len(self.names)
        if len(value) != length:
            raise RecordError(
                f"{field} holds a list of {len(value)} instead of {length} values of 0 and 1"
            )
        self._length = length
        names = self.names or [str(place) for place in range(length)]
        return [name for name, hot in zip(names, value, strict=True) if HOT[str(hot)]]


def _is_hot(values: list[Any]) -> bool:
    """Return True for a list of 0 and 1 only, numbers, booleans or text."""
    return all(isinstance(one, (int, float, str)) and str(one) in HOT for one in values)


def names_in(path: str) -> list[str]:
    """Return the label names of a file, one on each line.

    Raises:
        UserError: it cannot be read; a name is empty or comes twice.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            names = file.read().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"input.label_names: cannot read {path}: {reason}") from error
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise UserError(f"{path}, line {number}: a label has no name")
        if names.index(name) < number - 1:
            raise UserError(f"{path}, line {number}: the label '{name}' was named before")
    if not names:
        raise UserError(f"{path} names no label: write one on each line")
    return names
