"""What passes between planning, reading and packing: sources, parts of them, batches, problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from elemdist.errors import UserError
from elemdist.remote import public


@dataclass(frozen=True)
class Source:
    """One input file, or one folder that is a data set.

    Attributes:
        path: as the user wrote it, or as it was found; a URL for an object store.
        format: one of settings.Format, never auto.
        compression: "", or ".gz", ".zst", ".xz", ".bz2".
        size: bytes as stored.
        version: changes when the content is replaced: the time of change in ns, an ETag, a hash.
    """

    path: str
    format: str
    compression: str
    size: int
    version: str


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
        ids: each document's id; empty where there is none.
        places: each document's place for an error, a line or record number from 1 on within the
            part; empty where it has none.
        replaced: how many of them had invalid UTF-8 replaced, each counted once.
    """

    data: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    labels: list[list[str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
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


class Problems:
    """Documents and records that cannot be taken: the first ends the run, or each is listed.

    Args:
        skip: list them and go on (on_error skip).
        write: takes each listed one, as a record for rejects.jsonl.

    Attributes:
        listed: how many were listed.
    """

    def __init__(self, skip: bool, write: Callable[[dict[str, Any]], None]) -> None:
        self.skip, self._write = skip, write
        self.listed = 0

    def add(self, path: str, where: str, problem: str) -> None:
        """Lists one, or ends the work.

        Args:
            path: the source. where: "line 12", "row 4 of row group 2", "member a/b.txt", or "".
            problem: what is wrong, and where it helps what to do.

        Raises:
            UserError: unless problems are skipped.
        """
        if not self.skip:
            place = f", {where}" if where else ""
            raise UserError(f"{public(path)}{place}: {problem}")
        self._write({"source": public(path), "where": where, "problem": problem})
        self.listed += 1
