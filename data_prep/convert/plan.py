"""What a conversion of shard sets comes to: samples copied, or documents sharded anew."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from data_prep.convert.choose import Choice
from data_prep.convert.copy_plan import CopySettings, plan
from data_prep.convert.main import copy_item
from data_prep.convert.settings import ConvertSettings
from data_prep.losses import Losses
from data_prep.mds import hash_names
from data_prep.pipeline import ShardSummary, make_sets
from data_prep.readers.labels import names_in
from data_prep.readers.mds_files import MdsFolder
from data_prep.readers.mds_rows import goes_on, losses
from data_prep.segment import segmenter_versions
from data_prep.settings import InputSettings, ShardSettings, check
from data_prep.words import counted
from elemdist import compression
from elemdist.errors import UserError, nearest
from elemdist.json_types import check_types
from elemdist.remote import public

# What makes the rows of a set, as the manifest has it, and as the settings of a run.
GEOMETRY = ("n", "v", "segmenter", "packing", "overlong")


def make(settings: ConvertSettings, folders: list[MdsFolder], losses: Losses) -> ShardSummary:
    """Makes a set out of others.

    Args:
        losses: what is left out already.

    Raises:
        UserError: a mistake in the settings, a damaged set, or a full disk.
    """
    choice = choice_of(settings, folders)
    if is_copy(settings, folders):
        return copy(settings, folders, choice, losses)
    if choice != Choice(verify=choice.verify):
        raise UserError(
            "a selection, or another order, copies samples as they are: do that first, and shard "
            "the result anew in a second command"
        )
    return shard_anew(settings, folders, losses)


def is_copy(settings: ConvertSettings, folders: list[MdsFolder]) -> bool:
    """Whether the rows stay as they are.

    Raises:
        UserError: they differ from set to set, and the settings do not say what they shall be.
    """
    if any(folder.manifest is None for folder in folders):
        return False
    anew = False
    for key in GEOMETRY:
        found = {folder.path: rows_key(folder, key) for folder in folders}
        asked = getattr(settings, key)
        if asked is None:
            _agree(key, found, f"--{key} shards all of them anew")
        anew = anew or (asked is not None and set(found.values()) != {asked})
    if settings.tokenizer is not None:
        digest = tokenizer_digest(settings.tokenizer)
        anew = anew or any(rows_key(folder, "tokenizer") != digest for folder in folders)
    if not anew:
        for key in ("classes_version", "tokenizer"):
            found = {folder.path: rows_key(folder, key) for folder in folders}
            _agree(key, found, "shard them anew one by one, with --segmenter")
        if settings.keep_labels:
            found = {folder.path: folder.labels and tuple(folder.labels) for folder in folders}
            _agree("labels", found, "--keep-labels false leaves them out")
    return not anew


def rows_key(folder: MdsFolder, key: str) -> Any:
    """What the manifest says of one thing that makes the rows."""
    manifest = folder.manifest or {}
    if key == "tokenizer":
        return manifest.get("libraries", {}).get("tokenizer_xxh3_128")
    return manifest.get(key)


def tokenizer_of(folders: Iterable[MdsFolder]) -> str | None:
    """The tokenizer file that a set was made with, if any was."""
    for folder in folders:
        made = (folder.manifest or {}).get("settings", {})
        if made.get("tokenizer") is not None:
            return str(made["tokenizer"])
    return None


def tokenizer_digest(path: str) -> str:
    """The hash of a tokenizer file, as a manifest has it.

    Raises:
        UserError: there is none, or it is no tokenizer.
    """
    return segmenter_versions("subword", path)["tokenizer_xxh3_128"]


def _agree(key: str, found: dict[str, Any], hint: str) -> None:
    (first, value), *others = found.items()
    for path, other in others:
        if other != value:
            if key == "labels":
                raise UserError(f"{public(first)} and {public(path)} have other labels: {hint}")
            raise UserError(
                f"{public(first)} has {key} {value}, {public(path)} has {other}: {hint}"
            )


def choice_of(settings: ConvertSettings, folders: list[MdsFolder]) -> Choice:
    """What is copied, in what order.

    Raises:
        UserError: it cannot be done with these sets.
    """
    start, end = bounds_of(settings, folders)
    check_types(settings)
    choice = Choice(
        start=start,
        end=end,
        every=settings.every,
        share=settings.share,
        seed=settings.seed if settings.share < 1 else 0,
        labels=settings.with_labels,
        shuffle=settings.shuffle,
        tear=settings.tear,
        verify=settings.verify,
    )
    if choice.some and settings.shuffle is not None:
        raise UserError("a shuffle takes all samples: select in a first command")
    for folder in folders:
        for label in settings.with_labels:
            known = folder.labels or []
            if label not in known:
                raise UserError(f"{folder.name} has no label '{label}'{nearest(label, known)}")
        if folder.manifest is None or not (choice.some or settings.shuffle is not None):
            continue
        packed = folder.manifest["packing"] == "packed"
        if packed and not settings.tear:
            raise UserError(
                f"{folder.name} is packed, so that documents go on from sample to sample and would "
                f"be torn apart: --tear if that does not matter, or first --packing document"
            )
        if settings.shuffle is not None and not packed and goes_on(folder):
            raise UserError(
                f"{folder.name}: "
                f"{counted(folder.manifest['counts']['split_documents'], 'document')} cut across "
                f"samples, and a shuffle would tear them apart: first set a larger n, "
                f"or --overlong truncate"
            )
    return choice


def bounds_of(settings: ConvertSettings, folders: list[MdsFolder]) -> tuple[int, int | None]:
    """The first sample that `samples` names, and the one behind the last; None: to the end.

    Raises:
        UserError: it is no range, or there are several sets.
    """
    if settings.samples is None:
        return 0, None
    first, colon, end = settings.samples.partition(":")
    if not colon or not all(text.isdecimal() or not text for text in (first, end)):
        raise UserError(f"samples is FIRST:END, as 0:1000, not '{settings.samples}'")
    if len(folders) > 1:
        raise UserError("samples selects from one set: convert each by itself, then join them")
    return int(first or 0), int(end) if end else None


def shared_settings(settings: ConvertSettings) -> dict[str, Any]:
    """The settings of a run that both ways have in common."""
    chosen = settings.compression
    if chosen is not None:
        compression.check(chosen)
    hashes = "xxh3_128" if settings.hashes is None else settings.hashes
    hash_names(hashes)
    return {
        "inputs": settings.sets,
        "out": settings.out or "",
        "compression": chosen,
        "hashes": hashes,
        "shard_mb": 64 if settings.shard_mb is None else settings.shard_mb,
        "item_mb": settings.item_mb,
        "on_invalid": settings.on_invalid,
        "on_error": settings.on_error,
        "strict": settings.strict,
        "processes": settings.processes,
        "part": settings.part,
        "restart": settings.restart,
        "quiet": settings.quiet,
    }


def copy(
    settings: ConvertSettings, folders: list[MdsFolder], choice: Choice, losses: Losses
) -> ShardSummary:
    """Copies samples."""
    first = folders[0]
    names = tuple(first.labels) if first.labels and settings.keep_labels else None
    run = CopySettings(
        **shared_settings(settings),
        **{key: rows_key(first, key) for key in GEOMETRY},
        tokenizer=settings.tokenizer or tokenizer_of(folders),
        work=choice.to_text(),
    )
    check(run)
    if run.tokenizer is not None:
        digest = rows_key(first, "tokenizer")
        if not os.path.isfile(run.tokenizer) or tokenizer_digest(run.tokenizer) != digest:
            raise UserError(
                f"{run.tokenizer} is not the tokenizer of {first.name}: --tokenizer names its file"
            )
    more = {
        "converted_from": origins(folders, whole=not choice.some),
        "classes_version": rows_key(first, "classes_version"),
    }
    if choice.tear or any((folder.manifest or {}).get("torn") for folder in folders):
        more["torn"] = True
    items = plan(folders, run, len(names or ()), losses)
    return make_sets(run, items, names, copy_item, more, losses)


def shard_anew(settings: ConvertSettings, folders: list[MdsFolder], losses: Losses) -> ShardSummary:
    """Shards the documents of sets anew."""
    from data_prep.plan import make_items
    from data_prep.readers.sources import find_sources
    from data_prep.work import convert

    rows = [folder for folder in folders if folder.manifest is not None]
    known: dict[str, Any] = {}
    for key in GEOMETRY:
        asked = getattr(settings, key)
        if asked is None and rows:
            _agree(key, {folder.path: rows_key(folder, key) for folder in rows}, f"set --{key}")
            asked = rows_key(rows[0], key)
        if asked is not None:
            known[key] = asked
    if known.get("segmenter") == "subword":
        known["tokenizer"] = settings.tokenizer or tokenizer_of(rows)
    labels = settings.labels_field
    if labels is None and any(folder.labels for folder in rows):
        labels = "labels"
    input = InputSettings(
        format="mds",
        text_field=settings.text_field,
        labels_field=labels if settings.keep_labels else None,
        labels_separator=settings.labels_separator,
        labels_as=settings.labels_as,
        label_names=settings.label_names,
    )
    run = ShardSettings(**shared_settings(settings), **known, input=input)
    if run.packing == "packed" and input.labels_field is not None:
        raise UserError("packed samples have no place for labels: --keep-labels false")
    check(run)
    items = make_items(find_sources(run.inputs, run.input, losses), run)
    # Sets that agree keep their labels, and the order of the bits, and need no pass to find them.
    found = {tuple(folder.labels or ()) for folder in folders}
    names = found.pop() if len(found) == 1 and input.labels_field is not None else None
    if not names and input.label_names is not None:
        names = tuple(names_in(input.label_names))
    more = {"converted_from": origins(folders, whole=False)}
    return make_sets(run, items, names or None, convert, more, losses)


def origins(folders: list[MdsFolder], whole: bool) -> list[dict[str, Any]]:
    """Where a converted set comes from, for its manifest.

    Args:
        whole: its own counts include those of the sets.

    Returns:
        For each set its path, fingerprint and size, what made its rows, and how much was lost
        before that the counts of the new set do not show.
    """
    found = []
    for folder in folders:
        entry: dict[str, Any] = {
            "path": public(folder.path),
            "fingerprint": folder.fingerprint,
            "samples": folder.samples,
            "truncated_documents": 0,
            "dropped_bytes": 0,
        }
        if folder.manifest is not None:
            entry |= {key: rows_key(folder, key) for key in GEOMETRY}
            documents, size = losses(folder.manifest)
            counts = folder.manifest["counts"]
            entry["truncated_documents"] = documents - whole * counts["truncated_documents"]
            entry["dropped_bytes"] = size - whole * counts["dropped_bytes"]
            kept = ("left_out", "converted_from")
            entry |= {key: folder.manifest[key] for key in kept if folder.manifest.get(key)}
        found.append(entry)
    return found
