"""The shards of a set together: documents that go on from one to the next, and the counts."""

from __future__ import annotations

import codecs
from collections import Counter
from typing import Any

from data_prep.manifest import padding_share
from data_prep.verify.check_set import Entry, Geometry
from data_prep.verify.check_shard import Found

COMPARED = ("samples", "documents", "rows", "padding_rows", "separator_rows")


def check_joints(
    entries: list[Entry], found: list[Found], truncate: bool
) -> list[tuple[int, int, str]]:
    """Checks that documents go on rightly from one shard to the next.

    Args:
        truncate: the text of a document may end within a character.

    Returns:
        Number of the shard and of the sample in it, and what is wrong there.
    """
    # It brings the compiler, which a quick check spares.
    from data_prep.verify.check_rows import CONTINUES, MEANING, OTHER_LABELS, TEXT

    wrong: list[tuple[int, int, str]] = []
    pending = bitmap = b""  # the beginning of a character; labels of the document
    full, known = False, True  # the sample before is full; what is before is known
    last = (0, 0)
    for number, (entry, one) in enumerate(zip(entries, found, strict=True)):
        content = one.content
        if content is None:
            known = known and not entry.samples and not one.damaged
            continue
        ends: bytes | None = b""
        known &= content.start_known
        if content.begins:
            if known and pending and not truncate:
                wrong.append((*last, MEANING[TEXT]))
        elif known:
            if not full:
                wrong.append((number, 0, MEANING[CONTINUES]))
            elif bitmap != content.first_bitmap:
                wrong.append((number, 0, MEANING[OTHER_LABELS]))
            ends = joined(pending, content.leading, content.only_leading)
            if full and ends is None:
                wrong.append((number, 0, MEANING[TEXT]))
        goes_on = content.only_leading and known and ends is not None
        pending = ends or b"" if goes_on else content.tail
        known = content.end_known and (goes_on or not content.only_leading)
        bitmap, full, last = content.last_bitmap, not content.room, (number, entry.samples - 1)
    if known and pending and not truncate:
        wrong.append((*last, MEANING[TEXT]))
    return wrong


def joined(tail: bytes, leading: bytes, more: bool) -> bytes | None:
    """What is left of a character cut between two shards: b"" if it is whole; None if it is none.

    Args:
        tail, leading: its bytes in the shard before, and in this one. more: and in the next one.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(tail + leading)
    except UnicodeDecodeError:
        return None
    rest = decoder.getstate()[0]
    return rest if more or not rest else None


def compare_counts(
    manifest: dict[str, Any], geometry: Geometry, entries: list[Entry], found: list[Found]
) -> list[str]:
    """How the counts of a manifest differ from what the shards hold."""
    told = manifest.get("counts")
    names = (*COMPARED, "text_bytes", "dropped_bytes")
    if not isinstance(told, dict) or any(type(told.get(name)) is not int for name in names):
        return ["its counts are damaged"]
    there = Counter(samples=sum(entry.samples for entry in entries))
    compared = ["samples"]
    texts = []
    # Of damaged shards, or a part of them, other counts are no news.
    whole = zip(entries, found, strict=True)
    if all(not one.damaged and (one.content or not entry.samples) for entry, one in whole):
        contents = [one.content for one in found if one.content]
        there = sum((content.counts for content in contents), Counter())
        compared = list(COMPARED)
        text = told["text_bytes"] - told["dropped_bytes"]
        if text != there["text_bytes"]:
            texts.append(
                f"text_bytes - dropped_bytes is {text:,}, the shards hold {there['text_bytes']:,}"
            )
        hot = [sum(column) for column in zip(*(content.hot for content in contents), strict=True)]
        labels = manifest["labels"] or []
        own = dict(zip(labels, hot or [0] * len(labels), strict=True))
        kept = manifest.get("label_counts") or {}
        texts += [
            f"label_counts[{label!r}] is {kept.get(label)}, the shards hold {count:,}"
            for label, count in own.items()
            if kept.get(label) != count
        ]
        share = padding_share(there, geometry.n, geometry.v)
        if manifest.get("padding_share") != share:
            texts.append(f"padding_share is {manifest.get('padding_share')}, in the shards {share}")
    return [
        f"{name} is {told[name]:,}, the shards hold {there[name]:,}"
        for name in compared
        if told[name] != there[name]
    ] + texts
