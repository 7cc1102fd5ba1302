"""Thresholds, intervals, calibration and label groups, against slower ways to the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score

from elemdist import thresholds
from elemdist.multilabel import by_frequency, calibration, label_groups, multilabel_figures
from elemdist.resampling import draws, intervals, resampled


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


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1", "micro_roc_auc"])
def test_figures_of_draws_are_those_of_the_drawn_documents(metric):
    score_BL, truth_BL = made(2, 60)
    threshold_L = np.linspace(0.3, 0.6, 6)
    weights_RB = draws(60, 12)
    got = resampled(metric, score_BL, truth_BL, threshold_L, weights_RB)
    for value, weight_B in zip(got, weights_RB, strict=True):
        drawn = np.repeat(np.arange(60), weight_B)
        score, truth = score_BL[drawn], truth_BL[drawn]
        guess, present = score >= threshold_L, truth.any(0)
        if metric == "micro_f1":
            expected = f1_score(truth, guess, average="micro")
        elif metric == "macro_f1":
            expected = f1_score(truth[:, present], guess[:, present], average="macro")
        else:
            expected = roc_auc_score(truth.ravel(), score.ravel())
        assert value == pytest.approx(expected, abs=1e-12)
    assert weights_RB.sum(1).tolist() == [60] * 13


def test_intervals_hold_the_figure_and_are_narrower_with_more_documents():
    widths = []
    for documents in (100, 2000):
        score_BL, truth_BL = made(3, documents)
        found = intervals(score_BL, truth_BL, np.full(6, 0.5), 300)
        figures = multilabel_figures(score_BL, truth_BL, list("abcdef"), 0.5)
        assert list(found) == ["micro_f1", "macro_f1", "micro_roc_auc"]
        for name, (low, high) in found.items():
            assert low < figures[name] < high
        widths.append(found["micro_f1"][1] - found["micro_f1"][0])
    assert widths[1] < widths[0] / 3
    assert intervals(score_BL, truth_BL, np.full(6, 0.5), 0) == {}


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
    found = by_frequency(score_BL, truth_BL, list("abcdefgh"), 0.5, count_L)
    assert found["head"]["training_documents"] == [300, 500]
    some = [2, 3, 7]
    middle = multilabel_figures(score_BL[:, some], truth_BL[:, some], list("xyz"), 0.5)
    assert found["middle"]["macro_f1"] == middle["macro_f1"]
    assert sum(group["labels"] for group in found.values()) == 8
    none = by_frequency(score_BL, truth_BL, list("abcdefgh"), 0.5, np.full(8, 100))
    assert none["tail"] == {"labels": 0}
