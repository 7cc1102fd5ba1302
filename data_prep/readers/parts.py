"""Readers: the documents of a part of a source, in batches of valid UTF-8, for all formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from data_prep.documents import Batch, Part, Problems
from data_prep.readers.records import JsonlReader
from data_prep.readers.tables import TableReader
from data_prep.readers.tars import TarReader
from data_prep.readers.task import ReadTask
from data_prep.readers.texts import TextReader
from data_prep.readers.warc import WarcReader
from data_prep.settings import ShardSettings


class Reader(Protocol):
    """What reads a part of a source once."""

    def batches(self) -> Iterator[Batch]:
        """The documents, in order.

        Raises:
            UserError: a file that cannot be read, or changed since the plan; a problem with a
                document, unless problems are skipped.
        """

    def digest(self) -> str:
        """A hash of what was read, once all batches are: 32 hexadecimal digits."""

    def where(self, place: int) -> str:
        """A place of a batch in words, as an error names it: "line 2,701"; "" if there is none."""


def open_part(
    part: Part,
    settings: ShardSettings,
    problems: Problems,
    progress: Callable[[int], None],
    optional_id: bool = False,
) -> Reader:
    """The reader for a part, by the format of its source.

    Args:
        progress: called with stored bytes as they are read; they sum up to about part.weight.
        optional_id: as ReadTask.optional_id.
    """
    task, format = ReadTask(part, settings, problems, progress, optional_id), part.source.format
    if format == "mds":
        from data_prep.readers import mds as mds_read

        return mds_read.MdsReader(task)
    if format in ("parquet", "arrow", "datasets"):
        from data_prep.readers import columns  # loads pyarrow

        return columns.ColumnReader(task)
    readers: dict[str, Callable[..., Reader]] = {
        "text": TextReader,
        "jsonl": JsonlReader,
        "csv": TableReader,
        "tsv": TableReader,
        "tar": TarReader,
        "warc": WarcReader,
    }
    return readers[format](task)
