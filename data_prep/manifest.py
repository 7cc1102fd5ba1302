"""The manifest of a shard set: where it comes from, how it was made, what it holds."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data_prep.classes import CLASSES_VERSION
from data_prep.mds import write_file
from data_prep.settings import ShardSettings
from data_prep.work import Converted
from elemdist import __version__

FORMAT, FORMAT_VERSION = "elemdist-shards", 1
LIBRARIES = ("numpy", "numba", "orjson", "zstandard", "xxhash")
# What the shards do not depend on stays out: the same input gives the same manifest.
LEFT_OUT = ("out", "processes", "quiet")


def manifest_of(
    settings: ShardSettings, names: tuple[str, ...] | None, results: list[Converted]
) -> dict[str, Any]:
    """The manifest of one set.

    Args:
        names: label names in the order of their bits, or None for a set without labels.
        results: what each item gave to this set, in order.
    """
    counts: Counter[str] = Counter()
    label_counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
        label_counts.update(result.label_counts)
    made = asdict(settings)
    for key in LEFT_OUT:
        del made[key]
    slots = counts["samples"] * settings.n * settings.v
    used = counts["text_bytes"] - counts["dropped_bytes"]
    used += counts["documents"] + counts["separator_rows"]
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
        "padding_share": round(1 - used / slots, 6) if slots else 0.0,
        "sources": [source for result in results for source in result.sources],
        "libraries": libraries(),
        "classes_version": CLASSES_VERSION,
        "settings": made,
    }


def libraries() -> dict[str, str]:
    """The version of everything that the shards could depend on."""
    found = {"elemdist": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def write_manifest(folder: str, manifest: dict[str, Any]) -> None:
    """Writes manifest.json.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    write_file(os.path.join(folder, "manifest.json"), text.encode())
