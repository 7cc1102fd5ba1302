"""From the bytes of documents as they lie in a file to batches: UTF-8 and size checked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import numpy as np

from data_prep.documents import Batch, batch_of
from data_prep.losses import INVALID, TOO_LARGE
from data_prep.readers import utf8
from data_prep.readers.task import ReadTask
from data_prep.readers.unpack import DamagedError
from data_prep.readers.values import document_too_large
from data_prep.settings import MIB
from elemdist.errors import UserError

BATCH_BYTES = 1 << 20  # of small documents that come one by one
PIECE_BYTES = 1 << 20  # of a document that was spooled
SPOOL_BYTES = 4 << 20  # of a document in memory; a longer one is spooled to the disk


class BadDocumentError(Exception):
    """A document that cannot be taken; the message says why, line says where, reason is one of
    losses.py."""

    def __init__(self, line: int, problem: str, reason: str = INVALID) -> None:
        super().__init__(problem)
        self.line, self.reason = line, reason


class Delivery:
    """Makes batches, and keeps count of where in the file they stand.

    Args:
        task: whose source it is. where: the place of a line for an error.

    Attributes:
        line: the line where the next byte stands, from 1 on. offset: that byte's in the file.
    """

    def __init__(self, task: ReadTask, where: Callable[[int], str]) -> None:
        self._path, self._problems = task.part.source.path, task.problems
        self._where = where
        self._replace = task.settings.on_invalid == "replace"
        self._limit = task.settings.input.max_document_mb * MIB
        self.line, self.offset = 1, 0

    def advance(self, text: bytes) -> None:
        """Goes on behind some bytes."""
        self.line += text.count(b"\n")
        self.offset += len(text)

    def whole(self, text: bytes, starts: np.ndarray, ends: np.ndarray, first: int = 0) -> Batch:
        """Documents that lie whole in a text, which is all up to where it ends; and goes on.

        Args:
            first: the line of the first one, where each line is one; 0 where it is not.
        """
        places = range(first, first + len(starts)) if first else range(0)
        batch = Batch(np.frombuffer(text, np.uint8), starts, ends, places=places)
        if not utf8.is_utf8(text) or (ends - starts).max(initial=0) > self._limit:
            batch = self._taken(text, batch)
        self.advance(text)
        return batch

    def _taken(self, text: bytes, batch: Batch) -> Batch:
        """The batch with its invalid documents mended or left out."""
        documents, places, replaced = [], [], 0
        for start, end in zip(batch.starts.tolist(), batch.ends.tolist(), strict=True):
            document = text[start:end]
            line = self.line + text.count(b"\n", 0, start)
            try:
                valid = self._checked(document, line, self.offset + start)
                if len(document) > self._limit:
                    raise BadDocumentError(line, self._too_large(), TOO_LARGE)
            except BadDocumentError as error:
                self._refuse(error)
                continue
            replaced += valid is not document
            documents.append(valid)
            places.append(line)
        return batch_of(documents, replaced=replaced, places=places if batch.places else [])

    def _refuse(self, error: BadDocumentError) -> None:
        where = self._where(error.line)
        self._problems.add(self._path, where, str(error), error.reason, error.line)

    def long(self, fragments: Iterable[bytes], document_id: str | None = None) -> Iterator[Batch]:
        """One document, that comes in fragments, in one or several batches; and goes on.

        A document that cannot be taken leaves the rest of its fragments unread. Where problems are
        skipped, nothing of it is delivered before all of it is known to be good.

        Raises:
            UserError, DamagedError: as the fragments; what a problem raises.
        """
        fragments = iter(fragments)
        counts = {"replaced": 0}
        pieces = self._valid(iter(fragments), counts)
        more: dict[str, list[Any]] = (
            {"places": [self.line]} if document_id is None else {"ids": [document_id]}
        )
        try:
            if self._problems.skip:
                with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
                    _spool(pieces, spool)
                    yield from _batches(_read(spool), more, counts)
            else:
                yield from _batches(pieces, more, counts)
        except BadDocumentError as error:
            self._refuse(error)

    def _valid(self, fragments: Iterator[bytes], counts: dict[str, int]) -> Iterator[bytes]:
        """The fragments, cut at whole characters, checked and mended."""
        rest = b""
        size = 0
        for fragment in fragments:
            size += len(fragment)
            # What is left over from the fragment before holds no newline.
            line, offset = self.line, self.offset - len(rest)
            self.advance(fragment)
            if size > self._limit:
                raise BadDocumentError(line, self._too_large(), TOO_LARGE)
            text = rest + fragment if rest else fragment
            cut = utf8.whole_characters(text)
            text, rest = text[:cut], text[cut:]
            valid = self._checked(text, line, offset)
            counts["replaced"] |= valid is not text
            if valid:
                yield valid
        if rest:  # the document ends within a character
            counts["replaced"] = 1
            yield self._checked(rest, self.line, self.offset - len(rest))

    def _checked(self, text: bytes, line: int, offset: int) -> bytes:
        """The text itself if it is valid, else a mended one.

        Raises:
            BadDocumentError: it is invalid, and that is an error.
        """
        if utf8.is_utf8(text):
            return text
        if self._replace:
            return utf8.mended(text)
        at = utf8.first_invalid(text)
        line += text.count(b"\n", 0, at)
        raise BadDocumentError(line, utf8.complaint(offset + at, text[at]))

    def _too_large(self) -> str:
        return document_too_large(self._limit // MIB)


def _spool(pieces: Iterator[bytes], spool: IO[bytes]) -> None:
    """Writes all pieces, and goes back to the start.

    Raises:
        UserError: there is no space for them.
    """
    for piece in pieces:
        try:
            spool.write(piece)
        except OSError as error:
            folder = tempfile.gettempdir()
            raise UserError(
                f"cannot write a temporary file in {folder}: {error.strerror}; set TMPDIR"
            ) from error
    spool.seek(0)


def _read(spool: IO[bytes]) -> Iterator[bytes]:
    """A file of valid UTF-8 in pieces of whole characters."""
    rest = b""
    while piece := spool.read(PIECE_BYTES):
        text = rest + piece
        cut = utf8.whole_characters(text)
        rest = text[cut:]
        yield text[:cut]


def _batches(
    pieces: Iterator[bytes], more: dict[str, list[Any]], counts: dict[str, int]
) -> Iterator[Batch]:
    """One document's pieces as batches; the last one, which is not open, counts replacements.

    Args:
        more: id or place of the document.
    """
    before: bytes | None = None
    begun = False
    for piece in pieces:
        if before is not None:
            yield batch_of([before], begun=begun, open=True, **more)
            begun = True
        before = piece
    yield batch_of([before or b""], begun=begun, replaced=counts["replaced"], **more)


def gathered(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Documents that came whole, one a batch, in batches of about BATCH_BYTES."""
    held: list[Batch] = []
    size = 0
    try:
        for batch in batches:
            whole = not batch.begun and not batch.open
            if held and (not whole or size >= BATCH_BYTES):
                yield _joined(held)
                held, size = [], 0
            if whole:
                held.append(batch)
                size += len(batch.data)
            else:
                yield batch
    except DamagedError:
        if held:
            yield _joined(held)
        raise
    if held:
        yield _joined(held)


def _joined(batches: list[Batch]) -> Batch:
    return batch_of(
        [batch.data.tobytes() for batch in batches],
        ids=[document_id for batch in batches for document_id in batch.ids],
        replaced=sum(batch.replaced for batch in batches),
    )
