"""Figures of a multilabel classifier, out of its scores and the truth.

Shape suffixes: see elemdist/rows.py; K pairs of a document and a label.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CALIBRATION_BINS = 10
TAIL_DOCUMENTS = 10  # in training, of a label of the tail
HEAD_SHARE = 0.5  # of all labels of training documents are those of the head


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where whole is 0."""
    return part / np.maximum(whole, 1)


def areas(truth_BL: np.ndarray, score_BL: np.ndarray) -> dict[str, float | None]:
    """Micro and macro ROC AUC and average precision, macro over the labels with both a positive
    and a negative document; None where there is no such label."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    both = np.flatnonzero(truth_BL.any(0) & ~truth_BL.all(0))
    result: dict[str, float | None] = {}
    for name, score in (("roc_auc", roc_auc_score), ("average_precision", average_precision_score)):
        micro = float(score(truth_BL.ravel(), score_BL.ravel())) if len(both) else None
        each = [score(truth_BL[:, k], score_BL[:, k]) for k in both]
        result |= {f"micro_{name}": micro, f"macro_{name}": float(np.mean(each)) if each else None}
    return result


def multilabel_figures(
    score_BL: np.ndarray, truth_BL: np.ndarray, labels: list[str], threshold: float | np.ndarray
) -> dict[str, Any]:
    """Micro and macro F1, precision, recall, ROC AUC and average precision, and per label.

    `score_BL` are probabilities, `truth_BL` booleans, `threshold` is that of all labels, or (L,).
    Macro figures are means over the labels that occur in `truth_BL`; a figure without meaning (no
    positives at all) is None.
    """
    threshold_L = np.broadcast_to(np.asarray(threshold, float), len(labels))
    guess_BL = score_BL >= threshold_L
    correct_L = (truth_BL & guess_BL).sum(0)
    guessed_L, true_L = guess_BL.sum(0), truth_BL.sum(0)
    each = {
        "precision": ratio(correct_L, guessed_L),
        "recall": ratio(correct_L, true_L),
        "f1": ratio(2 * correct_L, guessed_L + true_L),
    }
    correct, guessed, true = correct_L.sum(), guessed_L.sum(), true_L.sum()
    present = true_L > 0
    result: dict[str, Any] = {
        "documents": len(truth_BL),
        "threshold": threshold if isinstance(threshold, float) else None,
        "micro_f1": float(ratio(2 * correct, guessed + true)),
        "micro_precision": float(ratio(correct, guessed)),
        "micro_recall": float(ratio(correct, true)),
    }
    for name, figure_L in each.items():
        result[f"macro_{name}"] = float(figure_L[present].mean()) if present.any() else None
    result |= areas(truth_BL, score_BL)
    result["labels_present"] = int(present.sum())
    result["labels"] = {
        label: {
            "documents": int(true_L[k]),
            "threshold": float(threshold_L[k]),
            "predicted": int(guessed_L[k]),
            "correct": int(correct_L[k]),
            **{name: float(figure_L[k]) for name, figure_L in each.items()},
        }
        for k, label in enumerate(labels)
    }
    return result


def calibration(score_BL: np.ndarray, truth_BL: np.ndarray) -> dict[str, Any]:
    """How far probabilities are what they say, over all pairs of a document and a label.

    Returns:
        expected_calibration_error: the mean distance of probability and share of positives, over
            pairs in bins of equal width (Guo et al. 2017, arXiv 1706.04599).
        brier_score: the mean squared distance of probability and truth.
        bins: probability, positives (their share) and pairs of each that has any, for a diagram.
    """
    score_K, truth_K = score_BL.ravel(), truth_BL.ravel()
    place_K = np.minimum((score_K * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    parts = [np.flatnonzero(place_K == place) for place in range(CALIBRATION_BINS)]
    bins = [
        {
            "probability": float(score_K[part].mean()),
            "positives": float(truth_K[part].mean()),
            "pairs": len(part),
        }
        for part in parts
        if len(part)
    ]
    error = sum(one["pairs"] * abs(one["probability"] - one["positives"]) for one in bins)
    return {
        "expected_calibration_error": error / max(1, len(score_K)),
        "brier_score": float(((score_K - truth_K) ** 2).mean()) if len(score_K) else None,
        "bins": bins,
    }


def label_groups(count_L: np.ndarray) -> dict[str, np.ndarray]:
    """Places of the labels by how often they were seen in training, as (head, middle, tail).

    The tail: at most TAIL_DOCUMENTS documents. The head: of the others the most frequent ones, as
    few as together make up HEAD_SHARE of all labels of the documents. The rest is the middle.

    Args:
        count_L: training documents of each label.
    """
    order_L = np.argsort(-count_L, kind="stable")
    before_L = np.cumsum(count_L[order_L]) - count_L[order_L]
    is_tail_L = count_L <= TAIL_DOCUMENTS
    is_head_L = np.zeros_like(is_tail_L)
    is_head_L[order_L] = before_L < HEAD_SHARE * count_L.sum()
    is_head_L &= ~is_tail_L
    groups = {"head": is_head_L, "middle": ~is_head_L & ~is_tail_L, "tail": is_tail_L}
    return {name: np.flatnonzero(found) for name, found in groups.items()}


def by_frequency(
    score_BL: np.ndarray,
    truth_BL: np.ndarray,
    labels: list[str],
    threshold: float | np.ndarray,
    count_L: np.ndarray,
) -> dict[str, Any]:
    """Figures of the labels of each of label_groups(), and the fewest and most training documents
    of a label in it."""
    threshold_L = np.broadcast_to(np.asarray(threshold, float), len(labels))
    found = {}
    for name, places in label_groups(count_L).items():
        group: dict[str, Any] = {"labels": len(places)}
        if len(places):
            some = multilabel_figures(
                score_BL[:, places],
                truth_BL[:, places],
                [labels[place] for place in places],
                threshold_L[places],
            )
            group["training_documents"] = [int(count_L[places].min()), int(count_L[places].max())]
            wanted = ("micro_f1", "macro_f1", "macro_average_precision", "labels_present")
            group |= {key: some[key] for key in wanted}
        found[name] = group
    return found
