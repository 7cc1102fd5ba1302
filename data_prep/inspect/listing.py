"""What a shard set holds as lines of text: its manifest, and the rows of a sample, slot by slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.losses import Losses
from data_prep.words import counted
from elemdist.remote import public
from elemdist.rows import DOC, FIRST_SPECIAL, MASK, PAD, SEP, SYMBOL_NAMES

if TYPE_CHECKING:
    from elemdist.shards import ShardSet

SLOTS_PER_LINE = 16  # 16 slots of 3 columns, the row number and the text fit in 80 columns
LABELS_SHOWN = 10
SOURCES_SHOWN = 5


def manifest_lines(shards: ShardSet) -> list[str]:
    """The manifest in lines for a reader."""
    manifest = shards.manifest
    counts: dict[str, int] = manifest["counts"]
    facts: list[tuple[str, str]] = [
        ("set", printable(public(shards.path))),
        ("sample", f"{shards.n} materials x {shards.v} elements"),
        ("cut by", f"segmenter {manifest['segmenter']}, packing {manifest['packing']}"),
        ("samples", f"{shards.samples:,}"),
        *((name.replace("_", " "), f"{counts[name]:,}") for name in counts if name != "samples"),
        ("padding", f"{100 * manifest['padding_share']:.1f} % of the slots"),
    ]
    facts += [("", line) for line in map(printable, Losses.from_manifest(manifest).lines())]
    sources = manifest["sources"]
    facts += [("source", printable(_source(source))) for source in sources[:SOURCES_SHOWN]]
    if len(sources) > SOURCES_SHOWN:
        facts.append(("", f"and {len(sources) - SOURCES_SHOWN:,} more"))
    if shards.labels is not None:
        facts.append(("labels", f"{len(shards.labels):,}, the most frequent first"))
        ranked = sorted(manifest["label_counts"].items(), key=lambda pair: -pair[1])
        facts += [("", f"{count:>9,}  {printable(name)}") for name, count in ranked[:LABELS_SHOWN]]
    facts.append(("fingerprint", shards.fingerprint))
    width = max(len(name) for name, _ in facts)
    return [f"{name:<{width}}  {value}" for name, value in facts]


def _source(source: dict[str, Any]) -> str:
    whole = source["start"] == 0 and source["end"] == source["size"]
    return source["path"] if whole else f"{source['path']} [{source['start']}:{source['end']}]"


def sample_lines(rows_NV: np.ndarray, most: int) -> list[str]:
    """The first `most` rows of a sample (n, v), a line each: number, slots, text.

    A slot shows as its character if that is printable ASCII, as ␣ for a space, as · for PAD, as
    the symbol's name, else in hexadecimal.
    """
    filled = np.flatnonzero(rows_NV[:, 0] != PAD)
    used = int(filled[-1]) + 1 if len(filled) else 0
    lines = []
    for number, row_V in enumerate(rows_NV[: min(used, most)]):
        cells = [_cell(int(element)) for element in row_V]
        text = row_V[row_V < FIRST_SPECIAL].tobytes().decode(errors="backslashreplace")
        shown = repr(text) if text else ""
        for start in range(0, len(cells), SLOTS_PER_LINE):
            head = f"{number:>5}" if start == 0 else " " * 5
            slots = "".join(cells[start : start + SLOTS_PER_LINE])
            slots = f"{slots:<{3 * min(len(cells), SLOTS_PER_LINE)}}"
            lines.append(f"{head} {slots}  {shown if start == 0 else ''}".rstrip())
    if used > most:
        lines.append(f"      ... {used - most:,} more rows; --rows shows more")
    if used < len(rows_NV):
        lines.append(f"      {counted(len(rows_NV) - used, 'row')} of padding")
    return lines


def _cell(element: int) -> str:
    """One slot in three columns."""
    if element == PAD:
        return "  ·"
    if element in (DOC, SEP, MASK):
        return f"{SYMBOL_NAMES[element][:3]:>3}"
    if element == ord(" "):
        return "  ␣"
    if ord("!") <= element <= ord("~"):
        return f"  {chr(element)}"
    return f" {element:02x}"


def printable(text: str) -> str:
    """Text for a terminal: quoted where it has a control character, which could mean anything."""
    return text if text.isprintable() and text.strip() == text else repr(text)
