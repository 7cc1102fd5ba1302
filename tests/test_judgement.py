"""Thresholds, intervals, calibration and label groups, against slower ways to the same numbers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from elemdist import resampling, thresholds
from elemdist.multilabel import (
    by_frequency,
    calibration,
    label_counts,
    label_groups,
    multilabel_figures,
)
from elemdist.resampling import RESAMPLED, draws, interval, intervals, resampled
from tests.conftest import run_command


def made(seed: int, documents: int = 200, labels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Scores that know something, of which many are equal, and the truth."""
    rng = np.random.default_rng(seed)
    truth_BL = rng.random((documents, labels)) < np.linspace(0.02, 0.5, labels)
    score_BL = (0.3 * truth_BL + rng.random((documents, labels))) / 1.3
    return score_BL.round(2), truth_BL


@given(seed=st.integers(0, 10_000), documents=st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_no_threshold_is_better_than_the_one_that_is_chosen(seed, documents):
    score_BL, truth_BL = made(seed, documents)
    if not truth_BL.any():
        assert thresholds.best(score_BL, truth_BL) == 0.5
        return
    f1 = lambda at: f1_score(truth_BL.ravel(), (score_BL >= at).ravel())  # noqa: E731
    every = [*np.unique(score_BL), 2.0]
    assert f1(thresholds.best(score_BL, truth_BL)) == max(map(f1, every))


def test_a_label_with_few_documents_takes_the_threshold_of_all():
    score_BL, truth_BL = made(1)
    truth_BL[:, 0] = False
    truth_BL[:4, 0] = True
    truth_BL[4:8, 1] = truth_BL[4, 2] = True
    chosen = thresholds.per_label(score_BL, truth_BL)
    assert chosen[0] == thresholds.best(score_BL, truth_BL)
    for label in range(1, 6):
        assert chosen[label] == thresholds.best(score_BL[:, label], truth_BL[:, label])
    tuned = multilabel_figures(score_BL, truth_BL, list("abcdef"), chosen)
    assert tuned["threshold"] is None
    assert tuned["labels"]["c"]["threshold"] == chosen[2]
    assert (
        tuned["macro_f1"] > multilabel_figures(score_BL, truth_BL, list("abcdef"), 0.9)["macro_f1"]
    )


CASES = {
    "ties": lambda rng: (rng.integers(0, 3, (12, 4)) / 4, rng.random((12, 4)) < 0.3),
    "all scores equal": lambda rng: (np.full((8, 3), 0.5), rng.random((8, 3)) < 0.4),
    "one label": lambda rng: (rng.random((15, 1)), rng.random((15, 1)) < 0.2),
    "one document": lambda rng: (rng.random((1, 6)), rng.random((1, 6)) < 0.5),
    "one pair": lambda rng: (rng.random((1, 1)), rng.random((1, 1)) < 0.5),
    "an absent label": lambda rng: (rng.random((9, 3)), rng.random((9, 3)) < (0.5, 0, 0.5)),
    "a label of all": lambda rng: (rng.random((9, 3)), rng.random((9, 3)) < (0.5, 2, 0.5)),
    "labels of none or all": lambda rng: (rng.random((7, 4)), rng.random((1, 4)) < [[0.5]] * 7),
    "all positive": lambda rng: (rng.random((6, 3)), np.ones((6, 3), bool)),
    "all negative": lambda rng: (rng.random((6, 3)), np.zeros((6, 3), bool)),
    "rare": lambda rng: (rng.random((40, 5)).round(1), rng.random((40, 5)) < 0.02),
    "many": lambda rng: (rng.random((50, 7)).round(2), rng.random((50, 7)) < 0.7),
}


def by_scikit_learn(score_BL, truth_BL, threshold) -> dict[str, float | None]:
    """The figures, and None where the definition says that there is none."""
    guess_BL, some_L = score_BL >= threshold, truth_BL.any(0)
    both_L = some_L & ~truth_BL.all(0)
    pairs = truth_BL.any() and not truth_BL.all()
    macro = {"average": "macro", "zero_division": 0}
    found = {"micro_f1": None, "macro_f1": None}
    if truth_BL.any() or guess_BL.any():
        found["micro_f1"] = f1_score(truth_BL.ravel(), guess_BL.ravel(), zero_division=0)
    if some_L.any():
        if some_L.sum() == 1:
            found["macro_f1"] = f1_score(truth_BL[:, some_L][:, 0], guess_BL[:, some_L][:, 0])
        else:
            found["macro_f1"] = f1_score(truth_BL[:, some_L], guess_BL[:, some_L], **macro)
    for name, score in (("roc_auc", roc_auc_score), ("average_precision", average_precision_score)):
        each = [score(truth_BL[:, k], score_BL[:, k]) for k in np.flatnonzero(both_L)]
        found[f"macro_{name}"] = np.mean(each) if each else None
        found[f"micro_{name}"] = score(truth_BL.ravel(), score_BL.ravel()) if pairs else None
    return found


@pytest.mark.parametrize("case", CASES)
def test_figures_and_those_of_draws_are_scikit_learns_or_none(case):
    """Of a draw: those of the documents as often as they are drawn."""
    for seed in range(8):
        score_BL, truth_BL = CASES[case](np.random.default_rng(seed))
        truth_BL = np.broadcast_to(truth_BL, score_BL.shape).copy()
        if case == "labels of none or all":
            truth_BL[:] = truth_BL[0]
        documents, labels = score_BL.shape
        expected = by_scikit_learn(score_BL, truth_BL, 0.5)
        figures = multilabel_figures(score_BL, truth_BL, [str(k) for k in range(labels)], 0.5)
        assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        got = resampled(score_BL, truth_BL, np.full(labels, 0.5), 6)
        assert set(got) == set(expected)
        for number, weight_B in enumerate(draws(documents, 6)):
            drawn = np.repeat(np.arange(documents), weight_B)
            assert len(drawn) == documents
            wanted = by_scikit_learn(score_BL[drawn], truth_BL[drawn], 0.5)
            for name, value in wanted.items():
                assert got[name][number] == pytest.approx(
                    np.nan if value is None else value, abs=1e-12, nan_ok=True
                ), (case, seed, number, name)


def test_draws_in_blocks_are_the_draws(monkeypatch):
    """However many are in memory at once; and the same for the same documents, each time."""
    score_BL, truth_BL = made(2, 60)
    threshold_L = np.linspace(0.3, 0.6, 6)
    whole = resampled(score_BL, truth_BL, threshold_L, 150)
    for at_once, size in ((1, 1 << 20), (7, 1 << 20), (64, 1)):
        monkeypatch.setattr(resampling, "DRAWS_AT_ONCE", at_once)
        monkeypatch.setattr(resampling, "WEIGHT_BYTES", size)
        parts = resampled(score_BL, truth_BL, threshold_L, 150)
        assert all(np.array_equal(parts[name], whole[name]) for name in whole)
    together = np.random.default_rng(resampling.SEED).multinomial(60, np.full(60, 1 / 60), 150)
    assert np.array_equal(list(draws(60, 150))[1:], together)


def test_a_draw_for_which_a_figure_is_not_defined_does_not_count():
    """Two of 40 documents have the label: an eighth of the draws have neither."""
    truth_BL = np.arange(40)[:, None] < 2
    score_BL = np.linspace(1, 0.4, 40)[:, None]
    bounds, left_out = intervals(score_BL, truth_BL, np.array([0.9]), 500)
    assert set(left_out) == set(RESAMPLED) - {"micro_f1"}
    assert set(left_out.values()) == {left_out["macro_f1"]}
    assert 30 < left_out["macro_f1"] < 110
    assert bounds["micro_roc_auc"] == [1.0, 1.0], "no draw counts as 0"
    assert bounds["macro_f1"][0] > 0
    none = intervals(score_BL, truth_BL & False, np.array([0.9]), 50)[0]
    assert none == {name: [0.0, 0.0] if name == "micro_f1" else None for name in RESAMPLED}


def test_too_few_draws_make_no_interval():
    value_R = np.array([0.5, *[np.nan] * 900, *np.linspace(0, 1, 39)])
    assert interval(value_R) is None
    assert interval(np.append(value_R, 0.5)) == pytest.approx([0.025, 0.975], abs=0.02)
    assert interval(np.array([np.nan, *np.linspace(0, 1, 100)])) is None
    assert interval(np.array([0.5, 0.25, 0.75])) == pytest.approx([0.2625, 0.7375])


def test_intervals_hold_the_figure_and_are_narrower_with_more_documents():
    widths = []
    for documents in (100, 2000):
        score_BL, truth_BL = made(3, documents)
        found, left_out = intervals(score_BL, truth_BL, np.full(6, 0.5), 300)
        figures = multilabel_figures(score_BL, truth_BL, list("abcdef"), 0.5)
        assert list(found) == list(RESAMPLED)
        assert not {name for name in left_out if name.startswith("micro")}
        for name, (low, high) in found.items():
            assert low < figures[name] < high
        widths.append(found["micro_f1"][1] - found["micro_f1"][0])
    assert widths[1] < widths[0] / 3
    assert intervals(score_BL, truth_BL, np.full(6, 0.5), 0) == ({}, {})


def test_the_bootstrap_takes_little_more_memory_than_its_scores():
    """Beside the 9 bytes of a pair 12 more at most, and what numba takes."""
    code = (
        "import resource, numpy as np\n"
        "rng = np.random.default_rng(0); truth = rng.random((60_000, 40)) < 0.02\n"
        "score = (rng.random(truth.shape) + truth) / 2; peak = lambda: resource.getrusage("
        "resource.RUSAGE_SELF).ru_maxrss\n"
        "from elemdist.resampling import intervals\n"
        "intervals(score[:50], truth[:50], 0.5, 2); before = peak()\n"
        "found, _ = intervals(score, truth, 0.5, 64); print(peak() - before, found['micro_f1'])"
    )
    done = run_command(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) < 90_000, done.stdout


def test_calibration_of_probabilities_that_are_right_and_of_some_that_are_not():
    rng = np.random.default_rng(4)
    score_BL = rng.random((4000, 5))
    truth_BL = rng.random((4000, 5)) < score_BL
    found = calibration(score_BL, truth_BL)
    assert found["expected_calibration_error"] < 0.02
    assert found["brier_score"] == pytest.approx(
        brier_score_loss(truth_BL.ravel(), score_BL.ravel())
    )
    assert sum(one["pairs"] for one in found["bins"]) == 20_000
    assert all(abs(one["probability"] - one["positives"]) < 0.05 for one in found["bins"])
    over = calibration(0.5 + score_BL / 2, truth_BL)
    assert over["expected_calibration_error"] == pytest.approx(0.25, abs=0.02)


def test_groups_of_labels_by_their_training_documents():
    count_L = np.array([3, 500, 100, 11, 300, 10, 0, 90])
    groups = {name: places.tolist() for name, places in label_groups(count_L).items()}
    # 1,014 labels in all, half of them 507: the second most frequent label takes part in it.
    assert groups == {"head": [1, 4], "middle": [2, 3, 7], "tail": [0, 5, 6]}
    score_BL, truth_BL = made(5, labels=8)
    found = by_frequency(label_counts(score_BL, truth_BL, 0.5), count_L)
    assert found["head"]["training_documents"] == [300, 500]
    some = [2, 3, 7]
    middle = multilabel_figures(score_BL[:, some], truth_BL[:, some], list("xyz"), 0.5)
    assert found["middle"]["macro_f1"] == middle["macro_f1"]
    assert sum(group["labels"] for group in found.values()) == 8
    none = by_frequency(label_counts(score_BL, truth_BL, 0.5), np.full(8, 100))
    assert none["tail"] == {"labels": 0}
