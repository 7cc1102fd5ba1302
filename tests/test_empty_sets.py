"""Sets that hold nothing: refused before the first step, and no figure over nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from elemdist.compare_noise import mean, noise_table
from elemdist.evaluate import NotFiniteError, prediction_figures
from elemdist.metrics import eval_line, progress_line
from tests.conftest import TINY, elemdist, expect_user_error
from tests.test_not_finite import run_with


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `empty`, sets of no documents, `blank`, of documents without text, and `word`,
    of one word: each as text and, with -labelled, for classification."""
    folder = tmp_path_factory.mktemp("sets")
    texts = {"empty": [], "blank": ["", ""], "word": ["Regen"]}
    for name, documents in texts.items():
        for labels in ("", "-labelled"):
            file = folder / f"{name}{labels}.jsonl"
            # What is held out is as many documents as are to be in the set.
            lines = [{"text": text, "labels": ["rail"]} for text in ["train, gare", *documents]]
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
            words = ["--input.labels-field", "labels"] if labels else ["--packing", "packed"]
            split = ["--holdout-last", len(documents)]
            if not documents:
                split = ["--split", "train=0.998,val=0.001,test=0.001"]
            shape = ["--n", "32", "--v", "8", "--processes", "1", "--quiet"]
            made = elemdist(
                "shard", file, "--out", folder / f"{name}{labels}",
                *[str(word) for word in [*shape, *split, *words]],
            )  # fmt: skip
            assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        objective: run_with(objective, folder / objective, lambda flat: flat)
        for objective in ("mlm", "clm", "classify")
    }


@pytest.mark.parametrize("name", ["empty", "blank"])
@pytest.mark.parametrize("objective", ["mlm", "clm", "classify"])
@pytest.mark.parametrize("setting", ["data.train", "data.eval"])
def test_training_refuses_a_set_of_nothing(setting, objective, name, sets, tmp_path):
    labels = "-labelled" if objective == "classify" else ""
    full, nothing = sets / f"word{labels}" / "train", sets / f"{name}{labels}" / "val"
    places = {"data.train": full, "data.eval": full} | {setting: nothing}
    words = [word for key, path in places.items() for word in (f"--{key}", path)]
    words += ["--objective", objective]
    words += ["--model.backbone", "decoder"] if objective == "clm" else []
    done = elemdist("train", *TINY, "--run-dir", tmp_path / "run", "--steps", "2", *words)
    expect_user_error(done, f"{setting}: {nothing} is empty")
    assert "bits_per_byte" not in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_mixture_refuses_a_set_of_nothing(sets, tmp_path):
    sources = [{"path": str(sets / "word" / "train")}, {"path": str(sets / "empty" / "val")}]
    words = ["--data.mixture", json.dumps(sources), "--run-dir", tmp_path / "run"]
    done = elemdist("train", *TINY, "--steps", "1", *words)
    expect_user_error(done, "data.mixture: ", "empty/val is empty")


@pytest.mark.parametrize(
    ("objective", "words", "parts"),
    [
        ("mlm", ["--data", "empty/val"], ["data: ", "empty/val is empty"]),
        ("clm", ["--data", "empty/test"], ["data: ", "empty/test is empty"]),
        ("mlm", ["--data", "blank/val"], ["data: ", "without text"]),
        ("classify", ["--data", "empty-labelled/val"], ["data: ", "is empty"]),
        ("classify", ["--data", "blank-labelled/val"], ["data: ", "without text"]),
        ("mlm", ["--data", "word/val"], ["data: ", "nothing in ", "is predicted"]),
        (
            "mlm",
            ["--data", "word/train", "--more-data", "empty/val"],
            ["more_data: ", "empty/val is empty"],
        ),
        (
            "classify",
            ["--data", "word-labelled/val", "--tune-on", "empty-labelled/val"],
            ["tune_on: ", "is empty"],
        ),
        (
            "classify",
            ["--data", "word-labelled/val", "--train-data", "empty-labelled/val"],
            ["train_data: ", "is empty"],
        ),
    ],
)
def test_an_evaluation_refuses_a_set_of_nothing(objective, words, parts, sets, runs, tmp_path):
    out = tmp_path / "figures.json"
    words = [word if word.startswith("--") else str(sets / word) for word in words]
    words = [f'["{word}"]' if before == "--more-data" else word
             for before, word in zip(["", *words], words, strict=False)]  # fmt: skip
    words += ["--thresholds", "tuned"] if "--tune-on" in words else []
    expect_user_error(elemdist("eval", runs[objective], *words, "--out", out), *parts)
    assert not out.exists()


