"""``elemdist predict``: text in, labels out, as evaluation sees them."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data_prep.pack import samples_of
from elemdist.data import evaluation_batches
from elemdist.evaluate import document_scores
from elemdist.inputs import open_reading
from elemdist.peers import learn_wordpiece
from elemdist.shards import ShardSet
from elemdist.trained import TextClassifier
from tests.conftest import CLASSIFY, ELEMDIST, REPOSITORY, TINY, elemdist, expect_user_error


def texts_of(corpus: Path) -> list[str]:
    return [json.loads(line)["text"] for line in corpus.read_text().splitlines()]


@pytest.mark.parametrize("name", ["elementwise", "byte", "canine", "subword"])
def test_scores_of_text_are_those_of_its_shards(name, corpus, tmp_path):
    """Also of documents that n = 12 rows cannot hold."""
    words = ["--input.labels-field", "labels", "--n", "12", "--v", "8"]
    settings = ["--model.input", name]
    if name == "subword":
        vocabulary = tmp_path / "tokenizer.json"
        vocabulary.write_text(learn_wordpiece(texts_of(corpus), 300, lowercase=True))
        words += ["--segmenter", "subword", "--tokenizer", str(vocabulary)]
        settings += ["--model.tokenizer", str(vocabulary), "--model.positions", "rotary"]
    for overlong in ("split", "truncate"):
        made = elemdist(
            "shard", corpus, "--out", tmp_path / overlong, "--overlong", overlong, *words
        )
        assert made.returncode == 0, made.stderr
    run = tmp_path / "run"
    settings += ["--data.train", str(tmp_path / "split")]
    done = elemdist("train", *CLASSIFY, *settings, "--steps", "2", "--run-dir", run)
    assert done.returncode == 0, done.stderr
    for overlong in ("split", "truncate"):
        model = TextClassifier(str(run), None, "cpu", samples_of, overlong)
        shards = ShardSet(str(tmp_path / overlong))
        assert (shards.samples > 400) == (overlong == "split")
        reading = open_reading(model.config)
        batches = evaluation_batches(shards, 16, 0, 1, reading=reading)
        expected = document_scores(model.model, batches, model.device, model.config, np.arange(3))
        got = model.scores(texts_of(corpus), 7)
        np.testing.assert_allclose(got, expected.score_BL, atol=1e-5)


def lines(done: subprocess.CompletedProcess[str]) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_files_and_formats(classifier, corpus, tmp_path):
    records = corpus.read_bytes().splitlines(keepends=True)[:70]
    packed, plain = tmp_path / "a.jsonl.zst", tmp_path / "b.txt.gz"
    packed.write_bytes(zstandard.compress(b"".join(records)))
    plain.write_bytes(gzip.compress("".join(f"{x}\n" for x in texts_of(corpus)[:70]).encode()))
    one = lines(elemdist("predict", classifier, packed, "--top", "3"))
    two = lines(elemdist("predict", classifier, plain, "--top", "3"))
    assert [record["id"] for record in one] == list(range(70))
    assert [record["id"] for record in two] == list(range(1, 71))
    assert [record["scores"] for record in one] == [record["scores"] for record in two]
    for record in one:
        scores = record["scores"]
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert record["labels"] == [label for label, score in scores.items() if score >= 0.5]
    truth = [set(json.loads(record)["labels"]) for record in records]
    right = sum(set(record["labels"]) == labels for record, labels in zip(one, truth, strict=True))
    assert right > 40, "it has learned something"
    few = lines(elemdist("predict", classifier, packed, "--threshold", "0.9"))
    assert all(score >= 0.9 for record in few for score in record["scores"].values())
    assert sum(len(record["labels"]) for record in few) < sum(len(r["labels"]) for r in one)


def test_a_pipe_gets_its_answer_while_it_is_open(classifier):
    process = subprocess.Popen(
        [ELEMDIST, "predict", classifier], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=REPOSITORY,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    for text in ("Regen and storm.", "pepper, Brot"):
        process.stdin.write(text + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["labels"] is not None
    process.stdin.close()
    assert process.stdout.read() == ""
    assert process.wait(30) == 0


def test_a_reader_that_has_seen_enough_is_no_mistake(classifier, corpus):
    command = f"'{ELEMDIST}' predict '{classifier}' --format jsonl - < '{corpus}' | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_lines_that_are_no_documents(classifier, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "one"}\n{"text": 2}\n\xff\n[]\n{"text": "two", "id": "x"}\n')
    done = elemdist("predict", classifier, file)
    expect_user_error(done, f"{file}, line 2: ", "field 'text' holds a number")
    assert len(done.stdout.splitlines()) == 1, "what came before it"
    done = elemdist("predict", classifier, file, "--on-error", "skip")
    assert [record["id"] for record in lines(done)] == [1, "x"]
    assert f"left out: {file}, line 3: " in done.stderr
    assert done.stderr.count(f"left out: {file}, line ") == 3
    assert "left out: records with a value of another type: 2 (" in done.stderr
    assert "left out: documents that are not valid UTF-8: 1 (" in done.stderr


def test_mistakes(classifier, packed, tmp_path):
    expect_user_error(elemdist("predict"), "no run is named")
    expect_user_error(elemdist("predict", classifier, tmp_path / "none"), "no such file")
    broken = tmp_path / "a.txt.zst"
    broken.write_bytes(b"not compressed\n")
    expect_user_error(elemdist("predict", classifier, broken), f"{broken}: ", "no .zst file")
    run = tmp_path / "run"
    elemdist("train", *TINY, "--steps", "1", "--run-dir", run, "--data.train", packed / "train")
    expect_user_error(elemdist("predict", run, "-"), "only a classifier predicts", "mlm")
