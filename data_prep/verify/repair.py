"""Damaged shards made anew from the input that the journal names, and compared with the index.

The journal is data that may be damaged or made up, so nothing of it is believed: what is read is
compared with its digests, and a shard takes its place only if it has the size and all the hashes of
the index. Whatever is made lies in a folder of its own until then.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from data_prep.documents import Part, Source
from data_prep.mds import digest_of
from data_prep.plan import Done, Item, Job
from data_prep.pool import run_all
from data_prep.progress import Progress
from data_prep.settings import InputSettings, ShardSettings, check
from data_prep.store import LocalStore, Store, open_store
from data_prep.verify.check_set import Entry
from elemdist.artefacts import parse_json
from elemdist.errors import UserError
from elemdist.remote import public

if TYPE_CHECKING:
    from data_prep.verify.main import VerifySettings

JOURNAL, FORMAT, FORMAT_VERSION = "journal.jsonl", "elemdist-journal", 1
WORKPLACE = ".elemdist-repair"  # folder in the set, for as long as the work lasts
DAMAGED = (LookupError, TypeError, ValueError, AttributeError)  # what a wrong value ends in


@dataclasses.dataclass(frozen=True)
class Task:
    """One item of the journal, with those of its shards that are to be made anew.

    Attributes:
        place: the set's folder or URL. folder: its name within the run that made it.
        record: the item's line of the journal. names: label names, or None.
        copied: its shards hold samples of other sets, as they are there.
    """

    place: str
    folder: str
    sets: tuple[str, ...]
    record: dict[str, Any]
    names: tuple[str, ...] | None
    copied: bool
    damaged: tuple[Entry, ...]


def repair(store: Store, damaged: dict[str, Entry], settings: VerifySettings) -> dict[str, str]:
    """Puts the right content in the place of damaged shards.

    Args:
        store: the set. damaged: name of a file -> what the index says of it.

    Returns:
        For each shard that is as it was: why.
    """
    try:
        made_with, tasks = read_journal(store, damaged)
    except DAMAGED as error:
        text = f"{JOURNAL} is damaged ({error!r}): copy the shard again"
        return dict.fromkeys(damaged, text)
    except UserError as error:
        return dict.fromkeys(damaged, str(error))
    left = dict.fromkeys(damaged, f"{JOURNAL} does not tell what it was made from")
    for task in tasks:
        for entry in task.damaged:
            left.pop(entry.stored.name, None)
    run_settings = dataclasses.replace(made_with, processes=settings.processes)
    size = sum(int(part["weight"]) for task in tasks for part in task.record["parts"])
    progress = Progress("repair", size, quiet=settings.json)
    try:
        for reasons in run_all(redo, tasks, run_settings, progress) if tasks else []:
            left |= reasons
    finally:
        progress.close()
        if isinstance(store, LocalStore):
            store.remove_folder(WORKPLACE)
    return {name: left[name] for name in damaged if name in left}


def read_journal(store: Store, damaged: dict[str, Entry]) -> tuple[ShardSettings, list[Task]]:
    """The settings that a set was made with, and a task for every item with a damaged shard.

    Raises:
        UserError: there is no journal that can be used.
        LookupError, TypeError, ValueError, AttributeError: it is damaged.
    """
    try:
        lines = store.read(JOURNAL).splitlines()
    except OSError as error:
        raise UserError(f"no {JOURNAL} tells what it was made from: copy it again") from error
    header = parse_json(lines[0], JOURNAL, dict[str, Any])
    if (header["format"], header["version"]) != (FORMAT, FORMAT_VERSION):
        raise UserError(f"{JOURNAL} is no {FORMAT} version {FORMAT_VERSION}")
    values = dict(header["settings"])
    values["input"] = InputSettings(**values["input"])
    copied = "work" in values
    kind: type[ShardSettings] = ShardSettings
    if copied:
        from data_prep.convert.copy_plan import CopySettings

        kind = CopySettings
    # The run may have skipped what it could not take. What is made is compared in any case.
    settings = kind(**values, out=WORKPLACE, on_error="skip", quiet=True)
    check(settings)
    sets, folder = tuple(header["sets"]), header["set"]
    for name in sets:
        if not isinstance(name, str) or set(name) & {"/", "\\", "\0"} or name in (".", ".."):
            raise ValueError(f"a set named {name!r}")
    if folder not in sets:
        raise ValueError(f"the set {folder!r} is none of {sets}")
    names = None if header["labels"] is None else tuple(header["labels"])
    tasks = []
    for line in lines[1:]:
        record = parse_json(line, JOURNAL, dict[str, Any])
        own = tuple(damaged[name] for name in record["shards"] if name in damaged)
        if own:
            job_of(record, sets, names, {})
            tasks.append(Task(store.path, folder, sets, record, names, copied, own))
    return settings, tasks


def job_of(
    record: dict[str, Any],
    sets: tuple[str, ...],
    names: tuple[str, ...] | None,
    sources: dict[str, Source],
) -> Job:
    """The job that a line of the journal tells.

    Args:
        sources: path -> source as it is now; of others the journal's word is taken.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: the line is damaged.
    """
    parts = []
    for part in record["parts"]:
        told = Source(part["path"], part["format"], part["compression"], int(part["size"]), "")
        source = sources.get(told.path, told)
        parts.append(Part(source, int(part["start"]), int(part["end"]), int(part["weight"])))
    dropped = None if record["dropped"] is None else bytes.fromhex(record["dropped"])
    return Job(Item(int(record["item"]), tuple(parts)), names, sets, dropped, record["first"])


def redo(task: Task, settings: ShardSettings, progress: Callable[[int], None]) -> dict[str, str]:
    """Makes the shards of one item anew and puts the damaged ones in place.

    Returns:
        For each shard that is as it was: why.
    """
    store = open_store(task.place)
    names = [entry.stored.name for entry in task.damaged]
    # An object store gets its objects whole, so the work for it is done on the disk.
    folder = None
    if isinstance(store, LocalStore):
        folder = store.name_of(WORKPLACE)
    workplace = ""
    try:
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
        workplace = tempfile.mkdtemp(prefix="elemdist-", dir=folder)
        job = job_of(task.record, task.sets, task.names, sources_now(task, settings.input))
        done = convert(task.copied, job, dataclasses.replace(settings, out=workplace), progress)
        compare_digests(task, done)
        return replace_shards(task, store, open_store(workplace).within(task.folder))
    except (UserError, OSError) as error:
        return dict.fromkeys(names, str(error))
    except DAMAGED as error:
        return dict.fromkeys(names, f"it cannot be made from what {JOURNAL} says ({error!r})")
    finally:
        if workplace:
            shutil.rmtree(workplace, ignore_errors=True)


def convert(
    copied: bool, job: Job, settings: ShardSettings, progress: Callable[[int], None]
) -> Done:
    """The work that made the item's shards, once more."""
    if copied:
        from data_prep.convert.main import copy_item

        return copy_item(job, settings, progress)
    from data_prep.work import convert as convert_item

    return convert_item(job, settings, progress)


