"""The manifest of a shard set: where it comes from, how it was made, what it holds."""

from __future__ import annotations

import platform
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data_prep.classes import CLASSES_VERSION
from data_prep.journal import STDIN_COPY
from data_prep.plan import FREE, Done, Job
from data_prep.segment import segmenter_versions
from data_prep.settings import ShardSettings
from data_prep.store import Store
from elemdist import __version__
from elemdist.json_text import json_text
from elemdist.remote import public

FORMAT, FORMAT_VERSION = "elemdist-shards", 1
LIBRARIES = ("numpy", "numba", "orjson", "zstandard", "xxhash", "pyarrow")


def manifest_of(
    settings: ShardSettings,
    jobs: list[Job],
    done: list[Done],
    folder: str,
    rejects: int,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of one set.

    Args:
        jobs, done: the work items and what each gave, in order. folder: the set's.
        rejects: documents that the whole run left out for errors. more: further entries.
    """
    names = jobs[0].names
    counts: Counter[str] = Counter()
    label_counts: Counter[str] = Counter()
    sources = []
    for job, one in zip(jobs, done, strict=True):
        part = one.sets[folder]
        counts.update(part.counts)
        label_counts.update(part.label_counts)
        if part.counts["documents"] or len(one.sets) == 1:
            sources += sources_of(job, one)
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "n": settings.n,
        "v": settings.v,
        "segmenter": settings.segmenter,
        "packing": settings.packing,
        "overlong": settings.overlong,
        "labels": None if names is None else list(names),
        "label_counts": None if names is None else {name: label_counts[name] for name in names},
        "counts": {name: counts[name] for name in sorted(counts)},
        "rejected_documents": rejects,
        "padding_share": padding_share(counts, settings.n, settings.v),
        "sources": sources,
        "libraries": libraries() | segmenter_versions(settings.segmenter, settings.tokenizer),
        "classes_version": CLASSES_VERSION,
        "settings": {key: value for key, value in asdict(settings).items() if key not in FREE},
        **(more or {}),
    }


def sources_of(job: Job, done: Done) -> list[dict[str, Any]]:
    """What an item read, and its digests."""
    return [
        {
            "path": "-" if part.source.path.endswith(STDIN_COPY) else public(part.source.path),
            "start": part.start,
            "end": part.end,
            "size": part.source.size,
            "xxh3_128": digest,
        }
        for part, digest in zip(job.item.parts, done.digests, strict=True)
    ]


def padding_share(counts: Mapping[str, int], n: int, v: int) -> float:
    """The share of the slots of all samples that hold no byte of text and no symbol."""
    slots = counts["samples"] * n * v
    used = counts["text_bytes"] - counts["dropped_bytes"]
    used += counts["documents"] + counts["separator_rows"]
    return round(1 - used / slots, 6) if slots else 0.0


def libraries() -> dict[str, str]:
    """The version of everything that the shards could depend on."""
    found = {
        "elemdist": __version__,
        "python": platform.python_version(),
        "unicode": unicodedata.unidata_version,
    }
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def write_manifest(store: Store, manifest: dict[str, Any]) -> None:
    """Writes manifest.json.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    text = json_text(manifest, indent=1) + "\n"
    store.write("manifest.json", text.encode(), flush=True)
