"""`elemdist shard`: raw text to shards of byte rows, with a manifest of what was done.

elemdist shard corpus --out shards --processes 8

Two passes where labels, a holdout or duplicates ask for it, else one. Every work item makes shards
of its own, so the result does not depend on the number of processes, nor on what was killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_prep.settings import InputSettings, ShardSettings, check
from data_prep.words import counted
from elemdist.errors import UserError

if TYPE_CHECKING:  # the command's help need not wait for numpy and the readers
    from data_prep.documents import Source
    from data_prep.pipeline import ShardSummary

__all__ = ["InputSettings", "ShardSettings", "run"]

LABELLED = ("jsonl", "csv", "tsv", "parquet", "arrow", "datasets", "mds")


def run(settings: ShardSettings) -> ShardSummary:
    """Converts the inputs into one shard set, or into several with split or holdout_last.

    index.json comes last. A run that fails keeps the work items that are done, and the same call
    goes on from there; where none is done it leaves nothing behind.

    Raises:
        UserError: a mistake in the settings or the input, or a full disk.
    """
    from data_prep.losses import Losses
    from data_prep.mds import hash_names
    from data_prep.pipeline import make_sets
    from data_prep.plan import make_items
    from data_prep.readers.sources import find_sources
    from data_prep.standard_input import kept_input
    from data_prep.work import convert
    from elemdist import compression

    check(settings)
    hash_names(settings.hashes)
    if settings.compression is not None:
        compression.check(settings.compression)
    losses = Losses(settings.strict)
    with kept_input(settings) as inputs:
        sources = find_sources(inputs, settings.input, losses, settings.out)
        _check_formats(sources, settings)
        more = _converted_from(sources)
        items = make_items(sources, settings)
        summary = make_sets(settings, items, _known_labels(settings), convert, more, losses)
    if not settings.quiet:
        print(describe(summary))
        warn(summary, settings.input.labels_as == "multi_hot")
    return summary


def _check_formats(sources: list[Source], settings: ShardSettings) -> None:
    """Refuses settings that a format has no field for."""
    for source in sources:
        fields = source.format in LABELLED
        if settings.input.labels_field is not None and not fields:
            raise UserError(f"{source.path} is text, without labels: leave labels_field out")
        named = source.format in ("tar", "warc") or (
            source.format == "text" and settings.input.document == "file"
        )
        if settings.split_by == "id" and settings.split:
            if fields and settings.input.id_field is None:
                raise UserError("split_by id needs input.id_field, the field that holds the id")
            if not fields and not named:
                raise UserError(f"{source.path}: its documents have no id: set split_by bytes")


def _converted_from(sources: list[Source]) -> dict[str, Any]:
    """For the manifest: which of the sources are shard sets, and what those lost already."""
    paths = [source.path for source in sources if source.format == "mds"]
    if not paths:
        return {}
    from data_prep.convert.plan import origins
    from data_prep.readers.mds_files import MdsFolder

    return {"converted_from": origins([MdsFolder(path) for path in paths], whole=False)}


def _known_labels(settings: ShardSettings) -> tuple[str, ...] | None:
    """The label names of the set in labels_from, or of the file in input.label_names."""
    if settings.labels_from is None:
        if settings.input.label_names is None:
            return None
        from data_prep.readers.labels import names_in

        return tuple(names_in(settings.input.label_names))
    from elemdist.shards import read_manifest

    names = read_manifest(settings.labels_from)["labels"]
    if not names:
        raise UserError(f"{settings.labels_from} has no labels to take: it was made without any")
    return tuple(names)


def warn(summary: ShardSummary, multi_hot: bool) -> None:
    """Say on standard error which sets got no document, and which names labels got."""
    import sys

    names = summary.manifests[0]["labels"] if multi_hot and summary.manifests else None
    if names and all(name.isdecimal() for name in names):
        print(
            "elemdist: note: labels are named by their place in the lists: --input.label-names "
            "names them",
            file=sys.stderr,
        )
    for folder, manifest in zip(summary.folders, summary.manifests, strict=False):
        if not manifest["counts"]["documents"]:
            print(f"elemdist: warning: {folder} is empty: no document went there", file=sys.stderr)


def describe(summary: ShardSummary) -> str:
    """What a run made, for its user: one line for each set, what was left out, and the speed."""
    from data_prep.losses import Losses

    lines = [summary.message] if summary.message else []
    for folder, manifest in zip(summary.folders, summary.manifests, strict=False):
        counts = manifest["counts"]
        if not counts["documents"]:
            lines.append(f"{folder}: no document")
            continue
        lines.append(
            f"{folder}: {counted(counts['documents'], 'document')}, "
            f"{counted(counts['text_bytes'], 'byte')} of text, {counted(counts['rows'], 'row')}, "
            f"{counted(counts['samples'], 'sample')} of {manifest['n']} x {manifest['v']}, "
            f"{100 * manifest['padding_share']:.1f} % of the slots padding"
        )
        told = {
            "split_documents": "went on in a second sample",
            "truncated_documents": "cut at the end of a sample",
            "replaced_documents": "with invalid UTF-8 replaced",
            "duplicate_documents": "left out that came before",
        }
        for name, what in told.items():
            if counts.get(name):
                lines.append(f"  {counted(counts[name], 'document')} {what}")
        if manifest["labels"] is not None:
            lines.append(f"  {counted(len(manifest['labels']), 'label')}")
    if summary.manifests and summary.manifests[0]["rejected_documents"]:
        count = summary.manifests[0]["rejected_documents"]
        lines.append(f"left out for errors: {counted(count, 'document')}, see rejects.jsonl")
    if summary.manifests:
        lines += Losses.from_manifest(summary.manifests[0]).lines()
    if summary.input_bytes:
        speed = summary.input_bytes / 1e6 / max(summary.seconds, 1e-9)
        size = summary.input_bytes / 1e6
        lines.append(
            f"{size:,.1f} MB read in {summary.seconds:,.1f} s ({speed:,.1f} MB/s as stored)"
        )
    return "\n".join(lines)
