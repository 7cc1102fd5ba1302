"""Documents one by one, in order, out of files or standard input, by the readers of `shard`."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.documents import LIVE, STDIN, Batch, Part, Problems, Source, notes_of
from data_prep.losses import DAMAGED, Losses
from data_prep.readers.folders import told_format
from data_prep.readers.parts import open_part
from data_prep.readers.sources import cut, find_sources, one_file
from data_prep.settings import InputSettings, OnInvalid, ShardSettings
from elemdist.errors import UserError
from elemdist.remote import public

WHOLE = 1 << 62  # bytes of a part: sources are not cut


@dataclass(frozen=True)
class Document:
    """A document as it was read.

    Attributes:
        number: from 1 on, over all files; of lines and rows the line's. place: file and line.
        id: as the record has it; None if it has none. labels: empty if there are none to be read.
    """

    number: int
    place: str
    text: str
    id: Any = None
    labels: tuple[str, ...] = ()


class _Queue(Problems):
    """Keeps problems for their place among the documents."""

    def __init__(self, strict: bool) -> None:
        super().__init__(True, lambda record: None, strict)
        self.held: deque[tuple[int, UserError]] = deque()

    def add(
        self, path: str, where: str, problem: str, reason: str = DAMAGED, place: int = 0
    ) -> None:
        """Keep one; place 0 stands for the end of what was read so far."""
        name = "standard input" if path == STDIN else public(path)
        self.listed += 1
        self.losses.add(reason, name)
        found = UserError(f"{name}{', ' if where else ''}{where}: {problem}")
        self.held.append((place or WHOLE, found))


class DocumentStream:
    """Reads documents in order, each as soon as it is there.

    Args:
        paths: files, folders, globs or URLs; - and pipes are read as they come.
        settings: as for `shard`; a record need not have the field id_field.
        strict: raise a UserError where anything is left out. nameless: the format of a file whose
            name tells none.

    Attributes:
        losses: what was left out so far, and what is worth a word.

    Raises:
        UserError: a path that is missing, unreadable, or not of the format.
    """

    def __init__(
        self,
        paths: list[str],
        settings: InputSettings,
        on_invalid: OnInvalid = "error",
        strict: bool = False,
        nameless: str = "text",
    ) -> None:
        self._nameless = nameless
        self._settings = ShardSettings(paths, "", settings, on_invalid=on_invalid)
        self._problems = _Queue(strict)
        self.losses: Losses = self._problems.losses
        self._sources = [one for path in paths for one in self._sources_of(path)]
        self._number = 0  # of the last document of the sources before

    def _sources_of(self, path: str) -> list[Source]:
        format: str = self._settings.input.format
        if format == "auto" and not os.path.isdir(path):
            format = told_format(path) or self._nameless
        if path == STDIN or _is_live(path):
            return [Source(path, format, "", 0, LIVE)]
        if os.path.isfile(path):
            return [one_file(path, format)]
        return find_sources([path], self._settings.input, self.losses)

    def __iter__(self) -> Iterator[Document | UserError]:
        """Yield the documents, and in place of one that cannot be taken the error that names it.

        Raises:
            UserError: a file cannot be read, or changed meanwhile.
        """
        for source in self._sources:
            before = self._number
            for part in _parts(source, self._settings.input):
                yield from self._part(part, before)

    def _part(self, part: Part, before: int) -> Iterator[Document | UserError]:
        reader = open_part(part, self._settings, self._problems, lambda _: None, optional_id=True)
        name = "standard input" if part.source.path == STDIN else public(part.source.path)
        text: list[bytes] = []
        for batch in reader.batches():
            notes_of(batch, self.losses, name, self._settings.input.labels_field is not None)
            for document, content in enumerate(_contents(batch)):
                place = batch.places[document] if batch.places else 0
                yield from self._problems_before(place)
                text.append(content)
                if batch.open and document == len(batch) - 1:
                    continue
                self._number = before + place if place else self._number + 1
                line = reader.where(place).removeprefix("line ").replace(",", "") if place else ""
                yield Document(
                    self._number,
                    f"{name}{':' if line else ''}{line}",
                    b"".join(text).decode(),
                    batch.ids[document] if batch.ids else None,
                    tuple(batch.labels[document]) if batch.labels else (),
                )
                text = []
            # Of lines that are read by now; whoever waits for more of a pipe hears of them.
            yield from self._problems_before(WHOLE - 1)
        yield from self._problems_before(WHOLE)

    def _problems_before(self, place: int) -> Iterator[UserError]:
        """Yield the problems of the lines in front of a place; all of them for one without."""
        held = self._problems.held
        while held and (not place or held[0][0] <= place):
            yield held.popleft()[1]


def _contents(batch: Batch) -> Iterator[bytes]:
    view = batch.data.data
    for start, end in zip(batch.starts.tolist(), batch.ends.tolist(), strict=True):
        yield bytes(view[start:end])


def _parts(source: Source, settings: InputSettings) -> list[Part]:
    if source.live:
        return [Part(source, 0, WHOLE, 0)]
    return cut(source, WHOLE, settings)


def _is_live(path: str) -> bool:
    """Return True for a pipe, a socket or a device."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def open_documents(
    paths: list[str],
    on_invalid: OnInvalid = "error",
    strict: bool = False,
    nameless: str = "text",
    **settings: Any,
) -> DocumentStream:
    """Return the documents of some files, for verbs that know nothing of this package.

    Args:
        nameless: the format of a file whose name tells none. settings: those of InputSettings.

    Raises:
        UserError: as DocumentStream.
    """
    return DocumentStream(paths, InputSettings(**settings), on_invalid, strict, nameless)
