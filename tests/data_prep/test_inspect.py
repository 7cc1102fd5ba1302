"""`elemdist inspect`: the figures of shard sets and corpora, against what sharding itself gives."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import SAMPLES, SEGMENTERS, WIDTHS, materials, rows, texts
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data_prep import shard
from data_prep.documents import batch_of
from data_prep.inspect import main as show
from data_prep.inspect.advice import LONGEST, Tally, advice_for, n_table
from data_prep.inspect.sampling import CorpusSample, SetSample
from data_prep.segment import Segmenter
from data_prep.settings import InputSettings, ShardSettings
from elemdist.errors import UserError
from elemdist.shards import ShardSet


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def make_set(source: Path, out: Path, **more: Any) -> Path:
    values: dict[str, Any] = {"n": 64, "v": 8, "processes": 1, "quiet": True} | more
    shard.run(ShardSettings([str(source)], str(out), **values))
    return out


def told(capsys: pytest.CaptureFixture[str], path: Path, **more: Any) -> str:
    capsys.readouterr()
    show.run(show.InspectSettings(str(path), **more))
    return capsys.readouterr().out


def figures(capsys: pytest.CaptureFixture[str], path: Path, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(capsys, path, json=True, **more))
    return found


def made_documents(count: int) -> list[str]:
    """Documents of a few to some hundred words of several scripts."""
    rng = random.Random(5)
    words = " ".join(SAMPLES.values()).split()
    return [" ".join(rng.choices(words, k=rng.choice([3, 30, 300]))) for _ in range(count)]


@pytest.mark.parametrize("segmenter", SEGMENTERS)
@settings(deadline=None, max_examples=100)
@given(documents=st.lists(texts, max_size=4), v=st.sampled_from(WIDTHS))
def test_rows_and_lengths_are_counted_right(segmenter: str, documents: list[str], v: int) -> None:
    tally = Tally(Segmenter(segmenter), v)
    tally.add(batch_of([document.encode() for document in documents]))
    for width, counted_D in zip(tally.widths.tolist(), tally.rows().T, strict=True):
        assert counted_D.tolist() == [len(rows(text, width, segmenter)) for text in documents]
    assert tally.bytes().tolist() == [len(document.encode()) for document in documents]
    if segmenter != "byte":
        sizes = [len(m.encode()) for text in documents for m in materials(text, segmenter)]
        wanted = np.bincount(np.minimum(sizes, LONGEST), minlength=LONGEST + 1) if sizes else 0
        assert (tally.lengths == wanted).all()


def test_a_document_in_several_batches_counts_once() -> None:
    whole, parts = Tally(Segmenter("word"), 12), Tally(Segmenter("word"), 12)
    documents = [b"one ", b"two three ", b"four ", b"five six"]
    whole.add(batch_of([documents[0], b"".join(documents[1:3]), documents[3]]))
    parts.add(batch_of(documents[:2], open=True))
    parts.add(batch_of(documents[2:], begun=True))
    assert (whole.rows() == parts.rows()).all()
    assert (whole.bytes() == parts.bytes()).all()
    assert (whole.lengths == parts.lengths).all()


def test_figures_of_a_small_text() -> None:
    tally = Tally(Segmenter("word"), 6)
    tally.add(batch_of([b"four fives sixsix sevenss!", b"", b"a" * 2000]))
    found = advice_for(tally)
    assert (found["documents"], found["bytes"], found["materials"]) == (3, 2026, 6)
    ranges = {entry["up_to_bytes"]: entry["materials"] for entry in found["histogram"]}
    assert {k: count for k, count in ranges.items() if count} == {1: 1, 5: 1, 6: 1, 8: 2, None: 1}
    at_6 = next(entry for entry in found["v"] if entry["v"] == 6)
    assert at_6["materials_in_one_row_share"] == 0.5
    assert at_6["rows_per_document"] == pytest.approx((1 + 1 + 2 + 2 + 1 + 334) / 3)
    assert at_6["padding_share"] == pytest.approx(1 - 2026 / (341 * 6), abs=1e-6)
    at_64 = found["n"][0]  # 334 rows need 6 samples of 63
    assert at_64["documents_in_one_sample_share"] == pytest.approx(2 / 3, abs=1e-6)
    assert at_64["samples_per_document"] == pytest.approx(8 / 3)
    assert at_64["empty_rows_share"] == pytest.approx((8 * 63 - 341) / (8 * 64), abs=1e-6)


@pytest.mark.parametrize("n", [64, 128, 512])
def test_advice_is_what_sharding_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], n: int
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", made_documents(200))
    before = figures(capsys, path, v=8)
    assert before["kind"] == "corpus"
    assert before["whole"] is True
    out = make_set(path, tmp_path / "set", n=n)
    manifest = ShardSet(str(out)).manifest
    after = figures(capsys, out)
    assert after["kind"] == "shard set"
    assert after["advice"] == before["advice"]
    counts = manifest["counts"]
    entry = next(entry for entry in before["advice"]["n"] if entry["n"] == n)
    assert entry["samples_per_document"] == counts["samples"] / 200
    assert entry["padding_share"] == pytest.approx(manifest["padding_share"], abs=1e-6)
    assert entry["empty_rows_share"] == pytest.approx(
        counts["padding_rows"] / (n * counts["samples"]), abs=1e-6
    )
    split = after["sampled"]["documents_over_several_samples_share"]
    assert split == pytest.approx(1 - entry["documents_in_one_sample_share"], abs=2e-6)


@pytest.mark.parametrize("packing", ["document", "packed"])
def test_documents_of_a_set_are_found_whole(tmp_path: Path, packing: str) -> None:
    documents = ["", *made_documents(60), "long " * 3000, "end"]
    # 63 words fill a sample, so that the next document begins a sample, too.
    documents += ["word " * 63, "", "word " * 126, "x"]
    path = write_jsonl(tmp_path / "a.jsonl", documents)
    shards = ShardSet(str(make_set(path, tmp_path / "set", packing=packing)))
    everything = SetSample(shards, 10**6)
    found = list(everything.documents())
    assert [document.text.decode() for document in found] == documents
    assert all(document.finished for document in found)
    assert everything.read == len(shards)
    if packing == "document":
        assert sum(document.samples for document in found) == len(shards)
    some = SetSample(shards, 20)
    few = list(some.documents())
    assert 0 < some.read <= 20
    assert few
    known = set(documents)
    assert all(document.text.decode() in known for document in few if document.finished)
    assert all(any(text.startswith(document.text.decode()) for text in known) for document in few)


def test_a_packed_set_counts_documents_over_several_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["a " * 40, "b " * 40, "c " * 40])  # 41 rows each
    found = figures(capsys, make_set(path, tmp_path / "set", packing="packed"))
    assert found["sampled"]["documents_over_several_samples_share"] == pytest.approx(
        1 / 3, abs=1e-6
    )
    assert found["sampled"]["materials_over_several_rows_share"] == 0


def test_truncated_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["é" * 4000, "short", "b", "c"])
    for v in (2, 8):
        out = make_set(path, tmp_path / str(v), overlong="truncate", v=v)
        found = figures(capsys, out)
        assert found["sampled"]["truncated_documents_share"] == 0.25
        assert found["advice"]["documents"] == 4


def test_lines_for_a_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", made_documents(100))
    out = make_set(path, tmp_path / "set")
    short = told(capsys, out, rows=2)
    assert "words, by bytes:" in short
    assert "of the words go on in a further row" in short
    assert "rows per document" not in short
    advised = told(capsys, out, advise=True)
    assert "documents in one sample" in advised
    assert "smallest v for 95 % of the words: " in advised
    corpus = told(capsys, path, v=8)
    assert "100 documents" in corpus
    shown = advised[advised.index("words, by bytes:") : advised.index("\nsample 0")]
    assert corpus.endswith(shown)
    for line in (short + advised + corpus).splitlines():
        assert len(line) <= 80 or str(tmp_path) in line, line
    of_blocks = told(capsys, path, segmenter="byte")
    assert "by bytes" not in of_blocks
    assert "smallest v" not in of_blocks


def test_a_large_corpus_is_sampled_all_over(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(8):
        write_jsonl(folder / f"{number}.jsonl", [f"{number} " + "word " * 200] * 1000)
    sample = CorpusSample(str(folder), InputSettings(), 2 << 20)
    seen = set()
    for batch in sample.batches():
        seen |= {int(chr(batch.data[start])) for start in batch.starts.tolist()}
    assert not sample.whole
    assert 2 << 20 <= sample.bytes < 5 << 20
    assert len(seen) > 1


def test_one_document_that_is_not_read_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "book.txt"
    path.write_text("word " * 2_000_000)
    found = figures(capsys, path, sample_mb=1)
    assert found["whole"] is False
    assert found["advice"]["documents"] == found["advice"]["unfinished_documents"] == 1
    assert found["advice"]["bytes"] < 8_000_000
    assert "not read to the end: 1 document" in told(capsys, path, sample_mb=1)


def test_a_set_whose_tokenizer_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=300, show_progress=False)
    tokenizer.train_from_iterator(SAMPLES.values(), trainer)
    file = tmp_path / "bpe.json"
    tokenizer.save(str(file))
    path = write_jsonl(tmp_path / "a.jsonl", made_documents(20))
    out = make_set(path, tmp_path / "set", segmenter="subword", tokenizer=str(file))
    wanted = figures(capsys, out)["advice"]
    assert wanted["materials"] > 0
    moved = file.rename(tmp_path / "moved.json")
    assert "materials are not counted: cannot read" in told(capsys, out)
    assert "advice" not in figures(capsys, out)
    assert figures(capsys, out, tokenizer=str(moved))["advice"] == wanted
    of_text = figures(capsys, path, segmenter="subword", tokenizer=str(moved), v=8)
    assert of_text["advice"] == wanted


def test_mistakes(tmp_path: Path) -> None:
    for problem, values in (
        (r"v: 0 is not in \[1, 256\]", {"v": 0}),
        ("sample_mb: 0 is below 1", {"sample_mb": 0}),
        ("samples: 0 is below 1", {"samples": 0}),
        ("no such file or folder", {}),
    ):
        with pytest.raises(UserError, match=problem):
            show.run(show.InspectSettings(str(tmp_path / "none"), **values))
    path = write_jsonl(tmp_path / "a.jsonl", ["a b c"] * 5)
    out = make_set(path, tmp_path / "set", holdout_last=2)
    with pytest.raises(UserError, match=r"no index\.json: name .*train or .*val"):
        show.run(show.InspectSettings(str(out)))
    with pytest.raises(UserError, match="no sample 9"):
        show.run(show.InspectSettings(str(out / "val"), sample=9))


def test_no_documents() -> None:
    assert n_table(np.zeros(0, np.int64), 0, 12) == []
    found = advice_for(Tally(Segmenter("word"), 12))
    assert found["v"][0]["padding_share"] is None
