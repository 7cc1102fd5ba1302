"""Reads parts of MDS sets, and checks what every batch promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reference import SAMPLES

from data_prep.documents import Batch, Part, Problems, Source
from data_prep.readers import mds as mds_read
from data_prep.readers.mds_files import MdsFolder
from data_prep.readers.task import ReadTask
from data_prep.settings import InputSettings, ShardSettings

TEXTS = sorted(SAMPLES.values())
LABELS = ["a", "b", "c", "d", "e", "f", "g", "h", "ij"]


def settings_of(**more: Any) -> ShardSettings:
    settings = ShardSettings(["in"], "out", on_invalid=more.pop("on_invalid", "error"))
    settings.input = InputSettings(format="mds", **more)
    return settings


def part_of(path: Path | str, start: int = 0, end: int | None = None) -> Part:
    folder = MdsFolder(str(path))
    source = Source(str(path), "mds", "", folder.stored_bytes(0, folder.samples), "")
    return Part(source, start, folder.samples if end is None else end, 1000)


def read(
    part: Part, settings: ShardSettings | None = None, rejects: list[Any] | None = None
) -> tuple[list[tuple[bytes, list[str], int]], list[Batch]]:
    """Text, labels and place of each document, and the batches as they came."""
    problems = Problems(rejects is not None, (rejects if rejects is not None else []).append)
    done: list[int] = []
    reader = mds_read.MdsReader(ReadTask(part, settings or settings_of(), problems, done.append))
    batches = list(reader.batches())
    assert sum(done) == part.weight
    assert len(reader.digest()) == 32
    found: list[tuple[bytes, list[str], int]] = []
    open_before = False
    for batch in batches:
        assert batch.begun == open_before
        open_before = batch.open
        for k, (start, end) in enumerate(zip(batch.starts, batch.ends, strict=True)):
            text = batch.data[start:end].tobytes()
            text.decode()
            labels = batch.labels[k] if batch.labels else []
            if k == 0 and batch.begun:
                assert text, "an empty piece"
                assert found[-1][1:] == (labels, batch.places[0])
                found[-1] = (found[-1][0] + text, labels, found[-1][2])
            else:
                found.append((text, labels, batch.places[k]))
    assert not open_before
    return found, batches