def test_a_comparison_refuses_a_split_that_leaves_nothing(tmp_path, corpus):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("objective: classify\nmodel: {layers: 1, width: 32}\n")
    models = [{"name": "one", "recipe": [str(recipe)], "shard": {"n": 32, "v": 8}}]
    (tmp_path / "compare.yaml").write_text(
        json.dumps({
            "text": str(corpus), "split": "train=0.99998,val=0.00001,test=0.00001",
            "input": {"labels_field": "labels"}, "models": models, "budget": {"steps": 1},
            "seeds": [1], "device": "cpu",
        })
    )  # fmt: skip
    done = elemdist("compare", tmp_path / "compare.yaml", "--out", tmp_path / "out")
    expect_user_error(done, "split: ", "is empty")
    assert not (tmp_path / "out" / "runs").exists()


def test_figures_over_nothing_are_none():
    found = prediction_figures(np.zeros(4))
    assert (found["loss"], found["bits_per_byte"], found["material_accuracy"]) == (None,) * 3
    assert eval_line(3, found) == "eval at step 3  no figures: nothing in the set is predicted"
    ends = prediction_figures(np.array([5.0, 1.0, 2.0, 0.0]))  # ends of documents alone
    assert (ends["bits_per_byte"], ends["material_accuracy"]) == (None, 0.5)
    with pytest.raises(NotFiniteError):
        prediction_figures(np.array([np.nan, 1, 2, 3]))


def test_a_step_with_nothing_to_predict_is_counted_and_has_no_loss(sets, tmp_path):
    """A mask rate so low that the one word is never hidden."""
    run = tmp_path / "run"
    done = elemdist(
        "train", *TINY, "--run-dir", run, "--data.train", sets / "word" / "train", "--steps", "2",
        "--mlm.mask-rate", "1e-9", "--data.eval", sets / "word" / "val", "--eval-every", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 step with nothing to predict" in done.stdout
    assert "no figures: nothing in the set is predicted" in done.stdout
    for wrong in ("loss 0.0", "0.000 bits", "bits_per_byte 0"):
        assert wrong not in done.stdout
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [line for line in lines if line["kind"] in ("train", "eval")]
    assert len(figures) == 3
    assert all(line["loss"] is None and line["bits_per_byte"] is None for line in figures)
    assert figures[0]["empty_steps"] == 1
    shown = progress_line(2, 2, {"loss": None, "empty_steps": 2, "lr": 0.1}, 0)
    assert shown.startswith("step 2/2  2 steps with nothing to predict  lr")


def test_a_noise_curve_without_a_figure_has_no_number():
    points = [
        {"run": "a", "kind": "drop", "rate": rate, "micro_f1": value}
        for rate, value in ((0.0, None), (0.1, 0.5), (0.1, None))
    ]
    assert mean(points, "a", "drop", 0.0) is None
    assert mean(points, "a", "drop", 0.1) == 0.5
    assert "| a, drop | – | 0.5000 |" in noise_table(points)


@pytest.mark.parametrize("name", ["empty", "word"])
def test_counting_alone_has_no_figure_over_nothing(name, sets, monkeypatch, capsys):
    from elemdist.errors import UserError
    from tests.bench import bench_baselines

    train, data = str(sets / "word" / "train"), str(sets / name / "val")
    monkeypatch.setattr("sys.argv", ["bench baselines", "--train", train, "--eval", data])
    with pytest.raises(UserError, match="is empty" if name == "empty" else "nothing in it"):
        bench_baselines.main()
    assert capsys.readouterr().out == ""
    assert torch.is_grad_enabled()
