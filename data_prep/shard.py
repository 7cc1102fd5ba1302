"""`elemdist shard`: raw text to shards of byte rows, with a manifest of what was done.

elemdist shard --inputs corpus --out shards --processes 8

Two passes where labels or a holdout ask for it (the first collects label names and counts
documents), else one. Every work item makes shards of its own, so the result does not depend on the
number of processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_prep.settings import InputSettings, ShardSettings, check
from elemdist.errors import UserError

if TYPE_CHECKING:  # the command's help need not wait for numpy and the readers
    from data_prep.output import OutputFolder
    from data_prep.plan import Item
    from data_prep.pool import Work
    from data_prep.work import Scanned, Share

__all__ = ["InputSettings", "ShardSettings", "ShardSummary", "run"]

TRAIN, VAL = "train", "val"


@dataclass
class ShardSummary:
    """What a run made.

    Attributes:
        folders: the shard sets: the output folder, or its train and val folders.
        manifests: the manifest of each. input_bytes: raw bytes read. seconds: the time it took.
    """

    folders: list[str]
    manifests: list[dict[str, Any]]
    input_bytes: int
    seconds: float


def run(settings: ShardSettings) -> ShardSummary:
    """Converts the inputs into one shard set, or into two with holdout_last.

    A run that fails, for whatever reason, removes all that it wrote; index.json comes last.

    Raises:
        UserError: a mistake in the settings or the input, or a full disk.
    """
    from data_prep.mds import write_error
    from data_prep.output import OutputFolder
    from data_prep.plan import make_items
    from data_prep.sources import find_sources

    start = time.perf_counter()
    check(settings)
    sources = find_sources(settings.inputs, settings.input)
    if settings.input.labels_field is not None:
        for source in sources:
            if source.format != "jsonl":
                raise UserError(f"{source.path} is text, without labels: leave labels_field out")
    names = _known_labels(settings)
    items = make_items(sources, settings)
    sets = [TRAIN, VAL] if settings.holdout_last else [""]
    folder = OutputFolder(settings.out, sets)
    folder.claim()
    try:
        manifests = _convert(items, names, settings, folder)
    except OSError as error:  # the compiler's cache, for one, can meet a full disk too
        folder.clear()
        raise write_error(settings.out, 0, error) from error
    except BaseException:
        folder.clear()
        raise
    summary = ShardSummary(
        folders=[os.path.join(settings.out, name) if name else settings.out for name in sets],
        manifests=manifests,
        input_bytes=sum(item.size for item in items),
        seconds=time.perf_counter() - start,
    )
    if not settings.quiet:
        print(describe(summary))
    return summary


def _known_labels(settings: ShardSettings) -> tuple[str, ...] | None:
    """The label names of the set in labels_from, if one is named."""
    if settings.labels_from is None:
        return None
    from elemdist.shards import read_manifest

    names = read_manifest(settings.labels_from)["labels"]
    if not names:
        raise UserError(f"{settings.labels_from} has no labels to take: it was made without any")
    return tuple(names)


def _convert(
    items: list[Item],
    names: tuple[str, ...] | None,
    settings: ShardSettings,
    folder: OutputFolder,
) -> list[dict[str, Any]]:
    """Both passes, and the seal; the manifests."""
    from data_prep.work import Job, Share, convert, scan

    scanned: list[Scanned] = []
    if settings.holdout_last or (settings.input.labels_field is not None and names is None):
        scanned = _pass("scan", scan, items, items, settings)
    if settings.input.labels_field is not None and names is None:
        names = tuple(sorted({label for found in scanned for label in found.labels}))
        if not names:
            raise UserError(
                f"no record has a label in its field '{settings.input.labels_field}': "
                f"leave labels_field out"
            )
    shares: list[tuple[Share, ...]] = [(Share(""),) for _ in items]
    if settings.holdout_last:
        shares = _holdout_shares([found.documents for found in scanned], settings.holdout_last)
    jobs = [Job(item, names, share) for item, share in zip(items, shares, strict=True)]
    results = [one for some in _pass("shard", convert, jobs, items, settings) for one in some]
    if not any(result.counts["documents"] for result in results):
        raise UserError(
            f"no document in {', '.join(settings.inputs[:3])}: blank, or all of it skipped"
        )
    return folder.seal(settings, names, results)


def _pass(
    title: str, work: Work, tasks: Sequence[Any], items: list[Item], settings: ShardSettings
) -> list[Any]:
    """One pass over all items, with its progress."""
    from data_prep.pool import run_all
    from data_prep.progress import Progress

    progress = Progress(title, sum(item.size for item in items), settings.quiet)
    try:
        return run_all(work, tasks, settings, progress)
    finally:
        progress.close()


def _holdout_shares(documents: list[int], last: int) -> list[tuple[Share, ...]]:
    """For items with so many documents each: how they fall to train, and the `last` ones to val."""
    from data_prep.work import Share

    total = sum(documents)
    if last >= total:
        raise UserError(f"holdout_last is {last:,}, but there are only {total:,} documents")
    shares: list[tuple[Share, ...]] = []
    left = total - last  # documents that still go to train
    for count in documents:
        if count <= left:
            shares.append((Share(TRAIN),))
        elif left == 0:
            shares.append((Share(VAL),))
        else:
            shares.append((Share(TRAIN, left), Share(VAL)))
        left -= min(left, count)
    return shares


def describe(summary: ShardSummary) -> str:
    """What a run made, for its user: one line for each set, and the speed."""
    lines = []
    for folder, manifest in zip(summary.folders, summary.manifests, strict=True):
        counts = manifest["counts"]
        lines.append(
            f"{folder}: {counts['documents']:,} documents, {counts['text_bytes']:,} bytes of text, "
            f"{counts['rows']:,} rows, {counts['samples']:,} samples of {manifest['n']} x "
            f"{manifest['v']}, {100 * manifest['padding_share']:.1f} % of the slots padding"
        )
        told = {
            "split_documents": "went on in a second sample",
            "truncated_documents": "lost their end",
            "replaced_documents": "had invalid UTF-8 replaced",
            "skipped_documents": "were skipped for invalid UTF-8",
        }
        for name, what in told.items():
            if counts[name]:
                lines.append(f"  {counts[name]:,} documents {what}")
        if manifest["labels"] is not None:
            lines.append(f"  {len(manifest['labels']):,} labels")
    speed = summary.input_bytes / 1e6 / max(summary.seconds, 1e-9)
    lines.append(
        f"{summary.input_bytes / 1e6:,.1f} MB read in {summary.seconds:,.1f} s ({speed:,.1f} MB/s)"
    )
    return "\n".join(lines)
