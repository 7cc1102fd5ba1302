"""Which samples which work item copies, fixed before the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.convert import choose
from data_prep.convert.choose import Choice
from data_prep.documents import Part, Source
from data_prep.losses import NOT_CHOSEN, Losses
from data_prep.mds import MdsWriter, hash_names
from data_prep.plan import Item
from data_prep.readers.mds_files import MdsFolder
from data_prep.readers.mds_rows import goes_on
from data_prep.settings import MIB, ShardSettings
from data_prep.store import open_store
from elemdist.errors import UserError


@dataclass
class CopySettings(ShardSettings):
    """The settings of a run that copies samples."""

    work: str = choose.COPY
    """What is copied, and in what order: Choice.to_text()."""


def writer_of(settings: ShardSettings, names: int, item: int, folder: str = "") -> MdsWriter:
    """The writer of an item's shards, for `names` labels."""
    return MdsWriter(
        open_store(settings.out).within(folder),
        f"shard.{item:05d}",
        n=settings.n,
        v=settings.v,
        labels=names,
        size_limit=settings.shard_mb * MIB,
        compression=settings.compression,
        hashes=tuple(hash_names(settings.hashes)),
    )


def plan(
    folders: list[MdsFolder], settings: CopySettings, labels: int, losses: Losses
) -> list[Item]:
    """The work items: every one but the last fills whole shards.

    Args:
        labels: how many names there are. losses: counts the samples that are not chosen.

    Raises:
        UserError: nothing is chosen; a shuffle would need samples of shards that are not mapped.
    """
    choice = Choice.of_text(settings.work)
    writer = writer_of(settings, labels, 0)
    size = writer.samples_per_shard * max(1, settings.item_mb // settings.shard_mb)
    sources = [
        Source(one.path, "mds", "", one.stored_bytes(0, one.samples), one.fingerprint)
        for one in folders
    ]
    if choice.shuffle is not None:
        return _shuffled_items(folders, sources, size)
    items: list[Item] = []
    parts: list[Part] = []
    count = chosen = 0
    for place, low, high, taken in _stretches(folders, choice):
        folder, source = folders[place], sources[place]
        chosen += len(taken)
        while count + len(taken) > size:
            cut = int(taken[size - count])
            if cut > low:
                parts.append(Part(source, low, cut, max(1, folder.stored_bytes(low, cut))))
            items.append(Item(len(items), tuple(_joined(parts))))
            taken, parts, low, count = taken[size - count :], [], cut, 0
        count += len(taken)
        parts.append(Part(source, low, high, max(1, folder.stored_bytes(low, high))))
    if count:
        items.append(Item(len(items), tuple(_joined(parts))))
    if not items:
        raise UserError("no sample is chosen: see samples, every, share and with_labels")
    losses.add(NOT_CHOSEN, count=sum(folder.samples for folder in folders) - chosen)
    return items


def _stretches(
    folders: list[MdsFolder], choice: Choice
) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Number of a set, a range of its samples, and what is chosen of that, in order."""
    for place, folder in enumerate(folders):
        # What lies outside of start and end, and does not go on from there, is not looked at.
        low, end = min(choice.start, folder.samples), folder.samples
        if choice.end is not None and (choice.tear or not goes_on(folder)):
            end = min(end, choice.end)
        while low < end:
            high = min(end, low + choose.AT_ONCE)
            yield place, low, high, choose.chosen(folder, low, high, choice)
            low = high


def _joined(parts: list[Part]) -> Iterator[Part]:
    """Parts that follow each other in one source as one."""
    held: Part | None = None
    for part in parts:
        if held is not None and held.source == part.source and held.end == part.start:
            held = Part(held.source, held.start, part.end, held.weight + part.weight)
            continue
        if held is not None:
            yield held
        held = part
    if held is not None:
        yield held


def _shuffled_items(folders: list[MdsFolder], sources: list[Source], size: int) -> list[Item]:
    """Items that each read of all sets."""
    for folder in folders:
        if not folder.mapped:
            raise UserError(
                f"{folder.name}: a shuffle reads samples from everywhere at once, so its shards "
                f"must be local and not compressed: convert it into a local folder first"
            )
    total = sum(folder.samples for folder in folders)
    count = -(-total // size)
    parts = tuple(
        Part(source, 0, folder.samples, max(1, source.size // count))
        for folder, source in zip(folders, sources, strict=True)
    )
    return [Item(number, parts) for number in range(count)]
