"""Reads inputs as a run does, part by part, and gives what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.documents import Part, Problems
from data_prep.readers import parts as readers
from data_prep.readers import sources
from data_prep.settings import InputSettings, ShardSettings


@dataclass
class Read:
    """All that reading gave; `problems` are the listed ones, as (where, problem)."""

    documents: list[bytes] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    wheres: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # of the batches
    told: int = 0  # progress
    replaced: int = 0


def read(
    *inputs: Path | str,
    on_invalid: Any = "error",
    skip: bool = False,
    limit: int = 1 << 40,
    **input: Any,
) -> Read:
    """Reads inputs, cut into parts of about `limit` bytes, with these input settings."""
    settings = ShardSettings(
        [str(entry) for entry in inputs], "out", InputSettings(**input), on_invalid=on_invalid
    )
    found = Read()
    problems = Problems(
        skip, lambda record: found.problems.append((record["where"], record["problem"]))
    )

    def progress(size: int) -> None:
        found.told += size

    for source in sources.find_sources(settings.inputs, settings.input):
        for part in sources.cut(source, limit, settings.input):
            found.parts.append(part)
            reader = readers.open_part(part, settings, problems, progress)
            take(found, reader)
            found.digests.append(reader.digest())
    return found


def take(found: Read, reader: readers.Reader) -> None:
    """Adds all batches of one part; checks what every batch promises."""
    begun = False
    for batch in reader.batches():
        assert batch.begun == begun
        found.replaced += batch.replaced
        found.sizes.append(int((batch.ends - batch.starts).sum()))
        for number, (start, end) in enumerate(zip(batch.starts, batch.ends, strict=True)):
            document = batch.data[start:end].tobytes()
            document.decode()  # ends with a whole character, even where it goes on
            if begun and not number:
                found.documents[-1] += document
                assert not batch.ids or batch.ids[0] == found.ids[-1]
                continue
            found.documents.append(document)
            found.labels += batch.labels[number : number + 1]
            found.ids += batch.ids[number : number + 1]
            if batch.places:
                found.wheres.append(reader.where(batch.places[number]))
        begun = batch.open
    assert not begun
