"""Our shards against streaming's own writer and reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.mds import MdsWriter, columns_of, write_index
from data_prep.store import LocalStore
from elemdist.errors import UserError
from elemdist.streaming_compat import import_streaming

N, V = 5, 3


@pytest.fixture(scope="module")
def streaming() -> Any:
    return import_streaming()


def samples_of(count: int, labels: int) -> np.ndarray:
    width = (labels + 7) // 8 + N * V
    return np.random.default_rng(0).integers(0, 256, (count, width), np.uint8)


def write_ours(folder: Path, block: np.ndarray, labels: int, size_limit: int) -> MdsWriter:
    folder.mkdir()
    writer = MdsWriter(
        LocalStore(str(folder)), "shard", n=N, v=V, labels=labels, size_limit=size_limit
    )
    for start in range(0, len(block), writer.samples_per_shard):
        writer.write(block[start : start + writer.samples_per_shard])
    write_index(LocalStore(str(folder)), writer.shards)
    return writer


@pytest.mark.parametrize("labels", [0, 1, 8, 90])
def test_same_bytes_as_streaming(labels: int, tmp_path: Path, streaming: Any) -> None:
    block = samples_of(70, labels)
    size_limit = 800
    writer = write_ours(tmp_path / "ours", block, labels, size_limit)
    head = (labels + 7) // 8
    columns = {name: encoding for name, encoding, _ in columns_of(N, V, labels)}
    with streaming.MDSWriter(
        columns=columns,
        out=str(tmp_path / "theirs"),
        hashes=["xxh3_128"],
        size_limit=size_limit,
    ) as theirs:
        for sample in block:
            fields = {"rows": sample[head:].reshape(N, V)}
            theirs.write(fields | ({"labels": sample[:head]} if labels else {}))
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "ours").iterdir())
    assert len(names) > 3
    for name in names:
        ours, stock = ((tmp_path / who / name).read_bytes() for who in ("ours", "theirs"))
        assert ours == stock, name
    sizes = [shard["raw_data"]["bytes"] for shard in writer.shards[:-1]]
    assert len(set(sizes)) == 1


@pytest.mark.usefixtures("streaming_alone")
def test_streaming_dataset_reads_the_same_rows(tmp_path: Path, streaming: Any) -> None:
    labels = 11
    block = samples_of(50, labels)
    write_ours(tmp_path / "set", block, labels, 800)
    dataset = streaming.StreamingDataset(local=str(tmp_path / "set"), shuffle=False, batch_size=1)
    assert len(dataset) == len(block)
    for number, sample in enumerate(block):
        read = dataset[number]
        assert read["rows"].shape == (N, V)
        assert np.array_equal(read["rows"], sample[2:].reshape(N, V))
        assert np.array_equal(read["labels"], sample[:2])


def test_sample_too_large_for_a_shard() -> None:
    with pytest.raises(UserError, match="cannot hold one sample"):
        MdsWriter(LocalStore("anywhere"), "shard", n=1 << 20, v=16, labels=0, size_limit=1 << 20)


def test_index_lists_what_was_written(tmp_path: Path) -> None:
    writer = write_ours(tmp_path / "set", samples_of(9, 0), 0, 1 << 20)
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    assert index == {"version": 2, "shards": writer.shards}
    assert not list((tmp_path / "set").glob("*.tmp"))