def sources_now(task: Task, settings: InputSettings) -> dict[str, Source]:
    """The sources of an item as they are now, by path.

    Raises:
        UserError: one is gone or has another size.
    """
    from data_prep.readers.sources import find_sources

    sizes = {part["path"]: part["size"] for part in task.record["parts"]}
    formats = {part["path"]: part["format"] for part in task.record["parts"]}
    found: dict[str, Source] = {}
    for format in sorted(set(formats.values())):
        paths = [path for path in formats if formats[path] == format]
        sources = find_sources(paths, dataclasses.replace(settings, format=format))
        found |= {source.path: source for source in sources}
    for path, size in sizes.items():
        if path not in found:
            raise UserError(f"{public(path)}, which it was made from, is no such source any more")
        if found[path].size != size:
            raise UserError(
                f"{public(path)}, which it was made from, has changed: it has "
                f"{found[path].size:,} bytes instead of {size:,}"
            )
    return found


def compare_digests(task: Task, done: Done) -> None:
    """Compares what was read with what the journal says was read.

    Raises:
        UserError: a source that changed.
    """
    for part, digest in zip(task.record["parts"], done.digests, strict=True):
        if part["xxh3_128"] != digest:
            raise UserError(f"{public(part['path'])}, which it was made from, has changed")


def replace_shards(task: Task, store: Store, made: Store) -> dict[str, str]:
    """Puts the damaged shards of an item in place, those that came out as the index says.

    Returns:
        For each of the others: why not.
    """
    left = {}
    for entry in task.damaged:
        file = entry.stored
        try:
            content = made.read(file.name)
        except FileNotFoundError:
            left[file.name] = "its input does not give such a shard any more"
            continue
        if not file.hashes:
            left[file.name] = "the index has no hash of it, so nothing could prove it right"
        elif len(content) != file.size or any(
            digest_of(name, content) != hash for name, hash in file.hashes.items()
        ):
            left[file.name] = (
                "made anew it is not the shard of the index: another version of elemdist, or of a "
                "library that it uses, made that one"
            )
        else:
            store.write(file.name, content, flush=True)
    return left
