"""What passes between planning, reading and packing: sources, parts of them, batches, problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_prep.losses import DAMAGED, LABEL_TWICE, NO_LABEL, NO_TEXT, Losses
from elemdist.errors import UserError
from elemdist.remote import public

LIVE = "live"  # version of a source that is read once, as it comes
STDIN = "-"


@dataclass(frozen=True)
class Source:
    """One input file, or one folder that is a data set.

    Attributes:
        path: as the user wrote it, or as it was found; a URL for an object store.
        format: one of settings.Format, never auto.
        compression: "", or ".gz", ".zst", ".xz", ".bz2", ".lz4".
        size: bytes as stored.
        version: changes when the content is replaced: the time of change in ns, an ETag, a hash.
    """

    path: str
    format: str
    compression: str
    size: int
    version: str

    @property
    def live(self) -> bool:
        """Return True for standard input, a pipe or a device."""
        return self.version == LIVE


@dataclass(frozen=True)
class Part:
    """What lies from start to end in a source, the unit that a process reads.

    start and end count bytes for text and JSON Lines, row groups for Parquet, record batches for
    Arrow, samples for MDS, and are 0 and the size for whatever is read as a whole.
    weight: stored bytes to read, for planning and progress.
    """

    source: Source
    start: int
    end: int
    weight: int


@dataclass
class Batch:
    """D documents, or pieces of them: document d is data[starts[d]:ends[d]], valid UTF-8.

    A document that is too large to be held comes in several batches: `open` says that the last one
    goes on in the next batch, `begun` that the first one began in the batch before. A batch of a
    document that is not its last ends with a whole character.

    Attributes:
        data: (bytes,) uint8. starts, ends: (D,) int64.
        labels: each document's labels; empty where there are none to be read.
        ids: each document's id; empty where there is none. As it is in the record, or None, where
            an id is no must (ReadTask.optional_id); else text.
        places: each document's place for an error, a line or record number from 1 on within the
            part; empty where it has none.
        replaced: how many of them had invalid UTF-8 replaced, each counted once.
    """

    data: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    labels: list[list[str]] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)
    places: Sequence[int] = field(default_factory=list)
    begun: bool = False
    open: bool = False
    replaced: int = 0

    def __len__(self) -> int:
        return len(self.starts)


def batch_of(documents: list[bytes], **more: Any) -> Batch:
    """A batch of documents that lie apart; `more` are its other attributes."""
    bounds = np.zeros(len(documents) + 1, np.int64)
    np.cumsum([len(document) for document in documents], out=bounds[1:])
    data = np.frombuffer(b"".join(documents), np.uint8)
    return Batch(data, bounds[:-1], bounds[1:], **more)


def notes_of(batch: Batch, losses: Losses, name: str, labelled: bool) -> None:
    """Count the documents of a batch that hold no text, or no label, or one twice.

    Args:
        name: the file's. labelled: labels are read.

    Raises:
        UserError: as Losses.add.
    """
    empty = np.flatnonzero(batch.ends == batch.starts)
    if len(empty):
        pieces = batch.begun * (empty[0] == 0)
        losses.add(NO_TEXT, name, len(empty) - int(pieces))
    if labelled:
        labels = batch.labels[batch.begun :]
        losses.add(NO_LABEL, name, sum(not found for found in labels))
        twice = sum(len(found) > 1 and len(set(found)) < len(found) for found in labels)
        losses.add(LABEL_TWICE, name, twice)


class Problems:
    """Documents and records that cannot be taken: the first ends the run, or each is listed.

    Args:
        skip: list them and go on (on_error skip).
        write: takes each listed one, as a record for rejects.jsonl.
        strict: whatever is left out without being asked for ends the work.

    Attributes:
        listed: how many were listed. losses: all that is left out, listed or not.
    """

    def __init__(
        self, skip: bool, write: Callable[[dict[str, Any]], None], strict: bool = False
    ) -> None:
        self.skip, self._write = skip, write
        self.listed = 0
        self.losses = Losses(strict)

    def add(
        self, path: str, where: str, problem: str, reason: str = DAMAGED, place: int = 0
    ) -> None:
        """Lists one, or ends the work.

        Args:
            path: the source. where: "line 12", "row 4 of row group 2", "member a/b.txt", or "".
            problem: what is wrong, and where it helps what to do. reason: one of losses.py.
            place: as Batch.places; 0: none.

        Raises:
            UserError: unless problems are skipped.
        """
        found = f"{public(path)}, {where}" if where else public(path)
        if not self.skip:
            raise UserError(f"{found}: {problem}")
        self._write({"source": public(path), "where": where, "problem": problem})
        self.listed += 1
        self.losses.add(reason, found)

    def leave_out(
        self, reason: str, path: str, where: Callable[[], str] = str, count: int = 1
    ) -> None:
        """Count what is no fault and is left out, or kept with a word.

        Args:
            where: its place, for a strict run; it may take long to find out.

        Raises:
            UserError: the run is strict.
        """
        if not count:
            return
        place = where() if self.losses.strict else ""
        self.losses.add(reason, f"{public(path)}{', ' if place else ''}{place}", count)
