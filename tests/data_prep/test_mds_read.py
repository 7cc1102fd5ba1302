"""Documents out of our own byte rows."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mds_reading import LABELS, TEXTS, part_of, read, settings_of
from reference import texts

from data_prep.mds import MdsWriter, write_index
from data_prep.pack import Packer
from data_prep.readers import mds as mds_read
from data_prep.readers import mds_rows
from data_prep.readers.mds_files import MdsFolder
from data_prep.store import LocalStore
from elemdist.errors import UserError
from elemdist.shards import ShardSet


def write_rows(
    folder: Path,
    documents: list[bytes],
    labels: list[list[str]] | None = None,
    compression: str | None = None,
    shard_bytes: int = 3000,
    **pack: Any,
) -> None:
    """A set of rows as small as it gets, of several shards."""
    settings: dict[str, Any] = {"n": 5, "v": 3, "segmenter": "word", "packing": "document"}
    settings |= {"overlong": "split"} | pack
    n, v = settings["n"], settings["v"]
    names = LABELS if labels is not None else []
    store = LocalStore(str(folder))
    writer = MdsWriter(
        store,
        "shard.00000",
        n=n,
        v=v,
        labels=len(names),
        size_limit=shard_bytes,
        compression=compression,
    )
    block = np.empty((writer.samples_per_shard, writer.sample_bytes), np.uint8)
    packer = Packer(block, writer.write, **settings)
    for k, document in enumerate(documents):
        hot = [[name in labels[k] for name in names]] if labels is not None else [[]]
        bitmap = np.packbits(np.array(hot, bool), axis=1)
        data = np.frombuffer(document, np.uint8)
        packer.add(data, np.zeros(1, np.int64), np.array([len(data)]), bitmap)
    manifest = settings | {"format": "elemdist-shards", "version": 1, "label_counts": None}
    manifest |= {"labels": names or None, "counts": packer.finish(), "padding_share": 0}
    store.write("manifest.json", json.dumps(manifest).encode())
    write_index(store, writer.shards)


def expected(documents: list[bytes], folder: Path, start: int, end: int) -> list[bytes]:
    """The documents that begin in these samples, by the places of DOC rows alone."""
    rows_BNV, _ = ShardSet(str(folder)).gather(np.arange(MdsFolder(str(folder)).samples))
    begins = np.nonzero(rows_BNV[:, :, 0] == 0xFD)[0]
    assert len(begins) == len(documents)
    return [text for text, at in zip(documents, begins, strict=True) if start <= at < end]


@pytest.mark.parametrize("packing", ["document", "packed"])
@pytest.mark.parametrize("segmenter", ["word", "byte"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents=st.lists(texts, min_size=1, max_size=12), data=st.data())
def test_every_part_has_the_documents_that_begin_in_it(
    packing: str, segmenter: str, documents: list[str], data: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    shutil.rmtree(folder, ignore_errors=True)
    raw = [text.encode() for text in documents]
    write_rows(folder, raw, packing=packing, segmenter=segmenter, shard_bytes=600)
    samples = MdsFolder(str(folder)).samples
    assert [text for text, _, _ in read(part_of(folder))[0]] == raw
    cuts = data.draw(st.lists(st.integers(0, samples), max_size=4))
    bounds = sorted({0, samples, *cuts})
    found: list[bytes] = []
    for start, end in itertools.pairwise(bounds):
        here = [text for text, _, _ in read(part_of(folder, start, end))[0]]
        assert here == expected(raw, folder, start, end)
        found += here
    assert found == raw


def test_every_boundary_of_a_packed_set_with_long_documents(tmp_path: Path) -> None:
    raw = [text.encode() for text in [*TEXTS[:4], "", "x" * 300, "é" * 200, "", "end"]]
    write_rows(tmp_path / "set", raw, packing="packed", shard_bytes=500)
    samples = MdsFolder(str(tmp_path / "set")).samples
    assert len(MdsFolder(str(tmp_path / "set")).shards) > 5
    for at in range(1, samples):
        found = [
            text
            for start, end in ((0, at), (at, samples))
            for text, _, _ in read(part_of(tmp_path / "set", start, end))[0]
        ]
        assert found == raw, at


def test_cut_covers_all_samples_once(tmp_path: Path) -> None:
    raw = [text.encode() * 3 for text in TEXTS]
    for compression in (None, "zstd"):
        folder = tmp_path / f"set-{compression}"
        write_rows(folder, raw, packing="packed", compression=compression)
        opened = MdsFolder(str(folder))
        whole = part_of(folder).source
        for limit in (1, 700, 5000, 1 << 30):
            parts = mds_read.cut(whole, limit)
            assert [parts[0].start, parts[-1].end] == [0, opened.samples]
            assert all(a.end == b.start for a, b in itertools.pairwise(parts))
            assert all(part.start < part.end and part.weight > 0 for part in parts)
            if compression:
                assert {part.end for part in parts} <= set(opened.ends.tolist())
            found = [text for part in parts for text, _, _ in read(part)[0]]
            assert found == raw
        assert len(mds_read.cut(whole, 1 << 30)) == 1
        assert len(mds_read.cut(whole, 700)) >= len(opened.shards)


def test_labels_and_places(tmp_path: Path) -> None:
    raw = [text.encode() for text in TEXTS]
    labels = [[LABELS[k % 9], LABELS[(k * 5 + 1) % 9]][: k % 3] for k in range(len(raw))]
    write_rows(tmp_path / "set", raw, labels)
    asked = settings_of(labels_field="whatever")
    found, _ = read(part_of(tmp_path / "set"), asked)
    assert [(text, set(names)) for text, names, _ in found] == [
        (text, set(names)) for text, names in zip(raw, labels, strict=True)
    ]
    later, _ = read(part_of(tmp_path / "set", 7), asked)
    assert [place + 7 for _, _, place in later] == [place for _, _, place in found][-len(later) :]
    assert all(names == [] for _, names, _ in read(part_of(tmp_path / "set"))[0])
    write_rows(tmp_path / "bare", raw)
    with pytest.raises(UserError, match="has no labels"):
        read(part_of(tmp_path / "bare"), asked)


@pytest.mark.parametrize("long", [8, 64, 500])
def test_long_documents_come_in_whole_characters(
    long: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mds_rows, "LONG_BYTES", long)
    monkeypatch.setattr(mds_read, "BLOCK_BYTES", 40)
    raw = [b"", b"a", *(text.encode() * 4 for text in TEXTS), b"", "中".encode() * 400]
    for segmenter in ("word", "byte"):
        write_rows(tmp_path / segmenter, raw, packing="packed", segmenter=segmenter)
        found, batches = read(part_of(tmp_path / segmenter))
        assert [text for text, _, _ in found] == raw
        assert any(batch.open for batch in batches)


def test_a_character_that_truncation_cut_is_left_out(tmp_path: Path) -> None:
    raw = ["a中中中中中中中中", "b", "é" * 40, "x" * 99]
    encoded = [text.encode() for text in raw]
    write_rows(tmp_path / "set", encoded, segmenter="byte", overlong="truncate", v=4)
    found = [text.decode() for text, _, _ in read(part_of(tmp_path / "set"))[0]]
    assert found == ["a中中中中中", "b", "é" * 8, "x" * 16]


def test_damage_is_found(tmp_path: Path) -> None:
    raw = [text.encode() for text in TEXTS]
    write_rows(tmp_path / "set", raw)
    shard = tmp_path / "set" / "shard.00000.00001.mds"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError, match=r"shard.00000.00001.mds is damaged, its hash differs"):
        read(part_of(tmp_path / "set"))
    shard.write_bytes(good[:-1])
    with pytest.raises(UserError, match="copy it again"):
        read(part_of(tmp_path / "set"))
    shard.unlink()
    with pytest.raises(UserError, match="missing"):
        read(part_of(tmp_path / "set"))
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = "../other"
    (tmp_path / "set" / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside its folder"):
        MdsFolder(str(tmp_path / "set"))


def test_fingerprint_is_that_of_a_shard_set(tmp_path: Path) -> None:
    write_rows(tmp_path / "set", [b"x"])
    assert (
        MdsFolder(str(tmp_path / "set")).fingerprint == ShardSet(str(tmp_path / "set")).fingerprint
    )
