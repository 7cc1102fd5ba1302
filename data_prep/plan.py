"""Work items: the input cut into pieces, the same ones whatever the number of processes."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.settings import MIB, ShardSettings
from data_prep.sources import READ_BYTES, Part, Source
from elemdist.errors import UserError

PACKED_WEIGHT = 4  # text unpacks to about so many times its compressed size


@dataclass(frozen=True)
class Item:
    """What one process converts at a time, into shards of its own.

    Attributes:
        number: its place in the input. parts: what it reads, in order.
    """

    number: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Raw bytes to read."""
        return sum(part.end - part.start for part in self.parts)


def make_items(sources: list[Source], settings: ShardSettings) -> list[Item]:
    """Cuts large files of lines at line ends, and gathers small files, to about item_mb each.

    Compressed files and files that are one document or blocks of lines stay whole.

    Raises:
        UserError: a file cannot be read.
    """
    limit = settings.item_mb * MIB
    items: list[Item] = []
    held: list[Part] = []
    weight = 0
    for source in sources:
        lines = source.format == "jsonl" or settings.input.document == "line"
        if lines and not source.compression and source.size > limit:
            parts = cut_lines(source, limit)
        else:
            parts = [Part(source, 0, source.size)]
        for part in parts:
            more = (part.end - part.start) * (PACKED_WEIGHT if source.compression else 1)
            if held and weight + more > limit:
                items.append(Item(len(items), tuple(held)))
                held, weight = [], 0
            held.append(part)
            weight += more
    if held:
        items.append(Item(len(items), tuple(held)))
    return items


def cut_lines(source: Source, limit: int) -> list[Part]:
    """Parts of a plain file that each end behind the first newline at or after `limit` bytes.

    Raises:
        UserError: the file cannot be read.
    """
    parts = []
    start = 0
    try:
        with open(source.path, "rb", buffering=0) as file:
            while source.size - start > limit:
                end = start + limit - 1
                file.seek(end)
                while chunk := file.read(READ_BYTES):
                    newline = chunk.find(b"\n")
                    if newline >= 0:
                        end += newline + 1
                        break
                    end += len(chunk)
                end = min(end, source.size)
                parts.append(Part(source, start, end))
                start = end
    except OSError as error:
        raise UserError(f"cannot read {source.path}: {error.strerror}") from error
    if start < source.size:
        parts.append(Part(source, start, source.size))
    return parts
