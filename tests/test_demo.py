"""The demo's steps, its folder, and the figures it compares with."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

from elemdist import demo, demo_corpus, demo_figures
from elemdist.demo_corpus import Corpus, Document
from elemdist.errors import UserError
from elemdist.rows import DOC, PAD


def made_corpus() -> Corpus:
    def documents(*modules: str) -> list[Document]:
        return [
            Document(f"{k}", f"{k}", frozenset(names.split())) for k, names in enumerate(modules)
        ]

    functions = {"train": documents("os", "os re", "os"), "val": [], "test": documents("os", "re")}
    texts = {"train": [Document("t", "a" * 255)], "val": [Document("v", "ab")], "test": []}
    return Corpus(texts, functions, ["os", "re"])


def test_the_baseline_is_computed_from_the_data() -> None:
    figures = demo_figures.most_frequent_baseline(made_corpus())
    # Always "os": one of two guesses is right, one of two labels found; "re" is never guessed.
    assert figures["micro_f1"] == pytest.approx(0.5)
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert figures["macro_roc_auc"] == pytest.approx(0.5)


class MadeShards:
    """What slot_counts asks of a shard set: one sample of rows of four slots."""

    v, samples = 4, 1

    def __init__(self, *rows: list[int]) -> None:
        padded = [[*row, *[PAD] * (self.v - len(row))] for row in rows]
        self.rows_BNV = np.array([padded], np.uint8)

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, None]:
        return self.rows_BNV[ids], None


def test_bits_per_byte_of_frequencies() -> None:
    a, b = ord("a"), ord("b")
    train = MadeShards([DOC], [a], [a], [a, b], [])
    # Slot 0: 3 of "a"; slot 1: 2 ends, 1 "b"; slot 2: an end. Every value is counted once more.
    first, end_1, b_1, end_2 = (
        math.log2(259 / 4),
        math.log2(259 / 3),
        math.log2(259 / 2),
        math.log2(257 / 2),
    )
    held_out = MadeShards([DOC], [a], [a, b])
    expected = (first + end_1) + (first + b_1 + end_2)
    found = demo_figures.frequency_bits_per_byte(train, held_out)  # type: ignore[arg-type]
    assert found == pytest.approx(expected / 3)


def test_only_a_demos_folder_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "a demo"
    demo.fresh_folder(out)
    (out / "left over").write_text("old")
    demo.fresh_folder(out)
    assert [path.name for path in out.iterdir()] == [demo.MARKER]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(out)
    for folder in (mine, link, mine / "thesis.txt"):
        with pytest.raises(UserError, match="demo"):
            demo.fresh_folder(folder)
    assert (mine / "thesis.txt").read_text() == "precious"
    assert (out / demo.MARKER).exists()


def test_a_failing_step_ends_the_demo_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    script = tmp_path / "el emdist"
    script.write_text('#!/bin/sh\necho "hello $2"\nexit 7\n')
    script.chmod(0o755)
    monkeypatch.setattr(demo, "console_script", lambda: str(script))
    monkeypatch.setattr(demo_corpus, "build", made_corpus)
    assert demo.main(["--out", str(tmp_path / "a demo"), "--ranks", "1"]) == 7
    output = capfd.readouterr()
    source = tmp_path / "a demo" / "text" / "source-train.jsonl"
    assert f"$ elemdist shard '{source}' --out" in output.out
    assert f"hello {source}" in output.out
    assert "exit code 7" in output.err
    assert json.loads(source.read_text())["text"] == "a" * 255


def test_a_signal_is_reported_as_shells_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "console_script", lambda: "anything")
    ended = subprocess.CompletedProcess([], returncode=-9)
    monkeypatch.setattr(subprocess, "run", lambda command: ended)
    with pytest.raises(demo.StepError) as caught:
        demo.Story().elemdist("train")
    assert caught.value.code == 137


def test_the_recipes_are_there() -> None:
    for name in ("pretrain.yaml", "classify.yaml"):
        assert Path(demo.recipe(name)).is_file()
    with pytest.raises(UserError, match="no such recipe"):
        demo.recipe("other.yaml")
