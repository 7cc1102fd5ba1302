"""Small shard sets, written by streaming's own writer and given a manifest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from elemdist.shards import ShardSet
from elemdist.streaming_compat import import_streaming

N, V, LABELS = 6, 4, ["a", "b", "c"]


def rows_of(samples: int, seed: int = 0) -> np.ndarray:
    """(samples, N, V) uint8; the first bytes of each are its number."""
    rows = np.random.default_rng(seed).integers(0, 250, (samples, N, V), dtype=np.uint8)
    rows[:, 0] = np.arange(samples, dtype="<u4").view(np.uint8).reshape(-1, 4)
    return rows


def make_set(
    folder: Path,
    samples: int = 50,
    *,
    seed: int = 0,
    labels: bool = False,
    size_limit: int = 640,
    **writer: Any,
) -> np.ndarray:
    """Writes a set; its rows. A shard holds some dozen samples. `writer`: for MDSWriter."""
    streaming = import_streaming()
    columns = {"rows": f"ndarray:uint8:{N},{V}"}
    if labels:
        columns["labels"] = "ndarray:uint8:1"
    rows = rows_of(samples, seed)
    writer = {"hashes": ["xxh3_128"], "size_limit": size_limit, **writer}
    with streaming.MDSWriter(out=str(folder), columns=columns, **writer) as out:
        for number, sample in enumerate(rows):
            row = {"rows": sample}
            out.write(row | {"labels": np.array([number % 8], np.uint8)} if labels else row)
    counts = {"samples": samples, "text_bytes": samples, "dropped_bytes": 0}
    counts["documents"] = samples
    manifest = {
        "format": "elemdist-shards",
        "version": 1,
        "n": N,
        "v": V,
        "labels": LABELS if labels else None,
        "label_counts": dict.fromkeys(LABELS, 1) if labels else None,
        "counts": counts,
        "seed": seed,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return rows


def edit_json(path: Path, change: Any) -> None:
    """Rewrites a JSON file after change(value)."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def flip(path: Path, place: int = -1) -> None:
    """Changes one bit of a file in place; a file that was short for a moment would be made anew
    by a thread that fetches ahead."""
    with open(path, "r+b") as file:
        file.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def all_ids(shards: ShardSet) -> np.ndarray:
    """Every sample number once, in random order."""
    return np.random.default_rng(1).permutation(shards.samples)
