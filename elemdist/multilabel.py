"""Figures of a multilabel classifier, out of its scores and the truth.

Shape suffixes: see elemdist/rows.py; K pairs of a document and a label.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from elemdist.areas import areas, label_areas

ORDER = (
    "micro_f1", "micro_precision", "micro_recall", "macro_precision", "macro_recall", "macro_f1",
    "micro_roc_auc", "macro_roc_auc", "micro_average_precision", "macro_average_precision",
    "labels_present",
)  # fmt: skip
CALIBRATION_BINS = 10
TAIL_DOCUMENTS = 10  # in training, of a label of the tail
HEAD_SHARE = 0.5  # of all labels of training documents are those of the head


@dataclass(frozen=True)
class LabelCounts:
    """Figures of each label, (L,) each, out of which all others follow.

    Attributes:
        threshold_L: from which probability on it is predicted. true_L, guessed_L, correct_L: how
            many documents have it, are predicted to have it, and both. roc_auc_L,
            average_precision_L: see areas(); NaN where all documents have it, or none.
    """

    threshold_L: np.ndarray
    true_L: np.ndarray
    guessed_L: np.ndarray
    correct_L: np.ndarray
    roc_auc_L: np.ndarray
    average_precision_L: np.ndarray


def label_counts(
    score_BL: np.ndarray, truth_BL: np.ndarray, threshold: float | np.ndarray
) -> LabelCounts:
    """Return the figures of each label; see multilabel_figures()."""
    threshold_L = np.broadcast_to(np.asarray(threshold, float), score_BL.shape[1:])
    guess_BL = score_BL >= threshold_L
    true_L, guessed_L = truth_BL.sum(0), guess_BL.sum(0)
    correct_L = (truth_BL & guess_BL).sum(0)
    return LabelCounts(threshold_L, true_L, guessed_L, correct_L, *label_areas(score_BL, truth_BL))


def share(part: float, whole: float) -> float | None:
    """Return part / whole; None over nothing."""
    return float(part / whole) if whole else None


def mean(value_L: np.ndarray) -> float | None:
    """Return the mean; None over nothing."""
    return float(value_L.mean()) if len(value_L) else None


def count_figures(each: LabelCounts) -> dict[str, Any]:
    """Return micro and macro F1, precision and recall, and macro areas, of these labels.

    None stands for a figure over nothing, as precision where nothing is predicted. Macro F1,
    precision and recall are means over the labels that occur; one that is never predicted has a
    precision of 0 there. Macro areas are means over the labels for which they are defined.
    """
    true_L, guessed_L, correct_L = each.true_L, each.guessed_L, each.correct_L
    true, guessed, correct = true_L.sum(), guessed_L.sum(), correct_L.sum()
    some = true_L > 0
    hits_L = correct_L[some]
    return {
        "micro_f1": share(2 * correct, guessed + true),
        "micro_precision": share(correct, guessed),
        "micro_recall": share(correct, true),
        "macro_precision": mean(hits_L / np.maximum(1, guessed_L[some])),
        "macro_recall": mean(hits_L / true_L[some]),
        "macro_f1": mean(2 * hits_L / (guessed_L + true_L)[some]),
        "macro_roc_auc": mean(each.roc_auc_L[~np.isnan(each.roc_auc_L)]),
        "macro_average_precision": mean(
            each.average_precision_L[~np.isnan(each.average_precision_L)]
        ),
        "labels_present": int(some.sum()),
    }


def multilabel_figures(
    score_BL: np.ndarray,
    truth_BL: np.ndarray,
    labels: list[str],
    threshold: float | np.ndarray,
    each: LabelCounts | None = None,
) -> dict[str, Any]:
    """Return micro and macro F1, precision, recall, ROC AUC and average precision, and per label.

    None stands for a figure over nothing; see count_figures(). Micro ROC AUC and average precision
    are those of all pairs of a document and a label.

    Args:
        score_BL: probabilities. truth_BL: booleans. threshold: that of all labels, or (L,). each:
            label_counts() of the same, where there are any yet.
    """
    each = each or label_counts(score_BL, truth_BL, threshold)
    found = count_figures(each)
    micro = areas(score_BL.ravel(), truth_BL.ravel())
    for name, value in zip(("roc_auc", "average_precision"), micro, strict=True):
        found[f"micro_{name}"] = None if np.isnan(value) else value
    counts = zip(
        labels,
        *(x.tolist() for x in (each.true_L, each.threshold_L, each.guessed_L, each.correct_L)),
        strict=True,
    )
    return {
        "documents": len(truth_BL),
        "threshold": threshold if isinstance(threshold, float) else None,
        **{name: found.pop(name) for name in ORDER},
        "labels": {
            label: {
                "documents": true,
                "threshold": stated,
                "predicted": guessed,
                "correct": correct,
                "precision": share(correct, guessed),
                "recall": share(correct, true),
                "f1": share(2 * correct, guessed + true),
            }
            for label, true, stated, guessed, correct in counts
        },
    }


def calibration(score_BL: np.ndarray, truth_BL: np.ndarray) -> dict[str, Any]:
    """Return how far probabilities are what they say, over all pairs of a document and a label;
    None over no pairs.

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
        "expected_calibration_error": share(error, len(score_K)),
        "brier_score": mean((score_K - truth_K) ** 2),
        "bins": bins,
    }


def label_groups(count_L: np.ndarray) -> dict[str, np.ndarray]:
    """Return places of the labels by how often they were seen in training, as (head, middle, tail).

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


def by_frequency(each: LabelCounts, count_L: np.ndarray) -> dict[str, Any]:
    """Return figures of the labels of each of label_groups(), and the fewest and most training
    documents of a label in it.

    Args:
        each: the labels' figures. count_L: training documents of each label.
    """
    found = {}
    for name, places in label_groups(count_L).items():
        group: dict[str, Any] = {"labels": len(places)}
        if len(places):
            parts = (getattr(each, item.name)[places] for item in fields(each))
            some = count_figures(LabelCounts(*parts))
            group["training_documents"] = [int(count_L[places].min()), int(count_L[places].max())]
            wanted = ("micro_f1", "macro_f1", "macro_average_precision", "labels_present")
            group |= {key: some[key] for key in wanted}
        found[name] = group
    return found
