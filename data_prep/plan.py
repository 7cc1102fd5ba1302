"""Work items: the input cut into pieces, the same ones whatever the number of processes."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from data_prep.documents import Part, Source
from data_prep.losses import Losses
from data_prep.settings import MIB, ShardSettings
from data_prep.words import counted
from elemdist.errors import UserError
from elemdist.json_text import json_text

PACKED_WEIGHT = 4  # text unpacks to about so many times its compressed size
# What the shards do not depend on: a run can go on with other values of these.
FREE = ("out", "processes", "part", "restart", "quiet", "on_error", "strict")


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
        """Stored bytes to read."""
        return sum(part.weight for part in self.parts)


@dataclass(frozen=True)
class Job:
    """One item to convert, and where its documents go.

    Attributes:
        names: label names in the order of their bits; None for shards without labels.
        sets: folders of the sets within the output; "" is the output itself.
        dropped: packed bits, a one for each document of the item to leave out as a duplicate.
        first: how many of the others go to the first set (all else to the second); None unless
            documents are held out by their place.
    """

    item: Item
    names: tuple[str, ...] | None
    sets: tuple[str, ...] = ("",)
    dropped: bytes | None = None
    first: int | None = None


@dataclass
class SetPart:
    """What one item gave to one set: entries of index.json, and counts for the manifest."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    label_counts: Counter[str] = field(default_factory=Counter)


@dataclass
class Done:
    """A converted item, as the journal keeps it.

    Attributes:
        item: its number. digests: xxh3_128 of what was read of each part.
        sets: folder of a set -> what it got. rejects: how many documents were left out for errors.
        losses: all that was left out.
    """

    item: int
    digests: list[str]
    sets: dict[str, SetPart]
    rejects: int = 0
    losses: Losses = field(default_factory=Losses)


def make_items(sources: list[Source], settings: ShardSettings) -> list[Item]:
    """Cuts large sources, and gathers small ones, to about item_mb each.

    Raises:
        UserError: a file cannot be read.
    """
    from data_prep.readers.sources import cut

    limit = settings.item_mb * MIB
    items: list[Item] = []
    held: list[Part] = []
    weight = 0
    for source in sources:
        for part in cut(source, limit, settings.input):
            more = part.weight * (PACKED_WEIGHT if source.compression else 1)
            if held and weight + more > limit:
                items.append(Item(len(items), tuple(held)))
                held, weight = [], 0
            held.append(part)
            weight += more
    if held:
        items.append(Item(len(items), tuple(held)))
    return items


class Plan:
    """What a run does, for comparing it with another run.

    Attributes:
        settings: those that the shards depend on. sources: what is read.
        digest: hash of both, and of how the input is cut.
    """

    def __init__(self, settings: ShardSettings, items: list[Item]) -> None:
        self.settings = {key: value for key, value in asdict(settings).items() if key not in FREE}
        found = {part.source.path: part.source for item in items for part in item.parts}
        self.sources = [asdict(source) for source in found.values()]
        parts = [
            [item.number, part.source.path, part.start, part.end]
            for item in items
            for part in item.parts
        ]
        names: list[list[str]] = []
        if settings.input.label_names is not None:  # what is in the file, not only its name
            from data_prep.readers.labels import names_in

            names = [names_in(settings.input.label_names)]
        text = json_text([self.settings, self.sources, parts, *names], sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:32]

    def to_json(self) -> bytes:
        """The plan as it is kept."""
        content = {"settings": self.settings, "sources": self.sources, "digest": self.digest}
        return json_text(content, indent=1).encode()

    def compare(self, kept: dict[str, Any], out: str) -> None:
        """Compares with what an earlier run kept.

        Raises:
            UserError: the settings or the input are others.
        """
        hint = "give the same ones to go on there, or --restart to throw that work away"
        for key, value in self.settings.items():
            if kept["settings"].get(key) != value:
                raise UserError(
                    f"{out} holds an unfinished run with {key} {_short(kept['settings'].get(key))} "
                    f"instead of {_short(value)}: {hint}"
                )
        before = {source["path"]: source for source in kept["sources"]}
        now = {source["path"]: source for source in self.sources}
        for path in [*before, *now]:
            if path not in now or path not in before:
                what = "lacks now" if path in before else "did not have"
                raise UserError(f"{path} is input that the unfinished run in {out} {what}: {hint}")
            if before[path] != now[path]:
                raise UserError(
                    f"{path} changed since the unfinished run in {out} began: "
                    f"--restart throws that work away and begins anew"
                )
        if kept["digest"] != self.digest:
            raise UserError(f"{out} holds an unfinished run of another plan: --restart begins anew")


def _short(value: Any) -> str:
    text = json_text(value)
    return text if len(text) < 60 else text[:57] + "..."


def holdout(documents: list[int], last: int) -> list[int | None]:
    """Return how many of each item's documents go to train, so that the `last` ones go to val.

    Raises:
        UserError: there are no more documents than that.
    """
    total = sum(documents)
    if last >= total:
        raise UserError(f"holdout_last is {last:,}, but there is only {counted(total, 'document')}")
    firsts: list[int | None] = []
    left = total - last
    for count in documents:
        firsts.append(min(left, count))
        left -= min(left, count)
    return firsts
