"""`elemdist verify`: a shard set checked wholly, each bad shard and sample named, and repaired.

elemdist verify shards/train --repair
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from data_prep.words import counted
from elemdist.json_text import json_text
from elemdist.json_types import Processes

if TYPE_CHECKING:  # the command's help need not wait for numpy
    from data_prep.store import Store
    from data_prep.verify.check_set import Entry, Geometry
    from data_prep.verify.check_shard import Found, Task

SMALL = 1 << 26  # bytes that are checked before another process has started


@dataclass
class VerifySettings:
    """Check a shard set wholly, and name each bad shard and sample."""

    path: str
    """The shard folder, or its URL in an object store."""

    processes: Processes = 0
    """Processes that work at the same time, each on one shard; 0: one for each core."""

    quick: bool = False
    """Only sizes, headers and hashes, not the samples."""

    repair: bool = False
    """Make bad shards anew, from the input that the set's journal names. A shard takes the bad
    one's place only if it is, byte for byte, the one that the index describes."""

    json: bool = False
    """Print the result as one JSON object."""


class Problem(NamedTuple):
    """Something wrong: a file of the set, the number of a sample in it or None, and what it is."""

    file: str
    sample: int | None
    text: str

    def __str__(self) -> str:
        place = "" if self.sample is None else f"sample {self.sample}: "
        return f"{self.file}: {place}{self.text}"


@dataclass
class Report:
    """What was found in a set.

    Attributes:
        path: the set. shards, samples, size: how much of it was looked at, size in stored bytes.
        problems: all that is wrong, in the order of the index. warnings: what may be meant so.
        repaired: shards that were made anew. not_repaired: those that could not be, and why.
    """

    path: str
    shards: int = 0
    samples: int = 0
    size: int = 0
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    not_repaired: dict[str, str] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Nothing is wrong (any more)."""
        return not self.problems


def run(settings: VerifySettings) -> int:
    """Checks a set and prints what was found; 0 if all is good, else 1.

    Raises:
        UserError: no set there.
    """
    report = verify(settings)
    if settings.json:
        problems = [problem._asdict() for problem in report.problems]
        print(json_text(asdict(report) | {"problems": problems, "good": report.good}))
    else:
        print("\n".join(lines_of(report)))
    return 0 if report.good else 1


def lines_of(report: Report) -> list[str]:
    """A report for a reader: a line for each problem, and the sum of it."""
    lines = [str(problem) for problem in report.problems]
    lines += [f"warning: {text}" for text in report.warnings]
    lines += [f"repaired: {name}" for name in report.repaired]
    lines += [f"not repaired: {name}: {text}" for name, text in report.not_repaired.items()]
    shards, samples = counted(report.shards, "shard"), counted(report.samples, "sample")
    what = f"{shards}, {samples}, {report.size / 1e6:,.1f} MB"
    files = len({problem.file for problem in report.problems})
    problems = counted(len(report.problems), "problem")
    result = f"{problems} in {counted(files, 'file')}" if files else "all good"
    return [*lines, f"{report.path}: {what}: {result}"]


def verify(settings: VerifySettings) -> Report:
    """Checks a set, and repairs it if asked to.

    Raises:
        UserError: no set there, or an object store that cannot be reached.
    """
    from data_prep.store import open_store
    from data_prep.verify import check_set
    from data_prep.verify.check_shard import Task
    from data_prep.verify.check_whole import compare_counts
    from elemdist.errors import UserError
    from elemdist.remote import public

    store = open_store(settings.path)
    report = Report(public(settings.path))
    files = store.sizes()
    names = store.names()
    if not names:
        raise UserError(f"no shard folder {report.path}, or an empty one")
    shards = any(".mds" in name for name in files)
    if check_set.INDEX not in files and (not shards or check_set.STATE in names):
        raise check_set.no_set(store)
    of_set: list[Problem] = []

    def read(name: str) -> dict[str, Any]:
        return check_set.read_object(store, name, tell(name)) or {}

    def tell(name: str) -> check_set.Problem:
        return lambda text: of_set.append(Problem(name, None, text))

    index = read(check_set.INDEX)
    entries = check_set.entries_of(index, tell(check_set.INDEX)) if index else []
    foreign = bool(entries) and not any(entry.holds_rows for entry in entries)
    if foreign and check_set.MANIFEST not in files:
        report.warnings.append("no set of byte rows: only files, sizes and hashes are checked")
        manifest = {}
    else:
        manifest = read(check_set.MANIFEST)
    geometry = check_set.geometry_of(manifest, tell(check_set.MANIFEST)) if manifest else None
    if not index:
        tell(check_set.INDEX)(
            "without it nothing else is checked, and --repair has nothing to go by"
        )
    report.shards, report.samples = len(entries), sum(entry.samples for entry in entries)
    report.size = sum(entry.stored.size for entry in entries)
    tasks = [Task(settings.path, entry, geometry, settings.quick) for entry in entries]
    found = check_all(tasks, settings, "verify")
    if settings.repair:
        _repair(store, tasks, found, settings, report)
    report.warnings += [
        f"{name} is no part of the set" for name in check_set.strangers(store, entries) if index
    ]
    report.problems = of_set + _problems_of(entries, found, geometry)
    # Counts of a part of the set tell nothing.
    if geometry is not None and not of_set:
        texts = compare_counts(manifest, geometry, entries, found)
        report.problems += [Problem(check_set.MANIFEST, None, text) for text in texts]
    return report


def check_all(tasks: list[Task], settings: VerifySettings, title: str) -> list[Found]:
    """Checks shards, on several processes if that is worth it; what was found in each.

    Raises:
        UserError: a process was killed.
    """
    from data_prep.pool import run_all
    from data_prep.progress import Progress
    from data_prep.settings import ShardSettings
    from data_prep.verify.check_shard import check_shard

    size = sum(task.entry.stored.size for task in tasks)
    processes = settings.processes or (1 if size < SMALL else 0)
    progress = Progress(title, size, quiet=settings.json)
    try:
        if not tasks:
            return []
        return run_all(check_shard, tasks, ShardSettings([], "", processes=processes), progress)
    finally:
        progress.close()


def _repair(
    store: Store, tasks: list[Task], found: list[Found], settings: VerifySettings, report: Report
) -> None:
    """Makes damaged shards anew and checks them again; `found` is brought up to date."""
    from data_prep.verify.repair import repair

    damaged = [k for k, one in enumerate(found) if one.damaged]
    if not damaged:
        return
    entries = {tasks[k].entry.stored.name: tasks[k].entry for k in damaged}
    report.not_repaired = repair(store, entries, settings)
    report.repaired = [name for name in entries if name not in report.not_repaired]
    again = check_all([tasks[k] for k in damaged], settings, "verify again")
    for k, one in zip(damaged, again, strict=True):
        found[k] = one


def _problems_of(
    entries: list[Entry], found: list[Found], geometry: Geometry | None
) -> list[Problem]:
    """What is wrong with shards, and between them, in the order of the index."""
    from data_prep.verify.check_whole import check_joints

    joints: list[tuple[int, int, str]] = []
    if geometry is not None and not geometry.torn and any(one.content for one in found):
        joints = check_joints(entries, found, geometry.truncate)
    problems = []
    for number, (entry, one) in enumerate(zip(entries, found, strict=True)):
        own = one.problems + [(sample, text) for shard, sample, text in joints if shard == number]
        problems += [Problem(entry.stored.name, sample, text) for sample, text in own]
    return problems
