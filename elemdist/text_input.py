"""What a verb needs of documents that it takes as they are. They are read by the very readers of
``elemdist shard``, which :mod:`elemdist.cli` hands over: see data_prep/readers/stream.py."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from elemdist.errors import UserError

# A setting of elemdist shard's input, and no path that has such a name in it.
SETTING = re.compile(
    r"(?<![/\w.-])(--)?input\."
    r"(?=(format|document|members|(text|labels|id).field|labels.(separator|as)|label.names"
    r"|max.\w+.mb)\b)"
)


class Document(Protocol):
    """A document as it was read.

    Attributes:
        number: from 1 on, over all files. place: file and line. id: as its record has it, None
            where there is none. labels: none where they are not read.
    """

    @property
    def number(self) -> int: ...
    @property
    def place(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def id(self) -> Any: ...
    @property
    def labels(self) -> tuple[str, ...]: ...


class Losses(Protocol):
    """What was left out so far, and what is worth a word."""

    def lines(self) -> list[str]:
        """Return a line for each reason."""


class Documents(Protocol):
    """Documents in order, each as soon as it is there; in place of one that cannot be taken the
    error that names it."""

    @property
    def losses(self) -> Losses: ...

    def __iter__(self) -> Iterator[Document | UserError]: ...


# (paths, on_invalid, strict, settings of elemdist shard's input) -> the documents
OpenDocuments = Callable[..., Documents]


def for_verb(error: UserError) -> UserError:
    """Return an error of the readers with the settings that it names as verbs other than `shard`
    have them: --text-field for --input.text-field."""
    return UserError(SETTING.sub(r"\1", str(error)))


def tell_losses(verb: str, documents: Documents) -> None:
    """Say on standard error what was left out, a line for each reason."""
    for line in documents.losses.lines():
        print(f"elemdist {verb}: {line}", file=sys.stderr)
