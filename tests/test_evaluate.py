from __future__ import annotations

import numpy as np
import pytest

from elemdist.evaluate import by_document
from elemdist.multilabel import multilabel_figures


def test_figures_of_a_case_worked_out_by_hand():
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    score = np.array([[0.9, 0.1, 0.0], [0.4, 0.8, 0.6], [0.2, 0.7, 0.1], [0.6, 0.3, 0.2]])
    got = multilabel_figures(score, truth, ["x", "y", "z"], 0.5)
    # predicted: x for 0 and 3, y for 1 and 2, z for 1
    assert got["micro_precision"] == pytest.approx(3 / 5)
    assert got["micro_recall"] == pytest.approx(3 / 4)
    assert got["micro_f1"] == pytest.approx(2 / 3)
    assert got["macro_f1"] == pytest.approx((0.5 + 1.0) / 2)  # z does not occur
    assert got["macro_roc_auc"] == pytest.approx((3 / 4 + 1.0) / 2)
    assert got["macro_average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + 1.0) / 2)
    assert got["labels"]["x"] == {
        "documents": 2, "threshold": 0.5, "predicted": 2, "correct": 1, "precision": 0.5,
        "recall": 0.5, "f1": 0.5,
    }  # fmt: skip
    assert (got["documents"], got["labels_present"]) == (4, 2)


def test_no_positives_at_all_gives_no_area_instead_of_a_wrong_one():
    got = multilabel_figures(np.full((3, 2), 0.1), np.zeros((3, 2), bool), ["x", "y"], 0.5)
    assert got["micro_roc_auc"] is None
    assert got["macro_average_precision"] is None
    assert got["micro_f1"] is None, "nothing is true, and nothing predicted"
    guessed = multilabel_figures(np.full((3, 2), 0.9), np.zeros((3, 2), bool), ["x", "y"], 0.5)
    assert (guessed["micro_f1"], guessed["micro_precision"]) == (0.0, 0.0)
    assert guessed["micro_recall"] is None
    assert guessed["labels"]["x"]["recall"] is None


def test_areas_over_all_pairs_where_no_label_has_both_a_true_and_a_false_document():
    truth = np.array([[True, False, True], [True, False, True]])
    score = np.array([[0.9, 0.1, 0.4], [0.6, 0.5, 0.5]])
    got = multilabel_figures(score, truth, ["x", "y", "z"], 0.5)
    assert got["micro_roc_auc"] == pytest.approx((2 + 2 + 1 + 1.5) / 8)
    assert got["micro_average_precision"] == pytest.approx((1 + 1 + 3 / 4 + 4 / 5) / 4)
    assert (got["macro_roc_auc"], got["macro_average_precision"]) == (None, None)


def test_a_document_cut_into_samples_counts_once_by_its_mean_logits():
    starts = np.array([True, False, True, True, False, False])
    logits = np.array([[1.0], [3.0], [5.0], [0.0], [3.0], [6.0]])
    assert by_document(starts, logits).tolist() == [[2.0], [5.0], [3.0]]


def test_one_label_alone_is_counted_like_any_other():
    truth, score = np.array([[True], [False], [True]]), np.array([[0.9], [0.8], [0.1]])
    got = multilabel_figures(score, truth, ["x"], 0.5)
    assert (got["micro_f1"], got["macro_f1"]) == (0.5, 0.5)
    assert got["micro_roc_auc"] == got["macro_roc_auc"] == 0.5


def test_figures_equal_those_of_scikit_learn():
    from sklearn.metrics import f1_score, precision_score, recall_score

    rng = np.random.default_rng(0)
    truth, score = rng.random((200, 6)) < 0.2, rng.random((200, 6))
    got = multilabel_figures(score, truth, list("abcdef"), 0.7)
    for average in ("micro", "macro"):
        for name, function in (
            ("f1", f1_score),
            ("precision", precision_score),
            ("recall", recall_score),
        ):
            expected = function(truth, score >= 0.7, average=average)
            assert got[f"{average}_{name}"] == pytest.approx(expected)
