"""Samples added to a shard set: new shards beside its own, then a new manifest and index.

The new shards are made in a folder of their own within the set. Only when they are complete do
they move beside the others, and only when all are there is the index replaced. A run that is
killed on the way leaves the set as it was; the next one goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import xxhash

from data_prep.convert.choose import Choice
from data_prep.convert.plan import GEOMETRY, choice_of, copy, is_copy, rows_key
from data_prep.convert.settings import ConvertSettings
from data_prep.journal import STATE
from data_prep.losses import Losses, sum_of
from data_prep.manifest import padding_share
from data_prep.mds import stored
from data_prep.readers.mds_files import MdsFolder
from data_prep.store import LocalStore, write_error
from data_prep.words import counted
from elemdist.artefacts import parse_json
from elemdist.errors import UserError
from elemdist.json_text import json_text
from elemdist.locks import lock
from elemdist.remote import is_url, public
from elemdist.set_types import Number
from elemdist.shard_cache import open_folder
from elemdist.shard_index import read_set

STAGE = ".append-"  # folder in the set, for as long as an append lasts
JOURNAL = "journal.jsonl"


def append(settings: ConvertSettings, folders: list[MdsFolder]) -> str:
    """Adds sets to a set, each one once, however often it is told; returns what was done.

    Raises:
        UserError: their samples are of another layout; another append is at work; a full disk.
    """
    path = settings.append or ""
    if is_url(path):
        raise UserError(f"{public(path)} is in an object store: join the sets into a new one there")
    if settings.part is not None:
        raise UserError("append is one run: leave part out")
    with locked(path):
        store = LocalStore(path)
        finish(store)
        target = MdsFolder(path)
        if target.manifest is None:
            raise UserError(f"{path} is no set of byte rows: join the sets into a new one, --out")
        check_layout(settings, target, folders)
        there = {one["fingerprint"] for one in (target.manifest or {}).get("converted_from", [])}
        new: dict[str, MdsFolder] = {}
        for folder in folders:
            if os.path.realpath(folder.path) == os.path.realpath(path):
                raise UserError(f"{path} cannot be added to itself")
            if folder.fingerprint not in there:
                new.setdefault(folder.fingerprint, folder)
        if not new:
            return f"{path} holds all of them already: nothing was done"
        stage = STAGE + xxhash.xxh3_64_hexdigest(" ".join(new))
        before = target.samples
        copy(
            staged(settings, target, stage, list(new.values())),
            list(new.values()),
            Choice(verify=settings.verify),
            Losses(),
        )
        merge(store, stage)
    now = MdsFolder(path)
    return (
        f"{path}: {counted(now.samples - before, 'sample')} in "
        f"{counted(len(now.shards) - len(target.shards), 'shard')} added, {now.samples:,} now"
    )


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Keeps other appends out.

    Raises:
        UserError: one is at work.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        lock(handle, f"another append to {path} is at work: wait for its end")
        yield
    finally:
        os.close(handle)


def check_layout(settings: ConvertSettings, target: MdsFolder, folders: list[MdsFolder]) -> None:
    """Compares what makes the samples with the set that they go to.

    Raises:
        UserError: something differs, or a selection is asked for.
    """
    hint = "convert it first, with --out and the same settings"
    for folder in folders:
        if folder.manifest is None:
            raise UserError(f"{folder.name} is no set of byte rows: {hint}")
        for key in (*GEOMETRY, "classes_version", "tokenizer"):
            there, here = rows_key(target, key), rows_key(folder, key)
            if there != here:
                raise UserError(
                    f"{target.name} has {key} {there}, {folder.name} has {here}: {hint}"
                )
        if folder.labels != target.labels:
            raise UserError(f"{folder.name} has other labels than {target.name}: {hint}")
        if folder.manifest.get("torn") and not (target.manifest or {}).get("torn"):
            raise UserError(f"{folder.name} has torn documents (--tear), {target.name} has not")
    if choice_of(settings, folders) != Choice(verify=settings.verify) or not settings.keep_labels:
        raise UserError(f"append adds whole sets: for a selection, {hint}")
    if not is_copy(settings, folders):
        raise UserError(f"append adds samples as they are: {hint}")


def staged(
    settings: ConvertSettings, target: MdsFolder, stage: str, folders: list[MdsFolder]
) -> ConvertSettings:
    """The settings of the run that makes the new shards, like those of the set."""
    last = target.last
    hashes = settings.hashes
    limit = max(1, -(-int(last.get("size_limit") or 64 << 20) // (1 << 20)))
    return dataclasses.replace(
        settings,
        sets=[folder.path for folder in folders],
        out=os.path.join(settings.append or "", stage),
        append=None,
        compression=last.get("compression")
        if settings.compression is None
        else settings.compression,
        hashes=",".join(last.get("hashes") or ["xxh3_128"]) if hashes is None else hashes,
        shard_mb=limit if settings.shard_mb is None else settings.shard_mb,
        quiet=True,
    )


def finish(store: LocalStore) -> None:
    """Ends what appends left behind that were killed when their shards were complete."""
    for name in store.names():
        if name.startswith(STAGE):
            files = store.names(name)
            if "index.json" in files:
                merge(store, name)
            elif STATE not in files:  # it was being removed
                store.remove_folder(name)


def merge(store: LocalStore, stage: str) -> None:
    """Makes the complete set in the folder `stage` of a set a part of that set.

    Every step can be done again: a run that was killed here is gone on with from the start.

    Raises:
        UserError: the disk is full, or a file cannot be moved.
    """
    within = store.within(stage)
    index, manifest, _ = read_set(open_folder(store.path))
    added, more, _ = read_set(open_folder(within.path))
    new = added["shards"]
    if within.size("first.json") is None:  # fixed once, so that names stay when it is done again
        first = 1 + max((item_of(entry) for entry in index["shards"]), default=-1)
        within.write("first.json", json_text(first).encode(), flush=True)
    first = parse_json(within.read("first.json"), within.name_of("first.json"), Number)
    try:
        for entry in new:
            before = stored(entry)["basename"]
            rename(entry, first)
            if within.size(before) is not None:
                os.replace(within.name_of(before), store.name_of(stored(entry)["basename"]))
    except OSError as error:
        raise write_error(store.path, 0, error) from error
    store.sync()
    names = {stored(entry)["basename"] for entry in index["shards"]}
    if not names & {stored(entry)["basename"] for entry in new}:
        index["shards"] += new
    samples = sum(entry["samples"] for entry in index["shards"])
    if manifest["counts"]["samples"] != samples:
        manifest = joined(manifest, more)
    journal = joined_journal(store, within, first)
    text = json_text(manifest, indent=1) + "\n"
    if journal is not None:
        store.write(JOURNAL, journal, flush=True)
    index_text = json_text(index, sort_keys=True)
    within.write("manifest.next", text.encode(), flush=True)
    within.write("index.next", index_text.encode(), flush=True)
    # One right after the other: between the two the set cannot be opened.
    for name in ("manifest", "index"):
        os.replace(within.name_of(f"{name}.next"), store.name_of(f"{name}.json"))
    store.sync()
    within.remove("index.json")  # first: without it nothing is merged from there any more
    store.remove_folder(stage)


def item_of(entry: dict[str, Any]) -> int:
    """The number of the work item that made a shard, as its name has it; -1 for other names."""
    number = stored(entry)["basename"].split(".")[1:2]
    return int(number[0]) if number and number[0].isdecimal() else -1


def rename(entry: dict[str, Any], first: int) -> None:
    """Gives a shard of the new set its name in the set that it is added to."""
    for info in (entry["raw_data"], entry["zip_data"]):
        if info is not None:
            info["basename"] = renamed(info["basename"], first)


def renamed(name: str, first: int) -> str:
    """The name with its item counted from `first` on."""
    prefix, item, rest = name.split(".", 2)
    return f"{prefix}.{int(item) + first:05d}.{rest}"


def joined(manifest: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a set with another set's samples behind its own."""
    counts = Counter(manifest["counts"])
    counts.update(more["counts"])
    found = manifest | {
        "counts": {name: counts[name] for name in sorted(counts)},
        "padding_share": padding_share(counts, manifest["n"], manifest["v"]),
        "sources": manifest["sources"] + more["sources"],
        "converted_from": manifest.get("converted_from", []) + more["converted_from"],
    }
    found["rejected_documents"] = sum(one.get("rejected_documents", 0) for one in (manifest, more))
    found |= sum_of(Losses.from_manifest(one) for one in (manifest, more)).for_manifest()
    if manifest["label_counts"] is not None:
        found["label_counts"] = {
            label: count + more["label_counts"][label]
            for label, count in manifest["label_counts"].items()
        }
    return found


def joined_journal(store: LocalStore, within: LocalStore, first: int) -> bytes | None:
    """The set's journal with the lines of the new items; None if it has none, or has them."""
    try:
        lines = store.read(JOURNAL).splitlines()
        more = within.read(JOURNAL).splitlines()[1:]
    except FileNotFoundError:
        return None
    new = []
    for line in more:
        record = parse_json(line, f"{within.path}/{JOURNAL}")
        record["item"] += first
        record["shards"] = [renamed(name, first) for name in record["shards"]]
        new.append(json_text(record).encode())
    if new and new[0] in lines:
        return None
    return b"\n".join([*lines, *new]) + b"\n"
