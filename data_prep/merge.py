"""The merge: every shard's hash checked, then manifests and journals, and index.json last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from data_prep.documents import STDIN
from data_prep.journal import OURS, OURS_UNFINISHED, Journal
from data_prep.losses import Losses, sum_of
from data_prep.manifest import manifest_of, write_manifest
from data_prep.mds import new_digest, stored, write_index
from data_prep.plan import Done, Job, Plan
from data_prep.pool import run_all
from data_prep.progress import Progress
from data_prep.settings import ShardSettings
from data_prep.store import LocalStore, Store, open_store
from elemdist.errors import UserError
from elemdist.json_text import json_text
from elemdist.remote import public

JOURNAL, REJECTS = "journal.jsonl", "rejects.jsonl"
READ_BYTES = 1 << 20


def merge(
    journal: Journal,
    plan: Plan,
    settings: ShardSettings,
    jobs: list[Job],
    done: list[Done],
    redo: Callable[[set[int]], list[Done]],
    found: Losses,
    more: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Makes sets of what the items gave; returns their manifests.

    Args:
        redo: converts items again whose shards turn out damaged; all entries.
        found: what was left out before there were items.

    Raises:
        UserError: a shard is damaged twice; no document at all; a full disk.
    """
    store = journal.store
    bad = check_shards(done, settings)
    if bad:
        done = redo(bad)
        if bad := check_shards(done, settings):
            raise UserError(
                f"{store.path}: shards of work item {min(bad)} (shard.{min(bad):05d}.*) are not "
                f"what was written, twice: check the disk, and run again"
            )
    losses = sum_of([found, *(one.losses for one in done)])
    if not any(part.counts["documents"] for one in done for part in one.sets.values()):
        journal.clear()
        raise _no_document(settings, losses)
    if settings.strict:  # items may have been done by a run that was not
        losses.refuse()
    more = {**losses.for_manifest(), "empty_sets": _empty_sets(journal, done), **(more or {})}
    rejects = _merge_rejects(journal, done)
    manifests = []
    for folder in journal.sets:
        place = store.within(folder)
        manifest = manifest_of(settings, jobs, done, folder, rejects, more)
        header = {
            "format": "elemdist-journal",
            "version": 1,
            "plan": plan.digest,
            "set": folder,
            "sets": journal.sets,
            "settings": plan.settings,
            "labels": manifest["labels"],
        }
        lines = [header, *(_record(job, one, folder) for job, one in zip(jobs, done, strict=True))]
        text = "\n".join(json_text(line) for line in lines) + "\n"
        place.write(JOURNAL, text.encode(), flush=True)
        write_manifest(place, manifest)
        manifests.append(manifest)
    for folder in journal.sets:
        _finish(store.within(folder), [shard for one in done for shard in one.sets[folder].shards])
    journal.clear_state()
    return manifests


def _finish(place: Store, shards: list[dict[str, Any]]) -> None:
    """Remove what is not of the set, and write its index, which makes it whole."""
    _sweep(place, {stored(shard)["basename"] for shard in shards})
    write_index(place, shards)
    place.sync()


def _no_document(settings: ShardSettings, losses: Losses) -> UserError:
    """Return the error of a run that found no document, with the reasons."""
    why = "; ".join(losses.lines()) or "blank, or all of it left out"
    names = ["standard input" if name == STDIN else name for name in settings.inputs[:3]]
    return UserError(f"no document in {', '.join(names)}: {why}")


def _empty_sets(journal: Journal, done: list[Done]) -> list[str]:
    """Return the sets, of several, that got no document."""
    return [
        folder
        for folder in journal.sets
        if not any(one.sets[folder].counts["documents"] for one in done)
    ]


def _record(job: Job, done: Done, folder: str) -> dict[str, Any]:
    """The journal's line of one item and one set."""
    parts = []
    for part, digest in zip(job.item.parts, done.digests, strict=True):
        place = {"start": part.start, "end": part.end, "weight": part.weight, "xxh3_128": digest}
        source = asdict(part.source)
        del source["version"]  # another copy of the same input has another one
        source["path"] = public(source["path"])
        parts.append(source | place)
    return {
        "item": done.item,
        "parts": parts,
        "dropped": None if job.dropped is None else job.dropped.hex(),
        "first": job.first,
        "shards": [stored(shard)["basename"] for shard in done.sets[folder].shards],
    }


def _merge_rejects(journal: Journal, done: list[Done]) -> int:
    """Joins the rejects of all items, in order, into one file; how many there are."""
    from data_prep.work import rejects_name

    total = sum(one.rejects for one in done)
    if total:
        parts = [journal.store.read(rejects_name(one.item)) for one in done if one.rejects]
        journal.store.write(REJECTS, *parts, flush=True)
    return total


def _sweep(store: Store, wanted: set[str]) -> None:
    """Removes temporary files and shards of killed runs that no item lists."""
    for name in store.sizes():
        shard = OURS.fullmatch(name) and name.startswith("shard.")
        if OURS_UNFINISHED.fullmatch(name) or (shard and name not in wanted):
            store.remove(name)


def check_item(done: Done, settings: ShardSettings, progress: Callable[[int], None]) -> bool:
    """Reads the shards of an item again; whether all are intact, and on the disk."""
    return all(
        intact(open_store(settings.out).within(folder), stored(shard), progress)
        for folder, part in done.sets.items()
        for shard in part.shards
    )


def intact(store: Store, info: dict[str, Any], progress: Callable[[int], None]) -> bool:
    """Whether a file has the size and the hashes that the index lists; waits for the disk.

    An object store compares what it receives with what was sent, so its objects are not read again.
    """
    name, size = info["basename"], info["bytes"]
    if store.size(name) != size:
        return False
    if not isinstance(store, LocalStore):
        progress(size)
        return True
    store.sync(name)
    digests = {algorithm: new_digest(algorithm) for algorithm in info["hashes"]}
    with open(store.name_of(name), "rb", buffering=0) as file:
        while chunk := file.read(READ_BYTES):
            for digest in digests.values():
                digest.update(chunk)
            progress(len(chunk))
    return all(digests[key].hexdigest() == wanted for key, wanted in info["hashes"].items())


def check_shards(done: list[Done], settings: ShardSettings) -> set[int]:
    """Waits until all shards are on the disk and compares size and hash; the items of bad ones.

    Of an object store only the sizes are compared: it checks what it receives.
    """
    parts = [part for one in done for part in one.sets.values()]
    size = sum(stored(shard)["bytes"] for part in parts for shard in part.shards)
    progress = Progress("check", size, settings.quiet)
    try:
        good = run_all(check_item, done, settings, progress)
    finally:
        progress.close()
    return {one.item for one, fine in zip(done, good, strict=True) if not fine}
