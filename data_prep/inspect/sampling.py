"""Samples of text to count: documents of a shard set, or of a corpus that is no shard set yet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.documents import Batch, Part, Problems, notes_of
from data_prep.losses import Losses
from data_prep.settings import MIB, InputSettings, ShardSettings
from elemdist.remote import public
from elemdist.rows import DOC, PAD, rows_to_bytes
from elemdist.shards import ShardSet

RUNS = 64  # places of a shard set where samples are read: each may cost unpacking a shard
PLACES = 64  # places of a corpus
SEED = 0  # the same places every time


@dataclass
class SetDocument:
    """A document out of a shard set.

    Attributes:
        text: its bytes, valid UTF-8. samples: how many samples it spans.
        finished: whether it was read to its end.
    """

    text: bytes
    samples: int
    finished: bool


class SetSample:
    """Documents of a shard set, all of them or those that begin in runs of samples all over it.

    A document is taken where it begins, and read on to its end, so that long ones are not missed.

    Args:
        most: the samples to read.

    Attributes:
        read: how many samples were read.
    """

    def __init__(self, shards: ShardSet, most: int) -> None:
        self._shards, self._most = shards, most
        self._rows: dict[int, np.ndarray] = {}

    @property
    def read(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def documents(self) -> Iterator[SetDocument]:
        """The documents. Raises UserError as ShardSet.gather."""
        for first, last in self._runs():
            for number in range(first, last):
                rows_NV = self._sample(number)
                if rows_NV is None:
                    return
                begins = np.flatnonzero(rows_NV[:, 0] == DOC).tolist()
                for begin, end in itertools.pairwise([*begins, len(rows_NV)]):
                    yield self._document(number, begin, end)

    def _runs(self) -> list[tuple[int, int]]:
        """The samples to look for documents in, in random order of the runs."""
        total = len(self._shards)
        if total <= self._most:
            return [(0, total)]
        runs = min(RUNS, self._most)
        firsts = np.linspace(0, total - self._most // runs, runs).astype(np.int64)
        order = np.random.default_rng(SEED).permutation(firsts).tolist()
        return [(first, first + self._most // runs) for first in order]

    def _sample(self, number: int) -> np.ndarray | None:
        """The rows (n, v) of a sample; None past the end of the set, or when enough were read."""
        if number not in self._rows:
            if number >= len(self._shards) or len(self._rows) >= self._most:
                return None
            self._rows[number] = self._shards.gather(np.array([number]))[0][0]
        return self._rows[number]

    def _document(self, number: int, begin: int, end: int) -> SetDocument:
        """The document that begins at a row of a sample; `end`: where it ends in that sample."""
        rows_NV = self._rows[number]
        parts = [rows_to_bytes(rows_NV[begin:end])]
        samples = 1
        finished = end < len(rows_NV) or rows_NV[-1, 0] == PAD
        while not finished:
            following = self._sample(number + samples)
            if following is None:
                finished = number + samples >= len(self._shards)
                break
            stops = np.flatnonzero((following[:, 0] == DOC) | (following[:, 0] == PAD))
            stop = int(stops[0]) if len(stops) else len(following)
            finished = stop < len(following)
            if stop:
                parts.append(rows_to_bytes(following[:stop]))
                samples += 1
        return SetDocument(_valid(b"".join(parts)), samples, bool(finished))


def _valid(text: bytes) -> bytes:
    """Text without the character that a truncated document can end within."""
    return text if text.isascii() else text.decode(errors="ignore").encode()


class CorpusSample:
    """Documents of a corpus: the beginnings of parts all over it.

    Args:
        path: a file, folder, glob or URL, as for `elemdist shard`. most: bytes of text to read.

    Attributes:
        bytes: of text read. unfinished: documents whose end was not read. skipped: records that
            could not be read. whole: whether all of the corpus was read. losses: what was left out
            of what was read.
    """

    def __init__(self, path: str, input: InputSettings, most: int, strict: bool = False) -> None:
        self._path, self._input, self._most = path, input, most
        self.bytes = self.unfinished = self.skipped = 0
        self.whole = True
        self.losses = Losses(strict)

    def batches(self) -> Iterator[Batch]:
        """The documents.

        Raises:
            UserError: an input that is missing, unreadable, or of a format that does not show.
        """
        from data_prep.readers.parts import open_part

        settings = ShardSettings(
            [self._path], "", input=self._input, on_invalid="replace", on_error="skip"
        )
        problems = Problems(skip=True, write=lambda _: None, strict=self.losses.strict)
        parts = self._parts()
        for visited, part in enumerate(parts):
            # What short parts leave over goes to those behind them.
            share = (self._most - self.bytes) // max(1, min(PLACES, len(parts)) - visited)
            end = self.bytes + max(1, share)
            for batch in open_part(part, settings, problems, lambda _: None).batches():
                labelled = self._input.labels_field is not None
                notes_of(batch, problems.losses, public(part.source.path), labelled)
                yield batch
                self.bytes += int((batch.ends - batch.starts).sum())
                if self.bytes >= end:
                    self.unfinished += batch.open
                    self.whole = False
                    break
            if self.bytes >= self._most:
                break
        self.skipped = problems.listed
        self.losses.update(problems.losses)

    def _parts(self) -> list[Part]:
        """The corpus in parts, in random order."""
        from data_prep.readers.sources import cut, find_sources

        sources = find_sources([self._path], self._input, self.losses)
        limit = max(MIB, sum(source.size for source in sources) // PLACES)
        parts = [part for source in sources for part in cut(source, limit, self._input)]
        order = np.random.default_rng(SEED).permutation(len(parts)).tolist()
        return [parts[k] for k in order]
