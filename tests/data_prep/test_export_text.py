"""Shard sets into text again, by whole runs."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard
from converted_sets import (
    DOCS,
    content,
    labels_of_seed,
    manifest,
    run,
    same_shards,
    samples_of_documents,
    shards_of,
    texts_of_seed,
)

from data_prep import shard
from data_prep.settings import InputSettings, ShardSettings
from data_prep.words import counted
from elemdist.errors import UserError
from tests.conftest import elemdist


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize("source", ["document_set", "packed_set"])
def test_text_and_back_are_the_same_shards(
    suffix: str, source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    original: Path = request.getfixturevalue(source)
    path = run(original, tmp_path / f"text.{suffix}", to="jsonl")
    raw = path.read_bytes()
    if suffix.endswith("gz"):
        raw = gzip.decompress(raw)
    if suffix.endswith("zst"):
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    records = [json.loads(line) for line in raw.splitlines()]
    assert [record["text"] for record in records] == texts_of_seed(DOCS)
    labelled = source == "document_set"
    assert all(("labels" in record) == labelled for record in records)
    settings = ShardSettings([str(path)], str(tmp_path / "again"), n=16, v=8, processes=1)
    settings = dataclasses.replace(settings, quiet=True, packing=manifest(original)["packing"])
    settings.input.labels_field = "labels" if labelled else None
    shard.run(settings)
    packing = manifest(original)["packing"]
    labels = labels_of_seed(DOCS) if labelled else None
    wanted = shards_of(tmp_path / "wanted", texts_of_seed(DOCS), labels, packing=packing)
    assert same_shards(tmp_path / "again", wanted)
    assert [entry.name for entry in tmp_path.iterdir() if ".tmp" in entry.name] == []


def test_parquet(document_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.convert.export_text.GROUP_BYTES", 100_000)
    path = run(document_set, tmp_path / "text.parquet", to="parquet")
    file = pq.ParquetFile(path)
    assert file.num_row_groups > 5
    table = file.read()
    assert table["text"].to_pylist() == texts_of_seed(DOCS)
    assert table["labels"].to_pylist() == labels_of_seed(DOCS)
    input = InputSettings(labels_field="labels")
    shard.run(ShardSettings([str(path)], str(tmp_path / "b"), input, n=16, v=8, quiet=True))
    assert content(tmp_path / "b") == content(document_set)


def test_a_range_as_text_on_standard_output(document_set: Path) -> None:
    first = samples_of_documents(document_set)
    done = elemdist("convert", document_set, "--to", "jsonl", "--out", "-", "--samples", "50:99")
    assert done.returncode == 0, done.stderr
    wanted = [text for text, at in zip(texts_of_seed(DOCS), first, strict=True) if 50 <= at < 99]
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == wanted


def test_lost_ends_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shards_of(tmp_path / "set", texts_of_seed(30), overlong="truncate")
    run(path, tmp_path / "a.jsonl", to="jsonl")
    count = manifest(path)["counts"]["truncated_documents"]
    assert f"{counted(count, 'document')} had been cut at the end" in capsys.readouterr().err


def test_text_refuses_what_it_cannot_do(document_set: Path, tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").touch()
    for out, more, words in (
        (tmp_path / "there.jsonl", {}, "is there already"),
        (tmp_path, {}, "is a folder"),
        (tmp_path / "x.jsonl", {"n": 4}, "n is for shards"),
        (tmp_path / "x.jsonl", {"every": 4}, "every is for shards"),
        ("-", {"to": "parquet"}, "name a file"),
    ):
        with pytest.raises(UserError, match=words):
            run(document_set, out, **({"to": "jsonl"} | more))
    with pytest.raises(UserError, match="cannot write"):
        run(document_set, tmp_path / "no" / "x.jsonl", to="jsonl")
