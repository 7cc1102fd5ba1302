"""The figures of a shard set and of a corpus, and the lines that show them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from data_prep.documents import batch_of
from data_prep.inspect.advice import (
    NOUNS,
    Tally,
    advice_for,
    advice_lines,
    histogram_lines,
    percent,
    share,
)
from data_prep.inspect.listing import manifest_lines, printable, sample_lines
from data_prep.inspect.main import InspectSettings
from data_prep.inspect.sampling import CorpusSample, SetSample
from data_prep.segment import Segmenter
from data_prep.settings import MIB
from data_prep.words import counted
from elemdist.errors import UserError
from elemdist.remote import public
from elemdist.shards import ShardSet

TOGETHER = 256  # documents that are counted in one call


def set_figures(settings: InspectSettings) -> tuple[dict[str, Any], list[str]]:
    """The figures of a shard set, and the lines to show. Raises UserError."""
    shards = ShardSet(settings.path)
    if not 0 <= settings.sample < shards.samples:
        raise UserError(
            f"no sample {settings.sample}: {public(settings.path)} has {shards.samples:,}, "
            f"counted from 0"
        )
    manifest, noun = shards.manifest, NOUNS.get(shards.manifest["segmenter"], "materials")
    figures: dict[str, Any] = {
        "kind": "shard set",
        "path": public(settings.path),
        "fingerprint": shards.fingerprint,
        "samples": shards.samples,
        **{name: manifest[name] for name in ("n", "v", "segmenter", "packing", "padding_share")},
        "labels": None if shards.labels is None else len(shards.labels),
        "counts": manifest["counts"],
    }
    lines = [*manifest_lines(shards), ""]
    try:
        cutter = set_segmenter(manifest, settings.tokenizer)
    except UserError as error:  # a tokenizer that is not here; the rest can be shown all the same
        figures["not_counted"] = str(error)
        lines += [f"materials are not counted: {error}", ""]
    else:
        tally, sampled = tally_set(shards, cutter, settings)
        advice = advice_for(tally)
        figures |= {"sampled": sampled, "advice": advice}
        lines += [*sampled_lines(sampled, noun), *histogram_lines(advice, noun)]
        lines += [*advice_lines(advice, noun), ""] if settings.advise else []
    rows_BNV, labels_BL = shards.gather(np.array([settings.sample]))
    lines.append(f"sample {settings.sample}")
    if labels_BL is not None and shards.labels is not None:
        names = [shards.labels[bit] for bit in np.flatnonzero(labels_BL[0])]
        lines.append(f"labels: {', '.join(map(printable, names)) or 'none'}")
    return figures, lines + sample_lines(rows_BNV[0], settings.rows)


def set_segmenter(manifest: dict[str, Any], tokenizer: str | None) -> Segmenter:
    """The segmenter that made a shard set, with its own tokenizer unless another is named.

    Raises:
        UserError: the tokenizer cannot be read.
    """
    made = manifest.get("settings")
    if tokenizer is None and isinstance(made, dict):
        tokenizer = made.get("tokenizer")
    return Segmenter(manifest["segmenter"], tokenizer)


def tally_set(
    shards: ShardSet, cutter: Segmenter, settings: InspectSettings
) -> tuple[Tally, dict[str, Any]]:
    """Counts documents of a shard set, cut again by its segmenter.

    Rows do not tell whether they go on with the material before, so the text is cut once more.

    Returns:
        The tally, and what was read: samples, documents, and shares from 0 to 1 of the documents
        over several samples, of those that lost their end, and of the materials over several rows.

    Raises:
        UserError: a shard is damaged.
    """
    tally = Tally(cutter, shards.v)
    fitting = settings.sample_mb * MIB // (shards.n * shards.v)
    sample = SetSample(shards, max(1, min(settings.samples, fitting)))
    documents, over_several = 0, 0
    found = sample.documents()
    while some := list(itertools.islice(found, TOGETHER)):
        tally.add(batch_of([document.text for document in some]))
        documents += len(some)
        over_several += sum(document.samples > 1 for document in some)
        tally.unfinished += sum(not document.finished for document in some)
    counts, materials = shards.manifest["counts"], int(tally.lengths.sum())
    several = share(over_several, documents)
    if shards.manifest["packing"] == "document":  # the manifest has counted them all
        several = share(counts["split_documents"], counts["documents"])
    longer = int(tally.lengths[shards.v + 1 :].sum())
    return tally, {
        "samples": sample.read,
        "documents": documents,
        "documents_over_several_samples_share": several,
        "truncated_documents_share": share(counts["truncated_documents"], counts["documents"]),
        "materials_over_several_rows_share": share(longer, materials, tally.segmenter.anywhere),
    }


def sampled_lines(sampled: dict[str, Any], noun: str) -> list[str]:
    """What goes on and what is lost, for a reader."""
    told = [
        ("documents_over_several_samples_share", "of the documents go on in a further sample"),
        ("truncated_documents_share", "of the documents lost their end"),
        ("materials_over_several_rows_share", f"of the {noun} go on in a further row"),
    ]
    documents, samples = (counted(sampled[f"{noun}s"], noun) for noun in ("document", "sample"))
    head = f"counted: {documents} of {samples}"
    known = [(sampled[key], what) for key, what in told if sampled[key] is not None]
    return [head, *(f"  {percent(value)} {what}" for value, what in known), ""]


def corpus_figures(settings: InspectSettings) -> tuple[dict[str, Any], list[str]]:
    """The figures of text that is to be sharded, and the lines to show. Raises UserError."""
    tally = Tally(Segmenter(settings.segmenter, settings.tokenizer), settings.v)
    sample = CorpusSample(settings.path, settings.input, settings.sample_mb * MIB, settings.strict)
    for batch in sample.batches():
        tally.add(batch)
    tally.unfinished = sample.unfinished
    advice = advice_for(tally)
    if not advice["documents"]:
        raise UserError(f"no document in {public(settings.path)}: blank, or none that can be read")
    figures = {
        "kind": "corpus",
        "path": public(settings.path),
        "segmenter": settings.segmenter,
        "whole": sample.whole,
        "skipped_records": sample.skipped,
        **sample.losses.for_manifest(),
        "advice": advice,
    }
    noun = NOUNS[settings.segmenter]
    amount = "all of it" if sample.whole else "places all over it"
    lines = [
        f"{printable(public(settings.path))}: {counted(advice['documents'], 'document')}, "
        f"{counted(advice['bytes'], 'byte')} of text, from {amount}; segmenter {settings.segmenter}"
    ]
    if sample.unfinished:
        lines.append(f"not read to the end: {counted(sample.unfinished, 'document')}")
    if sample.skipped:
        lines.append(f"left out since they cannot be read: {counted(sample.skipped, 'record')}")
    lines += [printable(line) for line in sample.losses.lines()]
    lines += ["", *histogram_lines(advice, noun)]
    return figures, lines + advice_lines(advice, noun)
