"""Shard sets for the tests of conversions, and what is looked at in them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from reference import SAMPLES

from data_prep import shard
from data_prep.convert import main as convert
from data_prep.convert.main import ConvertSettings
from data_prep.settings import InputSettings, ShardSettings
from elemdist.rows import documents
from elemdist.shards import ShardSet

LABELS = ["news", "sport", "music", "rain", "art"]
DOCS = 8000
PIECES = [*sorted(SAMPLES.values()), "", "x" * 700, "ab " * 90]


def texts_of_seed(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(PIECES, k=rng.randrange(3))) + str(k) for k in range(count)]


def labels_of_seed(count: int, seed: int = 0) -> list[list[str]]:
    rng = random.Random(seed)
    return [sorted(rng.sample(LABELS, rng.randrange(3))) for _ in range(count)]


def write_jsonl(path: Path, texts: list[str], labels: list[list[str]] | None = None) -> Path:
    lines = []
    for k, text in enumerate(texts):
        record: dict[str, Any] = {"text": text}
        if labels is not None:
            record["labels"] = labels[k]
        lines.append(json.dumps(record, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def shards_of(
    path: Path, texts: list[str], labels: list[list[str]] | None = None, **more: Any
) -> Path:
    """A set made by the real run, out of a JSON Lines file beside it."""
    source = write_jsonl(path.with_suffix(".jsonl"), texts, labels)
    values: dict[str, Any] = {"n": 16, "v": 8, "processes": 1, "quiet": True} | more
    values.setdefault("input", InputSettings(labels_field=None if labels is None else "labels"))
    shard.run(ShardSettings([str(source)], str(path), **values))
    return path


def run(sets: list[Path] | Path | str, out: Path | str | None, **more: Any) -> Path:
    inputs = [str(path) for path in ([sets] if isinstance(sets, (Path, str)) else sets)]
    values: dict[str, Any] = {"processes": 1, "quiet": True} | more
    convert.run(ConvertSettings(inputs, None if out is None else str(out), **values))
    return Path(str(out))


def content(path: Path | str) -> tuple[list[bytes], list[list[str]] | None]:
    """Documents of a set and their labels, after all its hashes were compared."""
    shards = ShardSet(str(path))
    shards.verify()
    rows_BNV, labels_BL = shards.gather(np.arange(shards.samples))
    if labels_BL is None:
        return list(documents(rows_BNV)), None
    names = shards.labels or []
    begins = np.nonzero(rows_BNV[:, :, 0] == 0xFD)[0]
    found = [[names[bit] for bit in np.flatnonzero(labels_BL[at])] for at in begins]
    return list(documents(rows_BNV)), found


def samples(path: Path) -> np.ndarray:
    shards = ShardSet(str(path))
    return shards.blocks(np.arange(shards.samples))


def manifest(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return found


def same_shards(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.glob("shard.*"))
    assert names, one
    if names != sorted(path.name for path in other.glob("shard.*")):
        return False
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def check_counts(path: Path) -> None:
    """The manifest of a set that lost nothing says what its rows hold."""
    shards = ShardSet(str(path))
    rows_BNV, labels_BL = shards.gather(np.arange(shards.samples))
    first = rows_BNV[:, :, 0]
    counts = manifest(path)["counts"]
    text = int((rows_BNV < 0xFC).sum())
    assert counts["samples"] == shards.samples
    assert counts["documents"] == (first == 0xFD).sum()
    assert counts["padding_rows"] == (first == 0xFF).sum()
    assert counts["rows"] == (first != 0xFF).sum()
    assert counts["separator_rows"] == (first == 0xFC).sum()
    assert counts["text_bytes"] - counts["dropped_bytes"] == text
    begins = np.append(np.flatnonzero((first == 0xFD).any(axis=1)), shards.samples)
    if manifest(path)["packing"] == "document":
        assert counts["split_documents"] == (np.diff(begins) > 1).sum()
    used = text + counts["documents"] + counts["separator_rows"]
    assert manifest(path)["padding_share"] == round(1 - used / rows_BNV.size, 6)
    if labels_BL is not None:
        own = labels_BL[first[:, 0] == 0xFD].sum(0).tolist()
        assert manifest(path)["label_counts"] == dict(zip(shards.labels or [], own, strict=True))


def as_sorted(labels: list[list[str]], path: Path) -> list[list[str]]:
    names = manifest(path)["labels"]
    return [sorted(some, key=names.index) for some in labels]


def samples_of_documents(path: Path) -> list[int]:
    """The first sample of each document of a set without packing."""
    shards = ShardSet(str(path))
    rows_BNV, _ = shards.gather(np.arange(shards.samples))
    return np.flatnonzero(rows_BNV[:, 0, 0] == 0xFD).tolist()
