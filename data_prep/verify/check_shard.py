"""One shard, checked wholly: file, hashes, header and every sample. One shard is held in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from data_prep.mds import digest_of
from data_prep.settings import ShardSettings
from data_prep.store import open_store
from data_prep.verify.check_set import Entry, File, Geometry
from elemdist.compression import decompress
from elemdist.errors import UserError
from elemdist.file_info import leads_out


@dataclass(frozen=True)
class Task:
    """A shard to check.

    Attributes:
        place: the set's folder or URL. geometry: None if the manifest does not tell it, and then
            only file and hashes are checked. quick: leave the samples out.
    """

    place: str
    entry: Entry
    geometry: Geometry | None
    quick: bool


@dataclass
class Content:
    """What the samples of a shard hold, and how it joins the shards before and behind.

    Attributes:
        counts: under the names of the manifest. hot: (L,) documents with each label.
        begins: its first sample starts a document. room: its last sample is not full.
        leading: bytes at its start that may be the end of a character. tail: bytes at its end that
            are the beginning of one. only_leading: it has no text but `leading`.
        first_bitmap, last_bitmap: labels of its first sample, and of the last document.
        start_known, end_known: its first and last sample are sound.
    """

    counts: Counter[str]
    hot: list[int]
    begins: bool
    room: bool
    leading: bytes
    tail: bytes
    only_leading: bool
    first_bitmap: bytes
    last_bitmap: bytes
    start_known: bool
    end_known: bool


@dataclass
class Found:
    """What was found in a shard.

    Attributes:
        problems: number of a sample in the shard, or None, and what is wrong.
        damaged: the file is missing, or not the one that the index describes.
        content: None if the samples could not be read, or were not to be, or there are none.
    """

    problems: list[tuple[int | None, str]] = field(default_factory=list)
    damaged: bool = False
    content: Content | None = None

    def add(self, text: str, damaged: bool = False) -> None:
        """Notes a problem of the shard as a whole."""
        self.problems.append((None, text))
        self.damaged |= damaged


def check_shard(task: Task, settings: ShardSettings, progress: Callable[[int], None]) -> Found:
    """Checks one shard; every fault is part of the result."""
    found = Found()
    data = _read(task, found)
    if data is not None and task.geometry is not None:
        block = _block(data, task.entry, task.geometry, found)
        if block is not None and len(block) and not task.quick:
            _check_samples(block, task.geometry, found)
    progress(task.entry.stored.size)
    return found


def _read(task: Task, found: Found) -> bytes | None:
    """The shard as it is before compression; None, and a problem, if it cannot be had."""
    store, entry = open_store(task.place), task.entry
    try:
        size = store.size(entry.stored.name)
        if size is None and entry.packed and store.size(entry.raw.name) is not None:
            entry = replace(entry, packed=None)  # a reader that unpacks kept that file alone
            size = store.size(entry.stored.name)
        if store.local and leads_out(store.path, entry.stored.name):
            found.add("it is a link out of the folder; that is not opened", damaged=True)
            return None
        if size is None:
            found.add("it is missing", damaged=True)
            return None
        if size != entry.stored.size:
            found.add(f"it has {size:,} bytes instead of {entry.stored.size:,}", damaged=True)
            return None
        data = store.read(entry.stored.name)
    except (OSError, UserError) as error:
        found.add(f"it cannot be read: {error}", damaged=True)
        return None
    _compare(data, entry.stored, "", found)
    if entry.packed is None:
        return data
    try:
        data = decompress(entry.compression, data, entry.raw.size)
    except (ValueError, UserError) as error:
        found.add(f"it cannot be unpacked: {error}", damaged=isinstance(error, ValueError))
        return None
    if len(data) != entry.raw.size:
        found.add(f"it unpacks to {len(data):,} bytes instead of {entry.raw.size:,}", damaged=True)
        return None
    _compare(data, entry.raw, "unpacked, ", found)
    return data


def _compare(data: bytes, file: File, what: str, found: Found) -> None:
    """Compares all hashes that the index has of a file."""
    for name, hash in file.hashes.items():
        if digest_of(name, data) != hash:
            found.add(f"{what}its {name} hash differs", damaged=True)


def _block(data: bytes, entry: Entry, geometry: Geometry, found: Found) -> np.ndarray | None:
    """The samples, (samples, sample bytes) uint8, behind a header that is checked; None if there
    is no room for them."""
    if entry.columns != geometry.columns:
        found.add("index.json gives it other columns than the manifest's n, v and labels")
        return None
    begin = len(data) - entry.samples * geometry.sample_bytes
    config = 4 * (entry.samples + 2)
    if begin < config:
        found.add(f"header: it is too small for the {entry.samples:,} samples of the index")
        return None
    numbers = np.frombuffer(data, "<u4", entry.samples + 2)
    if numbers[0] != entry.samples:
        found.add(f"header: it says {numbers[0]:,} samples, the index {entry.samples:,}")
    offsets = begin + geometry.sample_bytes * np.arange(entry.samples + 1)
    for number in np.flatnonzero(numbers[1:] != offsets)[:1]:
        there, due = numbers[1 + number], offsets[number]
        found.add(f"header: sample {number} starts at byte {there:,} instead of {due:,}")
    try:
        told = json.loads(data[config:begin])
        lists = [told[f"column_{key}"] for key in ("names", "encodings", "sizes")]
        good = list(zip(*lists, strict=True)) == entry.columns and told["format"] == "mds"
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        found.add("header: its columns are not those of the index")
    return np.frombuffer(data, np.uint8, offset=begin).reshape(entry.samples, -1)


def _check_samples(block: np.ndarray, geometry: Geometry, found: Found) -> None:
    """Checks every sample, and notes what the shard holds."""
    # Not at the top: it brings the compiler, which a quick check spares.
    from data_prep.verify import check_rows as rows

    head = block.shape[1] - geometry.n * geometry.v
    flags = np.zeros(len(block), np.uint16)
    counts, hot = np.zeros(rows.COUNTS_SIZE, np.int64), np.zeros(8 * head, np.int64)
    leading, last = np.zeros(rows.LONGEST, np.uint8), np.zeros(rows.LONGEST, np.uint8)
    owner = rows.check(
        *(block, geometry.n, geometry.v, geometry.packed, geometry.truncate, geometry.torn),
        geometry.labels,
        *(flags, counts, hot, leading, last),
    )
    for sample in np.flatnonzero(flags).tolist():
        texts = [text for flag, text in rows.MEANING.items() if flags[sample] & flag]
        found.problems.append((sample, "; ".join(texts)))
    used = int(counts[rows.LEADING])
    padding = int(counts[rows.PADDING_ROWS])
    sound = (flags & rows.OF_ROWS) == 0
    found.content = Content(
        counts=Counter(
            samples=len(block),
            documents=int(counts[rows.DOCUMENTS]),
            rows=len(block) * geometry.n - padding,
            padding_rows=padding,
            separator_rows=int(counts[rows.SEPARATORS]),
            text_bytes=int(counts[rows.TEXT_BYTES]),
        ),
        hot=hot[: geometry.labels].tolist(),
        begins=bool(block[0, head] == rows.DOC),
        room=bool(block[-1, -geometry.v] == rows.PAD),
        leading=leading[:used].tobytes(),
        tail=unfinished(last.tobytes()),
        only_leading=counts[rows.TEXT_BYTES] == used and not counts[rows.DOCUMENTS],
        first_bitmap=block[0, :head].tobytes(),
        last_bitmap=block[owner, :head].tobytes(),
        start_known=bool(sound[0]),
        end_known=bool(sound[-1]),
    )


def unfinished(text: bytes) -> bytes:
    """The bytes at the end of a text that begin a character without ending it."""
    for length in range(1, min(3, len(text)) + 1):
        byte = text[-length]
        if byte & 0xC0 == 0x80:
            continue
        whole = 1 if byte < 0xC2 or byte > 0xF4 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        return text[-length:] if whole > length else b""
    return b""
