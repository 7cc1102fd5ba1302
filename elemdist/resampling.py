"""Figures of a classifier on documents drawn anew, many times at once: the bootstrap.

A draw is how often each document counts, so a figure of all draws is a matrix product, or one
sorted pass over the scores.
Shape suffixes: see elemdist/rows.py; R draws, K pairs of a document and a label.
"""

from __future__ import annotations

import numpy as np

SEED = 0x5EED
RESAMPLED = ("micro_f1", "macro_f1", "micro_roc_auc")
PAIRS_AT_ONCE = 1 << 25  # of draws and pairs, 8 bytes each


def draws(documents: int, count: int) -> np.ndarray:
    """How often each document counts: (1 + count, B) int64, the same for the same arguments. The
    first row is the documents as they are, each once."""
    drawn_RB = np.random.default_rng(SEED).multinomial(
        documents, np.full(documents, 1 / documents), size=count
    )
    return np.concatenate([np.ones((1, documents), np.int64), drawn_RB])


def resampled(
    metric: str,
    score_BL: np.ndarray,
    truth_BL: np.ndarray,
    threshold_L: np.ndarray,
    weights_RB: np.ndarray,
) -> np.ndarray:
    """A figure of every draw, (R,).

    Args:
        metric: one of RESAMPLED. truth_BL: booleans. threshold_L: (L,), or a single number.
        weights_RB: see draws().
    """
    if metric == "micro_roc_auc":
        return micro_roc_auc(score_BL, truth_BL, weights_RB)
    guess_BL = score_BL >= threshold_L
    parts = (truth_BL & guess_BL, guess_BL, truth_BL)
    if metric == "micro_f1":
        correct, guessed, true = (weights_RB @ part_BL.sum(1) for part_BL in parts)
        return np.asarray(2 * correct / np.maximum(1, guessed + true))
    correct, guessed, true = (weights_RB @ part_BL.astype(np.int64) for part_BL in parts)
    f1_RL = 2 * correct / np.maximum(1, guessed + true)
    present_RL = true > 0  # macro figures are means over the labels that occur
    return np.asarray((f1_RL * present_RL).sum(1) / np.maximum(1, present_RL.sum(1)))


def micro_roc_auc(score_BL: np.ndarray, truth_BL: np.ndarray, weights_RB: np.ndarray) -> np.ndarray:
    """The area under the curve of all pairs of a document and a label: the share of pairs of a true
    and a false one in which the true one has the higher score, equal scores counting half."""
    _, group_K = np.unique(score_BL.ravel(), return_inverse=True)
    order_K = np.argsort(group_K, kind="stable")
    starts = np.flatnonzero(np.diff(group_K[order_K], prepend=-1))
    document_K = order_K // score_BL.shape[1]
    true_K = truth_BL.ravel()[order_K]
    at_once = max(1, PAIRS_AT_ONCE // len(order_K))
    areas = []
    for first in range(0, len(weights_RB), at_once):
        weight_RK = weights_RB[first : first + at_once, document_K]
        true_RG = np.add.reduceat(weight_RK * true_K, starts, axis=1)
        false_RG = np.add.reduceat(weight_RK * ~true_K, starts, axis=1)
        below_RG = np.cumsum(false_RG, axis=1) - false_RG / 2
        pairs_R = true_RG.sum(1) * false_RG.sum(1)
        areas.append((true_RG * below_RG).sum(1) / np.maximum(1, pairs_R))
    return np.concatenate(areas)


def intervals(
    score_BL: np.ndarray, truth_BL: np.ndarray, threshold_L: np.ndarray, count: int
) -> dict[str, list[float]]:
    """Figure -> its 95 % interval by the percentiles of `count` draws; empty for 0."""
    if not count or not truth_BL.any():
        return {}
    weights_RB = draws(len(truth_BL), count)[1:]
    found = {}
    for metric in RESAMPLED:
        drawn_R = resampled(metric, score_BL, truth_BL, threshold_L, weights_RB)
        found[metric] = np.quantile(drawn_R, [0.025, 0.975]).tolist()
    return found
