"""ROC AUC and average precision, equal scores counted as they should be.

Shape suffixes: see elemdist/rows.py; K what is ranked, P the true ones of it.
"""

from __future__ import annotations

import numpy as np


def areas(score_K: np.ndarray, truth_K: np.ndarray) -> tuple[float, float]:
    """Return ROC AUC and average precision; NaN without a true or without a false one, as any
    order would do as well there.

    ROC AUC is the share of pairs of a true and a false one in which the true one has the higher
    score, equal scores counting half. Average precision is the mean, over the true ones, of the
    share of true ones among all that score as high.

    Args:
        score_K: numbers, none of them NaN. truth_K: booleans.
    """
    true_P, every_K = np.sort(score_K[truth_K]), np.sort(score_K)
    trues, falses = len(true_P), len(every_K) - len(true_P)
    if not trues or not falses:
        return np.nan, np.nan
    above_P = len(every_K) - np.searchsorted(every_K, true_P, "right")
    as_high_P = len(every_K) - np.searchsorted(every_K, true_P, "left")
    true_above_P = trues - np.searchsorted(true_P, true_P, "right")
    true_as_high_P = trues - np.searchsorted(true_P, true_P, "left")
    false_above = (above_P - true_above_P).sum(dtype=float)
    false_as_high = (as_high_P - true_as_high_P).sum(dtype=float)
    pairs = float(trues) * falses
    area = (pairs - (false_above + false_as_high) / 2) / pairs
    return float(area), float((true_as_high_P / as_high_P).mean())


def label_areas(score_BL: np.ndarray, truth_BL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return areas() of each label, (L,) each."""
    found = [
        areas(score_B, truth_B) for score_B, truth_B in zip(score_BL.T, truth_BL.T, strict=True)
    ]
    area_L, precision_L = np.array(found, float).reshape(-1, 2).T
    return area_L, precision_L
