"""Whole runs: the same documents give the same shards out of every format; splits, compressions."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard
from reference import SAMPLES

from data_prep import shard
from data_prep.settings import InputSettings, ShardSettings
from elemdist.rows import documents
from elemdist.shards import ShardSet
from elemdist.streaming_compat import import_streaming
from tests.conftest import elemdist

TEXTS = [text.replace("\r", "") for text in sorted(SAMPLES.values())] * 3
LABELS = [["x", "y"][: k % 3] for k in range(len(TEXTS))]
PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def run(inputs: list[Path], out: Path, **more: Any) -> shard.ShardSummary:
    values = {"n": 16, "v": 8, "processes": 1, "quiet": True} | more
    return shard.run(ShardSettings([str(path) for path in inputs], str(out), **values))


def texts_of(folder: Path) -> list[str]:
    shards = ShardSet(str(folder))
    rows_BNV, _ = shards.gather(np.arange(shards.samples))
    return [document.decode() for document in documents(rows_BNV)]


def jsonl() -> bytes:
    records = [
        {"id": f"d{k}", "text": text, "labels": labels}
        for k, (text, labels) in enumerate(zip(TEXTS, LABELS, strict=True))
    ]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def table() -> pa.Table:
    ids = [f"d{k}" for k in range(len(TEXTS))]
    return pa.table({"id": ids, "text": TEXTS, "more": list(range(len(TEXTS))), "labels": LABELS})


def write_csv(path: Path, delimiter: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", "text", "labels"])
        for k, (text, labels) in enumerate(zip(TEXTS, LABELS, strict=True)):
            writer.writerow([f"d{k}", text, ";".join(labels)])


def write_datasets(folder: Path) -> None:
    """A folder as `datasets` saves one, in two files."""
    folder.mkdir()
    half = len(TEXTS) // 2
    names = [f"data-0000{k}-of-00002.arrow" for k in range(2)]
    for name, part in zip(names, (table()[:half], table()[half:]), strict=True):
        with pyarrow.ipc.new_stream(str(folder / name), part.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wanted")
    (folder / "a.jsonl").write_bytes(jsonl())
    run([folder / "a.jsonl"], folder / "set", input=InputSettings(labels_field="labels"))
    return folder / "set"


def source(folder: Path, kind: str) -> Path:
    path = folder / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table(), path, row_group_size=20)
    elif kind == "arrow":
        with pyarrow.ipc.new_file(str(path), table().schema) as writer:
            writer.write_table(table(), max_chunksize=20)
    elif kind == "datasets":
        write_datasets(path)
    elif kind in ("csv", "tsv"):
        write_csv(path, "," if kind == "csv" else "\t")
    else:
        path.write_bytes(PACKERS[path.suffix](jsonl()))
    return path


@pytest.mark.parametrize(
    "kind",
    ["parquet", "arrow", "datasets", "csv", "tsv", *(f"jsonl{suffix}" for suffix in PACKERS)],
)
def test_every_format_of_records_gives_the_same_shards(
    kind: str, wanted: Path, tmp_path: Path
) -> None:
    separator = ";" if kind in ("csv", "tsv") else None
    input = InputSettings(labels_field="labels", labels_separator=separator)
    run([source(tmp_path, kind)], tmp_path / "set", input=input)
    names = sorted(path.name for path in wanted.glob("*.mds"))
    assert sorted(path.name for path in (tmp_path / "set").glob("*.mds")) == names
    for name in names:
        assert (tmp_path / "set" / name).read_bytes() == (wanted / name).read_bytes()


@pytest.mark.parametrize("suffix", ["", *PACKERS])
def test_tar_of_texts(suffix: str, tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for k, text in enumerate(TEXTS):
            member = tarfile.TarInfo(f"texts/{k}.txt")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    path = tmp_path / f"a.tar{suffix}"
    path.write_bytes(PACKERS[suffix](content.getvalue()) if suffix else content.getvalue())
    run([path], tmp_path / "set")
    assert texts_of(tmp_path / "set") == TEXTS


@pytest.mark.parametrize("segmenter", ["byte", "char", "word", "uax29", "sentence", "subword"])
@pytest.mark.parametrize("v", [3, 12])
def test_every_segmenter_loses_nothing(segmenter: Any, v: int, tmp_path: Path) -> None:
    tokenizer = None
    if segmenter == "subword":
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel()
        trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
        tokenizer = str(tmp_path / "tokenizer.json")
        trained.save(tokenizer)
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    how = {"segmenter": segmenter, "tokenizer": tokenizer, "v": v, "packing": "packed"}
    summary = run([tmp_path / "a.jsonl"], tmp_path / "set", **how)
    assert texts_of(tmp_path / "set") == TEXTS
    assert summary.manifests[0]["segmenter"] == segmenter


@pytest.mark.parametrize("by", ["bytes", "id"])
def test_a_growing_corpus_keeps_its_split(by: Any, tmp_path: Path) -> None:
    lines = [
        json.dumps({"id": f"d{k}", "text": f"document number {k}"}).encode() + b"\n"
        for k in range(400)
    ]
    found = []
    for number, some in enumerate((lines[:200], lines[::-1])):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(b"".join(some))
        out = tmp_path / f"set{number}"
        how = {"split": "train=0.7,val=0.2,test=0.1", "split_by": by}
        run([path], out, input=InputSettings(id_field="id"), **how)
        found.append({name: set(texts_of(out / name)) for name in ("train", "val", "test")})
    before, after = found
    for name in before:
        assert before[name] < after[name]
        assert not any(before[name] & after[other] for other in after if other != name)
    assert 230 < len(after["train"]) < 330
    assert sum(len(texts) for texts in after.values()) == 400


def test_duplicates(tmp_path: Path) -> None:
    texts = ["one", "two", "One ", "one", "three", "two"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    again = tmp_path / "b.jsonl"  # a copy: one file that is named twice is read once
    again.write_bytes(path.read_bytes())
    left = {"exact": ["one", "two", "One ", "three"], "normalized": ["one", "two", "three"]}
    for dedup, wanted in left.items():
        out = tmp_path / dedup
        (manifest,) = run([path, again], out, dedup=dedup).manifests
        assert texts_of(out) == wanted
        assert manifest["counts"]["duplicate_documents"] == 12 - len(wanted)
        sizes = 2 * sum(map(len, texts)) - sum(map(len, wanted))
        assert manifest["counts"]["duplicate_bytes"] == sizes


@pytest.mark.usefixtures("streaming_alone")
@pytest.mark.parametrize("compression", ["zstd:7", "gz", "bz2", "br:5", "snappy"])
def test_compressed_shards(
    compression: str, wanted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELEMDIST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    out = tmp_path / "set"
    input = InputSettings(labels_field="labels")
    run([tmp_path / "a.jsonl"], out, input=input, compression=compression, hashes="sha1,xxh64")
    plain, packed = ShardSet(str(wanted)), ShardSet(str(out))
    packed.verify()
    ids = np.arange(plain.samples)
    for one, other in zip(plain.gather(ids), packed.gather(ids), strict=True):
        assert np.array_equal(one, other)
    assert not list(out.glob("*.mds"))
    assert elemdist("verify", out).returncode == 0
    streaming = import_streaming()
    dataset = streaming.StreamingDataset(
        remote=str(out), local=str(tmp_path / "local"), shuffle=False, batch_size=1
    )
    assert np.array_equal(dataset[5]["rows"], plain.gather(np.array([5]))[0][0])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_large_file_of_blocks_is_cut_between_blocks(processes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = [f"{k} {'x' * int(size)}\nline" for k, size in enumerate(rng.integers(0, 900, 9000))]
    blanks = ["\n\n", "\n \n", "\n\n\n", "\n\t\n \n"]
    text = "\n\n" + "".join(block + blanks[k % 4] for k, block in enumerate(blocks))
    (tmp_path / "a.txt").write_text(text)
    settings = InputSettings(document="block")
    run([tmp_path / "a.txt"], tmp_path / "set", input=settings, item_mb=1, processes=processes)
    assert texts_of(tmp_path / "set") == blocks
    assert len(ShardSet(str(tmp_path / "set")).manifest["sources"]) >= 4
