"""``elemdist robustness`` end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import elemdist, expect_user_error


@pytest.fixture
def words(classifier: Path, corpus: Path) -> list[str]:
    shown = ["--kinds", '["drop", "mixed"]', "--rates", "[0, 0.9]", "--seeds", "[1, 2]"]
    return [str(classifier), "--text", str(corpus), "--documents", "60", *shown]


def test_noise_costs_what_the_curve_says(words, tmp_path, labelled):
    out, picture = tmp_path / "noise.json", tmp_path / "noise.svg"
    done = elemdist("robustness", *words, "--out", out, "--plot", picture)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert len(found["points"]) == 2 * (1 + 2)
    assert found["unknown_labels"] == {words[0]: 0}
    by_rate: dict[float, list[float]] = {}
    for point in found["points"]:
        by_rate.setdefault(point["rate"], []).append(point["micro_f1"])
    assert len(set(by_rate[0.0])) == 1
    assert by_rate[0.0][0] > max(by_rate[0.9])
    assert f"| {words[0]} | drop | {by_rate[0.0][0]:.4f} | " in done.stdout
    assert picture.read_text().startswith("<?xml")

    # What is there is not computed again, what is missing is, to the same result.
    known = found["points"].pop()
    found["points"][0]["micro_f1"] = 0.123
    out.write_text(json.dumps(found))
    again = elemdist("robustness", *words, "--out", out, "--micro-samples", "7")
    assert again.returncode == 0, again.stderr
    points = json.loads(out.read_text())["points"]
    assert points[0]["micro_f1"] == 0.123
    assert points[-1] == pytest.approx(known, abs=1e-5)
    other = elemdist("robustness", *words, "--out", out, "--overlong", "truncate")
    expect_user_error(other, "other settings")


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--kinds", '["swop"]'], "did you mean 'swap'"),
        (["--rates", "[2]"], "rates[0]: 2.0 is not in [0, 1]"),
        (["--labels-field", "topics"], "Set --labels-field"),
        (["--text-field", "body"], "'body'"),
        (["--text", "/none.jsonl"], "no such file or folder: /none.jsonl"),
        (["--plot", "a.bmp"], ".png"),
    ],
)
def test_mistakes(more, part, words):
    expect_user_error(elemdist("robustness", *words, *more), part)
