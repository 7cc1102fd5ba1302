"""Shard sets sharded anew, and what all conversions have in common, by whole runs."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import tokenizers
from converted_sets import (
    DOCS,
    content,
    labels_of_seed,
    manifest,
    run,
    same_shards,
    samples,
    shards_of,
    texts_of_seed,
)

from data_prep.settings import InputSettings
from elemdist.errors import UserError
from elemdist.streaming_compat import import_streaming
from tests.conftest import ELEMDIST, elemdist


@pytest.mark.parametrize(
    "more",
    [
        {"n": 9, "v": 5},
        {"segmenter": "char"},
        {"segmenter": "byte", "n": 64},
        {"overlong": "truncate"},
    ],
)
def test_sharded_anew_is_as_sharded_from_the_text(
    more: dict[str, Any], document_set: Path, tmp_path: Path
) -> None:
    anew = run(document_set, tmp_path / "anew", **more)
    texts, labels = texts_of_seed(DOCS), labels_of_seed(DOCS)
    wanted = shards_of(tmp_path / "wanted", texts, labels, **({"n": 16, "v": 8} | more))
    assert same_shards(anew, wanted)
    assert manifest(anew)["counts"] == manifest(wanted)["counts"]
    assert manifest(anew)["label_counts"] == manifest(wanted)["label_counts"]


def test_packed_and_back(packed_set: Path, tmp_path: Path) -> None:
    back = run(packed_set, tmp_path / "back", packing="document", item_mb=1, processes=2)
    wanted = shards_of(tmp_path / "wanted", texts_of_seed(DOCS))
    assert content(back) == content(wanted)
    again = run(back, tmp_path / "again", packing="packed")
    whole = shards_of(tmp_path / "whole", texts_of_seed(DOCS), packing="packed")
    assert same_shards(again, whole)


def test_the_tokenizer_of_a_set(tmp_path: Path) -> None:
    paths = []
    for name, words in (("one", ["a", "b"]), ("two", ["a", "b", "x"])):
        made = tokenizers.Tokenizer(
            tokenizers.models.WordLevel({word: k for k, word in enumerate(["?", *words])}, "?")
        )
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        paths.append(str(tmp_path / f"{name}.json"))
        made.save(paths[-1])
    texts = texts_of_seed(50)
    more = {"segmenter": "subword", "tokenizer": paths[0]}
    path = shards_of(tmp_path / "set", texts, **more)
    copied = run(path, tmp_path / "copied", tokenizer=paths[0])
    assert same_shards(copied, path)
    assert manifest(copied)["libraries"] == manifest(path)["libraries"]
    assert manifest(copied)["converted_from"][0]["truncated_documents"] == 0
    other = run(path, tmp_path / "other", tokenizer=paths[1])
    wanted = shards_of(tmp_path / "wanted", texts, segmenter="subword", tokenizer=paths[1])
    assert same_shards(other, wanted)
    with pytest.raises(UserError, match="tokenizer"):
        run([path, other], tmp_path / "x")
    shutil.copy(paths[1], paths[0])
    with pytest.raises(UserError, match=r"one.json is not the tokenizer of .*: --tokenizer"):
        run(path, tmp_path / "x")
    words = run(path, tmp_path / "words", segmenter="word", n=8)
    assert content(words) == content(path)


def test_labels_keep_their_order_and_their_names(tmp_path: Path) -> None:
    texts = texts_of_seed(30)
    train = shards_of(tmp_path / "train", texts, [["b"], ["a"], ["unused"]] * 10)
    input = InputSettings(labels_field="labels")
    test = shards_of(tmp_path / "test", texts, [["b"]] * 30, input=input, labels_from=str(train))
    anew = run(test, tmp_path / "anew", n=8)
    assert manifest(anew)["labels"] == ["a", "b", "unused"]
    assert content(anew)[1] == [["b"]] * 30
    with pytest.raises(UserError, match="--keep-labels false"):
        run(test, tmp_path / "packed", packing="packed")
    packed = run(test, tmp_path / "packed", packing="packed", keep_labels=False)
    assert manifest(packed)["labels"] is None
    with pytest.raises(UserError, match="do that first"):
        run(test, tmp_path / "x", n=4, every=2)


def test_text_sets_of_streaming(tmp_path: Path) -> None:
    streaming = import_streaming()
    texts, labels = texts_of_seed(2000), labels_of_seed(2000)
    columns = {"text": "str", "tags": "json", "n": "int"}
    with streaming.MDSWriter(
        columns=columns, out=str(tmp_path / "text"), compression="zstd", size_limit=50_000
    ) as writer:
        for k, text in enumerate(texts):
            writer.write({"text": text, "tags": labels[k], "n": k})
    out = run(tmp_path / "text", tmp_path / "out", labels_field="tags", n=16, v=8)
    assert same_shards(out, shards_of(tmp_path / "wanted", texts, labels))
    bare = run(tmp_path / "text", tmp_path / "bare", n=16, v=8)
    assert content(bare) == ([text.encode() for text in texts], None)
    assert manifest(bare)["converted_from"][0]["samples"] == 2000


def test_the_same_command_again_does_nothing(document_set: Path, tmp_path: Path) -> None:
    out = run(document_set, tmp_path / "out", every=2)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    run(document_set, out, every=2)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(UserError, match="not empty"):
        run(document_set, out, every=3)


def test_sets_in_an_object_store(document_set: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(f"{document_set}/", "/convert/in/", recursive=True)
    run("memory://convert/in", "memory://convert/out", compression="gz")
    store.get("/convert/out/", str(tmp_path / "out"), recursive=True)
    assert np.array_equal(samples(tmp_path / "out"), samples(document_set))
    anew = run("memory://convert/out", tmp_path / "anew", n=8)
    assert content(anew) == content(document_set)
    run("memory://convert/out", tmp_path / "a.jsonl", to="jsonl", samples=":10")
    with pytest.raises(UserError, match="in an object store"):
        run(document_set, None, append="memory://convert/in")


@pytest.mark.parametrize("more", [[], ["--every", "2"], ["--n", "8"]])
def test_a_killed_run_goes_on(more: list[str], document_set: Path, tmp_path: Path) -> None:
    def start(out: Path) -> subprocess.Popen[bytes]:
        words = [
            "convert",
            str(document_set),
            "--out",
            str(out),
            "--shard-mb",
            "1",
            "--item-mb",
            "1",
        ]
        return subprocess.Popen(
            [ELEMDIST, *words, "--processes", "1", *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert start(tmp_path / "whole").wait() == 0
    killed = start(tmp_path / "killed")
    while killed.poll() is None and not list(tmp_path.glob("killed/shard.*.mds")):
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed" / "index.json").exists(), "too late to be killed"
    assert start(tmp_path / "killed").wait() == 0
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in (tmp_path / "killed").iterdir()} == names
    for name in names:
        one, other = ((tmp_path / run / name).read_bytes() for run in ("whole", "killed"))
        assert one == other, name


def test_a_damaged_copy_is_made_anew_from_its_source(document_set: Path, tmp_path: Path) -> None:
    out = run(document_set, tmp_path / "out", shard_mb=1, item_mb=1)
    victim = sorted(out.glob("shard.*"))[1]
    good = victim.read_bytes()
    victim.write_bytes(good[:-9] + b"?" + good[-8:])
    done = elemdist("verify", out, "--repair")
    assert done.returncode == 0, done.stdout + done.stderr
    assert victim.read_bytes() == good
