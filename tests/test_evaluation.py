"""``elemdist eval`` end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elemdist.multilabel import multilabel_figures
from tests.conftest import TINY, elemdist, expect_user_error


def trained(folder: Path, *words: str | Path) -> Path:
    run = folder / "run"
    done = elemdist("train", *TINY, "--steps", "30", "--run-dir", run, "--eval-every", "0", *words)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def reader(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("b"), "--data.train", packed / "train")


def evaluated(run: Path, data: Path, *words: str | Path) -> dict[str, Any]:
    done = elemdist("eval", run, "--data", data, "--device", "cpu", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_that_is_said_of_a_classifier(classifier, labelled, tmp_path):
    scores = tmp_path / "scores.npz"
    found = evaluated(classifier, labelled / "val", "--scores", scores)
    with np.load(scores, allow_pickle=False) as arrays:
        score_BL, truth_BL, labels = (arrays[k] for k in ("probabilities", "truth", "labels"))
    assert len(score_BL) == found["documents"] == 50
    again = multilabel_figures(score_BL, truth_BL, labels.tolist(), 0.5)
    assert {name: found[name] for name in again} == again
    low, high = found["intervals"]["micro_f1"]
    assert low < found["micro_f1"] < high or low == high == 1.0
    assert 0 <= found["expected_calibration_error"] <= 1
    assert sum(one["pairs"] for one in found["calibration_bins"]) == score_BL.size
    manifest = json.loads((labelled / "train" / "manifest.json").read_text())
    groups = found["by_frequency"]
    most = max(group["training_documents"][1] for group in groups.values() if group["labels"])
    assert most == max(manifest["label_counts"].values())
    assert found["thresholds"] == [0.5] * 3


@pytest.mark.parametrize("kind", ["tuned", "per_label"])
def test_thresholds_are_chosen_on_other_documents(kind, classifier, labelled):
    words = ["--thresholds", kind, "--tune-on", labelled / "val"]
    chosen = evaluated(classifier, labelled / "train", *words)
    assert len(set(chosen["thresholds"])) == (1 if kind == "tuned" else 3)
    there = evaluated(classifier, labelled / "val", "--bootstrap", "0")
    assert there["intervals"] == {}
    if kind == "tuned":
        at = str(chosen["thresholds"][0])
        best = evaluated(classifier, labelled / "val", "--threshold", at, "--bootstrap", "0")
        assert best["micro_f1"] >= there["micro_f1"]


def test_bits_per_byte_of_parts_sum_up_to_the_whole(reader, packed):
    places = ["--more-data", json.dumps([str(packed / "train")])]
    found = evaluated(reader, packed / "val", *places)
    nats = found["loss"] * found["bytes"]
    for parts in ("by_source", "by_position", "by_material_bytes"):
        groups = found[parts].values()
        assert sum(one["nats"] for one in groups) == pytest.approx(nats, rel=1e-9)
        assert sum(one["bytes"] for one in groups) == found["bytes"]
        assert sum(one["materials"] for one in groups) == found["materials"]
    assert list(found["by_source"]) == [str(packed / "val"), str(packed / "train")]
    alone = evaluated(reader, packed / "val")
    assert "by_source" not in alone
    here = found["by_source"][str(packed / "val")]
    assert alone["bits_per_byte"] == pytest.approx(here["bits_per_byte"], rel=1e-12)
    # An eighth of n = 32 each; few documents are so long that they fill the last.
    assert list(alone["by_position"])[:3] == ["0 to 3", "4 to 7", "8 to 11"]
    assert list(alone["by_material_bytes"]) == ["1", "2", "3 to 4", "5 and more"]
    for length, one in alone["by_material_bytes"].items():
        shortest = int(length.split()[0])
        assert one["bytes"] >= shortest * one["materials"]


def test_training_data_that_is_named_has_to_be_there(classifier, labelled, tmp_path):
    words = ["--data", labelled / "val", "--train-data", tmp_path / "none"]
    expect_user_error(elemdist("eval", classifier, *words), "no shard folder")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--thresholds", "tuned"], "--tune-on"),
        (["--tune-on", "VAL"], "--thresholds tuned"),
        (["--thresholds", "tuned", "--tune-on", "VAL"], "judged"),
        (["--thresholds", "tuned", "--tune-on", "x", "--threshold", "0.4"], "threshold: "),
        (["--scores", "a.txt"], ".npz"),
        (["--scores", "none/a.npz"], "does not exist"),
        (["--more-data", '["x"]'], "more_data"),
    ],
)
def test_mistakes(words, part, classifier, labelled):
    words = [str(labelled / "val") if word == "VAL" else word for word in words]
    expect_user_error(elemdist("eval", classifier, "--data", labelled / "val", *words), part)


def test_what_only_a_classifier_has_is_refused(reader, packed):
    done = elemdist("eval", reader, "--data", packed / "val", "--scores", "a.npz")
    expect_user_error(done, "scores: ", "no classifier")
