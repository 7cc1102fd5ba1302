"""Comparisons end to end, small; and what their tests say of numbers whose answer is known."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from elemdist import compare_table
from elemdist.attention import Segments
from elemdist.commandline import parse
from elemdist.compare import check_entries
from elemdist.compare_settings import CompareSettings
from elemdist.compare_stages import Stages
from elemdist.model import Model
from elemdist.model_config import Symbols, model_config
from elemdist.peers import documents_of, learn_wordpiece
from elemdist.stop import read_end
from tests.conftest import ELEMDIST, REPOSITORY, elemdist, expect_user_error, wait_until

TINY = {
    "model.layers": 1, "model.width": 32, "batch.global_samples": 16, "batch.micro_samples": 8,
    "optim.warmup_steps": 5, "optim.lr": 5e-3, "classify.pooling": "max",
}  # fmt: skip
SHARD = {"n": 32, "v": 8}


def comparison(corpus: Path, **changes: object) -> dict:
    classify = {"objective": "classify", **TINY}
    return {
        "text": str(corpus),
        "split": "train=0.7,val=0.15,test=0.15",
        "input": {"labels_field": "labels", "id_field": "id"},
        "budget": {"steps": 30},
        "seeds": [1, 2],
        "device": "cpu",
        "models": [
            {"name": "elementwise", "settings": classify, "shard": SHARD},
            {"name": "WordPiece | twin", "settings": classify, "shard": SHARD, "vocabulary": 300},
            {"name": "svm", "baseline": "svm"},
        ],
    } | changes


@pytest.fixture
def write(tmp_path: Path):
    def write(tree: dict) -> Path:
        path = tmp_path / "comparison.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


def test_models_and_baselines_are_compared_on_the_same_documents(corpus, tmp_path, write):
    out = tmp_path / "out"
    file = write(comparison(corpus))
    done = elemdist("compare", file, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "results.json").read_text())
    assert list(found["models"]) == ["elementwise", "WordPiece | twin", "svm"]
    for name, model in found["models"].items():
        assert set(model["figures"]) == {"1", "2"}
        one = model["summary"]["micro_f1"]
        values = list(one["seeds"].values())
        assert one["mean"] == pytest.approx(np.mean(values))
        assert one["deviation"] == pytest.approx(np.std(values, ddof=1))
        scores = np.load(out / "scores" / f"{name}-1.npz", allow_pickle=False)
        assert len(scores["truth"]) == model["figures"]["1"]["documents"]
    assert found["models"]["svm"]["summary"]["micro_f1"]["mean"] > 0.9, "the topics' words differ"
    ours = found["models"]["elementwise"]["figures"]["1"]["training"]
    assert [(phase["phase"], phase["steps"]) for phase in ours] == [("train", 30)]
    twin = found["models"]["WordPiece | twin"]
    assert twin["figures"]["1"]["training"][0]["parameters"] > ours[0]["parameters"]
    documents = twin["against_first"]["micro_f1"]["documents"]
    assert documents["interval"][0] <= documents["difference"] <= documents["interval"][1]
    assert done.stdout.startswith((out / "table.md").read_text())
    assert "| WordPiece \\| twin | " in done.stdout
    assert (out / "figure.svg").read_text().startswith("<?xml")

    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/**/*") if path.is_file()}
    (out / "figures" / "elementwise-2.json").unlink()
    again = elemdist("compare", file, "--out", out)
    assert again.stdout == done.stdout
    after = {path: path.stat().st_mtime_ns for path in out.glob("runs/**/*") if path.is_file()}
    assert before == after, "nothing was trained again"
    other = elemdist("compare", file, "--out", out, "--thresholds", "fixed")
    expect_user_error(other, "other settings (thresholds)", "name another folder")


def test_noise(corpus, tmp_path, write):
    """Every model reads the same errors; none is what evaluation said; nothing is done twice."""
    out, kinds = tmp_path / "out", ["drop", "mixed"]
    tree = comparison(corpus, seeds=[1], noise={"kinds": kinds, "rates": [0.0, 0.4]})
    command = ("compare", write(tree), "--out", out)
    done = elemdist(*command)
    assert done.returncode == 0, done.stderr
    points = json.loads((out / "noise.json").read_text())["points"]
    assert len(points) == 2 * 2 * 2, "the SVM has none"
    found = json.loads((out / "results.json").read_text())["models"]
    for point in points:
        calm = found[point["run"]]["figures"]["1"]
        if point["rate"]:
            assert point["micro_f1"] < calm["micro_f1"] - 0.01
        else:
            for name in ("micro_f1", "macro_f1", "micro_roc_auc"):
                assert point[name] == pytest.approx(calm[name], abs=1e-6)
    for kind in kinds:
        assert f"| WordPiece \\| twin, {kind} | " in done.stdout
    times = {path: path.stat().st_mtime_ns for path in out.glob("noise/*")}
    assert len(times) == 3
    assert elemdist(*command).stdout == done.stdout
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("noise/*")}
    page = tmp_path / "page.html"
    assert elemdist("report", out, "--out", page).returncode == 0
    text = page.read_text()
    assert "micro-F1 against noise" in text
    assert "WordPiece | twin, drop" in text

    tree["noise"] = {"kinds": ["typos"]}
    expect_user_error(elemdist("compare", write(tree), "--out", out), "no 'typos'")


def test_a_comparison_that_is_interrupted_goes_on(corpus, tmp_path, write):
    out = tmp_path / "out"
    tree = comparison(corpus, seeds=[3], budget={"bytes": 60_000})
    tree["models"] = tree["models"][:1]
    tree["models"][0] |= {"pretrain_settings": dict(TINY, **{"model.norm": "post"})}
    del tree["models"][0]["pretrain_settings"]["classify.pooling"]
    tree["models"][0]["pretrain"] = [str(REPOSITORY / "configs" / "demo" / "pretrain.yaml")]
    command = [ELEMDIST, "compare", str(write(tree)), "--out", str(out)]
    first = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    run = out / "runs" / "elementwise" / "seed-3"
    metrics = run / "pretrain" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() or first.poll() is not None, "the third pre-training")
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) != 0
    done = elemdist("compare", *command[2:])
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "results.json").read_text())
    phases = found["models"]["elementwise"]["figures"]["3"]["training"]
    assert [phase["phase"] for phase in phases] == ["pretrain", "train"]
    spent = 0.0
    for phase in ("pretrain", "train"):
        trial = json.loads((out / "trials" / f"elementwise-{phase}.json").read_text())
        assert trial["flops"] > 1e6
        spent += trial["bytes"] * read_end(run / phase)["step"]
    assert spent == pytest.approx(60_000, rel=0.1)
    assert "encoder weights from" in (out / "logs" / "elementwise-3-train.log").read_text()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"budget": {}}, ["budget: set one of seconds, steps, bytes, flops"]),
        ({"budget": {"steps": 3, "bytes": 3}}, ["budget: set one of"]),
        ({"seeds": [1, 1]}, ["seeds: "]),
        ({"models": []}, ["models: there is none"]),
        ({"models": [{"name": "a/b"}]}, ["models: 'a/b'"]),
        ({"models": [{"name": "a", "settings": {"model.layer": 2}}]}, ["models: a: ", "layers"]),
        ({"models": [{"name": "a", "recipe": ["none.yaml"]}]}, ["models: a: ", "none.yaml"]),
        ({"models": [{"name": "a", "baseline": "svn"}]}, ["baseline", "svm"]),
        ({"input": {}}, ["it classifies", "labels_field"]),
        ({"text": "/none"}, ["elemdist shard: ", "/none"]),
        (
            {
                "budget": {"flops": 1e9},
                "models": [
                    {"name": "a", "settings": {"objective": "classify", "classify.refit": 1.0}}
                ],
            },
            ["models: a: classify.refit 1: a budget of FLOPs does not count", "budget.seconds"],
        ),
        ({"metrics": ["micro_f2"], "seeds": [1]}, ["metrics: ", "micro_f1"]),
    ],
)
def test_mistakes(changes, parts, corpus, tmp_path, write):
    tree = comparison(corpus, budget={"steps": 1})
    tree["models"] = tree["models"][:1]
    done = elemdist("compare", write(tree | changes), "--out", tmp_path / "out")
    expect_user_error(done, *parts)


def test_a_training_that_fails_is_left_out_and_said(corpus, tmp_path, write):
    tree = comparison(corpus, budget={"steps": 2}, seeds=[1])
    bad = {"model.width": 30, "objective": "classify"}  # no multiple of v
    tree["models"] = [*tree["models"][:1], {"name": "bad", "settings": bad, "shard": SHARD}]
    done = elemdist("compare", write(tree), "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "Missing: bad, seed 1: elemdist train: " in done.stdout
    assert "30 is not a multiple of v=8" in done.stdout


def test_the_documents_of_shards_are_those_of_the_corpus(corpus, labelled):
    texts, labels_DL = documents_of(labelled / "train")
    records = [json.loads(line) for line in corpus.read_text().splitlines()][:-50]
    assert texts == [record["text"] for record in records]
    assert labels_DL.sum(1).tolist() == [len(set(record["labels"])) for record in records]


def test_a_vocabulary_is_as_large_as_told():
    words = [f"{a}{b} " for a in "abcdefghij" for b in "klmnopqrst"] * 3
    tree = json.loads(learn_wordpiece(["".join(words)], 60, lowercase=True))
    assert len(tree["model"]["vocab"]) == 60


def save_scores(folder: Path, name: str, right: np.ndarray, truth_BL: np.ndarray) -> dict:
    """Scores of a model that is right about these documents, and predicts nothing of others."""
    score_BL = np.where(truth_BL & right[:, None], 0.9, 0.1)
    np.savez(folder / f"{name}-1.npz", probabilities=score_BL, truth=truth_BL)
    return {"thresholds": [0.5] * truth_BL.shape[1], "micro_f1": 0.0}


def test_a_difference_between_models_is_found_and_one_that_is_none_is_not(tmp_path):
    rng = np.random.default_rng(0)
    truth_BL = rng.random((400, 5)) < 0.3
    base = rng.random(400) < 0.7
    alike = rng.permutation(base)
    better = base | (rng.random(400) < 0.3)
    models = {"base": base, "alike": alike, "better": better}
    figures = {k: {1: save_scores(tmp_path, k, right, truth_BL)} for k, right in models.items()}
    found = compare_table.results(figures, ["micro_f1"], tmp_path, 500)
    ask = lambda name: found["models"][name]["against_first"]["micro_f1"]["documents"]  # noqa: E731
    assert ask("better")["p"] < 0.01
    assert ask("better")["interval"][0] > 0
    assert ask("alike")["p"] > 0.2
    assert ask("alike")["undefined_draws"] == 0
    same = compare_table.results({"base": figures["base"], "again": figures["base"]}, ["micro_f1"],
                                 copied(tmp_path, "base", "again"), 500)  # fmt: skip
    same = same["models"]["again"]["against_first"]["micro_f1"]["documents"]
    assert (same["difference"], same["p"]) == (0.0, 1.0)


def copied(folder: Path, name: str, other: str) -> Path:
    (folder / f"{other}-1.npz").write_bytes((folder / f"{name}-1.npz").read_bytes())
    return folder


def test_a_difference_in_what_is_not_defined_has_neither_p_nor_interval(tmp_path):
    """Three of 60 documents have the label: 5 % of the draws have none of them."""
    truth_BL = np.arange(60)[:, None] < 3
    half = np.arange(60) < 2
    figures = {
        name: {
            1: save_scores(tmp_path, name, right, truth_BL)
            | {"micro_precision": value, "micro_roc_auc": 0.5}
        }
        for name, right, value in (("none", half < 0, None), ("half", half, 1.0))
    }
    metrics = ["micro_f1", "micro_roc_auc", "micro_precision"]
    found = compare_table.results(figures, metrics, tmp_path, 400)
    tests = found["models"]["half"]["against_first"]
    undefined = tests["micro_f1"]["documents"]["undefined_draws"]
    assert 5 < undefined < 40
    assert tests["micro_f1"]["documents"]["interval"][0] == 0.0
    assert tests["micro_roc_auc"]["documents"]["undefined_draws"] == undefined
    assert found["models"]["none"]["summary"]["micro_precision"]["mean"] is None
    assert tests["micro_precision"] == {"seeds": {"difference": None, "p": None}}
    never = {
        name: {1: save_scores(tmp_path, name, half, truth_BL & False)} for name in ("none", "half")
    }
    documents = compare_table.results(never, ["micro_f1"], tmp_path, 50)["models"]["half"]
    assert documents["against_first"]["micro_f1"]["documents"] == {
        "difference": None, "interval": None, "p": None, "resamples": 50, "undefined_draws": 50,
    }  # fmt: skip


def test_seeds_that_all_say_the_same_are_told_from_some_that_do_not():
    ours, theirs = {1: 0.80, 2: 0.82, 3: 0.81}, {1: 0.70, 2: 0.71, 3: 0.72}
    found = compare_table.over_seeds(ours, theirs)
    assert found["difference"] == pytest.approx(0.1)
    assert found["p"] < 0.02
    mixed = compare_table.over_seeds({1: 0.70, 2: 0.72, 3: 0.73}, theirs)
    assert mixed["p"] > 0.1
    assert compare_table.over_seeds({1: 0.7}, {1: 0.6})["p"] is None


COMPARISONS = [
    path
    for path in sorted((REPOSITORY / "configs" / "compare").glob("*.yaml"))
    if "models:" in path.read_text()
]


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_the_comparisons_that_come_along(path, tmp_path):
    """Every model of every one of them can be built for the shards that it asks for."""
    words = [str(path), "--text", "news.jsonl", "--out", str(tmp_path / "out")]
    settings = parse(CompareSettings, words, "elemdist compare")
    settings.check()
    stages = Stages(settings)
    assert check_entries(settings, stages) == "classify"
    named = path.read_text()
    assert f"elemdist compare {path.relative_to(REPOSITORY)}" in named
    for entry in settings.models:
        if entry.baseline != "none":
            continue
        for phase in stages.phases(entry):
            one = phase.settings()
            shard = stages.shard_settings(entry)
            symbols = Symbols(1, 2, 3, entry.vocabulary) if entry.vocabulary else None
            config = model_config(one, shard["n"], shard["v"], ["a", "b"], symbols=symbols)
            rows_TV = torch.full((5, config.slots), 97, dtype=torch.uint8)
            if symbols:
                rows_TV = rows_TV.int()
            segments = Segments(torch.tensor([0, 5], dtype=torch.int32), [5])
            model = Model(config).eval()
            if one.objective == "classify":
                assert model(rows_TV, torch.arange(5), segments).shape == (1, 2)
            else:
                assert model.encoder(rows_TV, torch.arange(5), segments).shape[0] == 5
