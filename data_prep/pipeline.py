"""From work items to complete shard sets: the passes over them, what a killed run left, the merge.

Whatever makes shards goes through make_sets: it plans, keeps a journal, goes on with what an
unfinished run left, shares the work among processes or the tasks of a job array, and seals.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from data_prep.dedup import Tables
from data_prep.journal import Journal, hashes_name
from data_prep.losses import Losses
from data_prep.merge import merge
from data_prep.plan import Done, Item, Job, Plan, holdout
from data_prep.pool import run_all
from data_prep.progress import Progress
from data_prep.readers.labels import HINT
from data_prep.settings import ShardSettings, part_of, shares_of
from data_prep.store import open_store, write_error
from data_prep.work import scan
from elemdist.errors import UserError

Names = tuple[str, ...] | None
Work = Callable[[Job, ShardSettings, Callable[[int], None]], Done]
TRAIN, VAL = "train", "val"


@dataclass
class ShardSummary:
    """What a run made.

    Attributes:
        folders: the shard sets: the output folder, or the folders of its sets in it.
        manifests: the manifest of each; none yet after one part of several.
        input_bytes: stored bytes read. seconds: the time it took.
        message: what there is to say beside the counts.
    """

    folders: list[str]
    manifests: list[dict[str, Any]]
    input_bytes: int
    seconds: float
    message: str = ""


def scan_and_keep(item: Item, settings: ShardSettings, progress: Callable[[int], None]) -> None:
    """The first pass over an item, as a task for a process."""
    found = scan(item, settings, progress)
    kept = {"documents": found.documents, "labels": dict(found.labels)}
    Journal(open_store(settings.out), []).write_scan(item.number, kept, found.hashes)


@dataclass(frozen=True)
class Convert:
    """Converting an item, as a task for a process."""

    work: Work

    def __call__(self, job: Job, settings: ShardSettings, progress: Callable[[int], None]) -> None:
        done = self.work(job, settings, progress)
        Journal(open_store(settings.out), []).write_done(done)


def sets_of(settings: ShardSettings) -> list[str]:
    """Folders of the sets within the output; "" for the output itself."""
    if settings.split:
        return list(shares_of(settings.split))
    return [TRAIN, VAL] if settings.holdout_last else [""]


def make_sets(
    settings: ShardSettings,
    items: list[Item],
    names: Names,
    work: Work,
    more_manifest: dict[str, Any] | None = None,
    losses: Losses | None = None,
) -> ShardSummary:
    """Makes complete shard sets out of work items, or goes on with making them.

    Args:
        items: what there is to do, the same whatever the number of processes.
        names: label names in the order of their bits; None for no labels, or for those that the
            first pass finds if settings.input.labels_field is set.
        work: converts one item; runs in a process of its own, so a function of a module.
        more_manifest: further entries of the manifests.
        losses: what was left out already when the items were planned.

    Raises:
        UserError: what `work` raises; a folder with other content, or at which another run is at
            work; a full disk.
    """
    start = time.perf_counter()
    sets = sets_of(settings)
    journal = Journal(open_store(settings.out), sets)
    journal.claim(settings.part)
    plan = Plan(settings, items)
    run = Run(settings, items, names, journal, work)
    try:
        complete = journal.agree(plan, settings.restart)
        manifests, message = [], ""
        if complete:
            journal.clear_state()
            manifests = run.manifests()
            if settings.strict:
                Losses.from_manifest(manifests[0]).refuse()
            message = f"{settings.out} is complete already: nothing was done"
        elif settings.part is not None:
            message = run.part()
        else:
            done = run.whole()
            found = losses or Losses()
            manifests = merge(
                journal, plan, settings, run.jobs, done, run.redo, found, more_manifest
            )
    except BaseException as error:
        _fail(error, journal, settings, len(items))
        raise
    finally:
        journal.release()
    return ShardSummary(
        folders=[os.path.join(settings.out, name) if name else settings.out for name in sets],
        manifests=manifests,
        input_bytes=0 if complete else run.read_bytes,
        seconds=time.perf_counter() - start,
        message=message,
    )


def _fail(error: BaseException, journal: Journal, settings: ShardSettings, items: int) -> None:
    """Leaves the output folder in order, and tells what is kept.

    Raises:
        UserError: in place of `error`, where that would not tell a user enough.
    """
    kept = 0 if settings.part is not None else journal.leave()
    if kept and isinstance(error, (UserError, KeyboardInterrupt)):
        print(
            f"elemdist: {kept:,} of {items:,} work items are done and kept in {settings.out}: the "
            f"same command goes on from there",
            file=sys.stderr,
        )
    if isinstance(error, OSError):  # the compiler's cache, for one, can meet a full disk too
        raise write_error(settings.out, 0, error) from error


class Run:
    """The passes of one run over its items.

    Attributes:
        jobs: one for each item, once the first pass is over. read_bytes: stored bytes read.
    """

    def __init__(
        self, settings: ShardSettings, items: list[Item], names: Names, journal: Journal, work: Work
    ) -> None:
        self._settings, self._items, self._names = settings, items, names
        self._journal, self._work = journal, work
        self.jobs: list[Job] = []
        self.read_bytes = 0
        find_labels = settings.input.labels_field is not None and names is None
        self._find_labels = find_labels
        self._scans = bool(find_labels or settings.holdout_last or settings.dedup != "off")

    def whole(self) -> list[Done]:
        """All items, of both passes; the entries of all."""
        if self._scans:
            self._scan(self._items)
        self.jobs = self._make_jobs()
        self._convert(self.jobs)
        return self._entries()

    def part(self) -> str:
        """This part's items, as far as the other parts let it; what to tell the user."""
        number, count = part_of(self._settings.part or "")
        own = self._items[number::count]
        if self._scans:
            self._scan(own)
            missing = len(self._items) - len(self._journal.scanned_items())
            if missing:
                return (
                    f"part {number}/{count}: its share of the first pass is done; {missing:,} work "
                    f"items of other parts are not. Run all parts again when all have ended"
                )
        self.jobs = self._make_jobs()
        self._convert(self.jobs[number::count])
        return (
            f"part {number}/{count}: its {len(own):,} of {len(self._items):,} work items are done. "
            f"When all parts are, the same command without --part makes the set"
        )

    def redo(self, items: set[int]) -> list[Done]:
        """Converts some items again, whose shards are not as they were written; all entries."""
        for item in items:
            self._journal.drop_done(item)
        self._convert([job for job in self.jobs if job.item.number in items])
        return self._entries()

    def manifests(self) -> list[dict[str, Any]]:
        """The manifests of complete sets."""
        from elemdist.shards import read_manifest

        store = self._journal.store
        return [read_manifest(store.within(folder).path) for folder in self._journal.sets]

    def _entries(self) -> list[Done]:
        found = [self._journal.read_done(item.number) for item in self._items]
        return [done for done in found if done is not None]

    def _pass(self, title: str, work: Any, tasks: list[Any], items: list[Item]) -> None:
        """One pass over some items, with its progress."""
        size = sum(item.size for item in items)
        self.read_bytes += size
        progress = Progress(title, size, self._settings.quiet)
        try:
            run_all(work, tasks, self._settings, progress)
        finally:
            progress.close()

    def _scan(self, items: list[Item]) -> None:
        done = self._journal.scanned_items()
        left = [item for item in items if item.number not in done]
        if left:
            self._pass("scan", scan_and_keep, left, left)

    def _convert(self, jobs: list[Job]) -> None:
        done = self._journal.intact_items(jobs)
        left = [job for job in jobs if job.item.number not in done]
        if done and not self._settings.quiet:
            print(
                f"elemdist: going on in {self._settings.out}: {len(done):,} of {len(jobs):,} work "
                f"items are done",
                file=sys.stderr,
            )
        if left:
            items = [job.item for job in left]
            self._pass("shard", Convert(self._work), left, items)

    def _make_jobs(self) -> list[Job]:
        """What is to be made of each item, by what the first pass found."""
        scans = [self._journal.read_scan(item.number) for item in self._items] * self._scans
        found = [one for one in scans if one is not None]
        if self._find_labels:
            counted: Counter[str] = Counter()
            for one in found:
                counted.update(one["labels"])
            self._names = tuple(sorted(counted))
            documents = sum(one["documents"] for one in found)
            if self._names == ("0", "1") and counted["0"] == counted["1"] == documents > 1:
                raise UserError(
                    f"every document has both labels, 0 and 1, in its field "
                    f"'{self._settings.input.labels_field}': {HINT}"
                )
            if not self._names:
                raise UserError(
                    f"no record has a label in its field '{self._settings.input.labels_field}': "
                    f"leave labels_field out"
                )
        dropped: list[bytes | None] = [None] * len(self._items)
        if self._settings.dedup != "off":
            dropped = self._duplicates([one["documents"] for one in found])
        firsts: list[int | None] = [None] * len(self._items)
        if self._settings.holdout_last:
            documents = [
                one["documents"] - (0 if bits is None else sum(byte.bit_count() for byte in bits))
                for one, bits in zip(found, dropped, strict=True)
            ]
            firsts = holdout(documents, self._settings.holdout_last)
        sets = tuple(self._journal.sets)
        return [
            Job(item, self._names, sets, bits, first)
            for item, bits, first in zip(self._items, dropped, firsts, strict=True)
        ]

    def _duplicates(self, documents: list[int]) -> list[bytes | None]:
        """The duplicates in each item; worked out by one part and kept for the others."""
        with self._journal.locks.alone("duplicates"):
            kept = self._journal.kept("duplicates.json")
            if kept is None:
                names = [hashes_name(item.number) for item in self._items]
                found = Tables(self._journal.store, names, documents).duplicates()
                kept = [None if bits is None else bits.hex() for bits in found]
                self._journal.keep("duplicates.json", kept)
        return [None if bits is None else bytes.fromhex(bits) for bits in kept]
