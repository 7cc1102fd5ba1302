"""``elemdist report``; tests/browser/ looks at it with a browser."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from elemdist import compare_table
from elemdist.attempts import Attempt
from elemdist.errors import UserError
from elemdist.multilabel import by_frequency, calibration, label_counts, multilabel_figures
from elemdist.report import run
from elemdist.report_settings import ReportSettings
from elemdist.resampling import intervals
from elemdist.stop import write_end
from tests.conftest import elemdist, expect_user_error

NAME = "<script>alerted = true<\\script> & $x$ 'a' \"b\" 日本"


def made_run(path: Path, steps: int = 100) -> Path:
    """A run folder as training leaves it, with the figures that are looked at."""
    path.mkdir(parents=True)
    lines = []
    for step in range(10, 10 * steps + 1, 10):
        figures = {"loss": math.exp(-step / 300), "lr": 1e-3, "bytes_per_s": 5e4 + step}
        lines.append({"kind": "train", "step": step, "time_s": step / 2, **figures})
        if step % 200 == 0:
            scores = {"loss": 0.5, "micro_f1": 1 - 1 / step, "macro_f1": 0.5}
            lines.append({"kind": "eval", "step": step, "time_s": step / 2, **scores})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "settings.yaml").write_text("objective: classify\nmodel: {layers: 7}\n")
    (path / "environment.json").write_text('{"python": "3.11", "packages": {"torch": "<2>"}}')
    for number in (1, 2):
        Attempt.begin(path).write("end", {"step": 500 * number, "reason": f"reason <{number}>"})
    write_end(path, "done", 10 * steps)
    return path


class Words(HTMLParser):
    """All text of a page, and whether every element was ended in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        assert self.open == [], self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def has(self, words: str) -> bool:
        return any(words in part for part in self.words)


def page_of(out: Path, *words: str | Path) -> Words:
    done = elemdist("report", *words, "--out", out)
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    assert not re.search(r"""(src|href)=["'](?!#)""", text.replace("xlink:href", "href"))
    assert "url(http" not in text
    return Words(text)


def test_a_run_is_told_wholly(tmp_path):
    found = page_of(tmp_path / "r.html", made_run(tmp_path / "my run"))
    assert "script" not in found.tags
    for words in (
        "my run", "model.layers", "7", "3.11", "<2>", "reason <1>", "0.9990", "1,000", "8:20",
        "elemdist train 'my run/settings.yaml' --run-dir NEW", "loss (nats)", "F1 at evaluation",
    ):  # fmt: skip
        assert found.has(words), words
    # What is the default stands once, among all settings, the other also above them.
    assert found.words.count("model.layers") == 2
    assert found.words.count("model.width") == 1


def test_names_of_any_kind_are_text(tmp_path):
    found = page_of(tmp_path / "r.html", made_run(tmp_path / NAME), made_run(tmp_path / "other"))
    assert "script" not in found.tags
    assert found.has(NAME)
    assert found.has(f"blue {NAME}, red other")


def test_a_long_run_makes_no_large_file(tmp_path):
    out = tmp_path / "r.html"
    page_of(out, made_run(tmp_path / "run", steps=10_000))
    assert out.stat().st_size < 500_000


def test_figures_of_evaluations_and_of_noise(tmp_path):
    rng = np.random.default_rng(0)
    truth_BL = rng.random((80, 3)) < 0.4
    score_BL = (truth_BL + rng.random((80, 3))) / 2
    labels = ["earn <b>", "acq", "日本"]
    found = {"data": "shards/<val>", **multilabel_figures(score_BL, truth_BL, labels, 0.5)}
    found["intervals"] = intervals(score_BL, truth_BL, np.full(3, 0.5), 100)[0]
    found["calibration_bins"] = calibration(score_BL, truth_BL)["bins"]
    counts = np.array([90, 20, 3])
    found["by_frequency"] = by_frequency(label_counts(score_BL, truth_BL, 0.5), counts)
    found["of_tomorrow"] = [{"a": 1}]
    judged = tmp_path / "eval.json"
    judged.write_text(json.dumps(found))
    points = [
        {"run": "a", "kind": "mixed", "rate": rate, "seed": 1, "micro_f1": 0.9 - rate}
        for rate in (0.0, 0.1)
    ]
    noisy = tmp_path / "noise.json"
    noisy.write_text(json.dumps({"settings": {}, "points": points}))
    page = page_of(tmp_path / "r.html", "--figures", json.dumps([str(judged), str(noisy)]))
    low, high = found["intervals"]["micro_f1"]
    for words in ("earn <b>", "日本", "data: shards/<val>", f"{low:.4f} to {high:.4f}", "head",
                  "Calibration", "1: a, mixed", "0.8000", "10%"):  # fmt: skip
        assert page.has(words), words


def test_a_comparison(tmp_path):
    folder = tmp_path / "compared"
    folder.mkdir()
    figures = {
        name: {seed: {"micro_f1": value + seed / 100, "training": []} for seed in (1, 2)}
        for name, value in (("ours", 0.8), ("theirs <i>", 0.7))
    }
    found = compare_table.results(figures, ["micro_f1"], folder, 0)
    found |= {"budget": {"steps": 5}, "seeds": [1, 2], "failed": {"third, seed 1": "broke <x>"}}
    (folder / "results.json").write_text(json.dumps(found))
    page = page_of(tmp_path / "r.html", folder)
    for words in ("0.8150 ± 0.0071", "theirs <i>: micro_f1", "-0.1000", "broke <x>", "5 steps"):
        assert page.has(words), words


def test_mistakes(tmp_path):
    run_dir = made_run(tmp_path / "run")
    expect_user_error(elemdist("report"), "nothing to report")
    expect_user_error(elemdist("report", run_dir, "--out", "r.pdf"), ".html")
    expect_user_error(
        elemdist("report", tmp_path / "none", "--out", "r.html"), "no such run folder"
    )
    other = tmp_path / "other.json"
    for content in ("[1]", "{"):
        other.write_text(content)
        done = elemdist(
            "report", "--figures", json.dumps([str(other)]), "--out", tmp_path / "r.html"
        )
        expect_user_error(done, str(other))
    for wrong in (
        {"intervals": [1], "micro_f1": 0.5}, {"labels": {"a": 1}},
        {"intervals": {"micro_f1": [1]}, "micro_f1": 0.5}, {"calibration_bins": [1]},
        {"points": [{}]}, {"points": [1]}, {"points": [{"run": "a", "kind": [], "rate": 0}]},
        {"intervals": {"micro_f1": ["a", "b"]}, "micro_f1": 0.5},
    ):  # fmt: skip
        other.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"other\.json"):
            run(ReportSettings(figures=[str(other)], out=str(tmp_path / "r.html")))
    (run_dir / "results.json").write_text("{}")
    with pytest.raises(UserError, match="no results of"):
        run(ReportSettings([str(run_dir)], out=str(tmp_path / "r.html")))
    assert not (tmp_path / "r.html").exists()
    (tmp_path / "r.html").mkdir()
    done = elemdist("report", made_run(tmp_path / "fine"), "--out", tmp_path / "r.html")
    expect_user_error(done, "cannot be written")
