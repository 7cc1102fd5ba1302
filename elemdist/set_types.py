"""The types of a shard set's index.json and manifest.json, for the check of what is read back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from elemdist.json_types import Bounds

Size = Annotated[int, Bounds(0, (1 << 32) - 1)]  # a shard says in 32 bits where its samples start
Number = Annotated[int, Bounds(0, 1 << 60)]
Rows = Annotated[int, Bounds(1, 1 << 24)]
Elements = Annotated[int, Bounds(1, 256)]
SegmenterName = Literal["word", "char", "byte", "uax29", "sentence", "subword"]


@dataclass
class IndexFile:
    """A file of a shard"""

    open_names: ClassVar[bool] = True
    basename: str
    bytes: Size
    hashes: dict[str, str]


@dataclass
class IndexEntry:
    """A shard; streaming writes other names, too"""

    open_names: ClassVar[bool] = True
    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[int | None]
    compression: str | None
    format: Literal["mds"]
    raw_data: IndexFile
    samples: Number
    zip_data: IndexFile | None = None


@dataclass
class Index:
    """index.json"""

    open_names: ClassVar[bool] = True
    shards: list[IndexEntry]
    version: Literal[2]


@dataclass
class Manifest:
    """manifest.json: what is read back of it"""

    open_names: ClassVar[bool] = True
    format: str
    version: int
    n: Rows
    v: Elements
    labels: list[str] | None
    label_counts: dict[str, Number] | None
    counts: dict[str, Number]
    segmenter: SegmenterName = "word"
    packing: Literal["document", "packed"] = "document"
    overlong: Literal["split", "truncate"] = "split"
    sources: list[dict[str, Any]] = field(default_factory=list)
    libraries: dict[str, str] = field(default_factory=dict)
    padding_share: float = 0.0
    rejected_documents: Number = 0


NEEDED_COUNTS = ("documents", "dropped_bytes", "samples", "text_bytes")


def contradiction(manifest: dict[str, Any]) -> str | None:
    """Return what of a manifest, whose types are right, cannot be true, or None."""
    counts, labels, label_counts = (manifest[x] for x in ("counts", "labels", "label_counts"))
    for name in NEEDED_COUNTS:
        if name not in counts:
            return f"counts.{name} is missing"
    if counts["dropped_bytes"] > counts["text_bytes"]:
        return "counts.dropped_bytes is above counts.text_bytes"
    room = counts["samples"] * manifest["n"] * manifest["v"]
    if (kept := counts["text_bytes"] - counts["dropped_bytes"]) > room:
        return f"counts tell of {kept:,} bytes in samples that hold {room:,}"
    if (twice := repeated(labels or [])) is not None:
        return f"labels has {twice!r} twice"
    if label_counts is not None and set(label_counts) != set(labels or []):
        return "label_counts has other names than labels"
    return None


def repeated(names: list[str]) -> str | None:
    """Return the first name that is there more than once, or None."""
    return next((name for name, count in Counter(names).items() if count > 1), None)
