"""From which probability on a label is predicted, chosen on validation documents.

Shape suffixes: see elemdist/rows.py; K pairs of a document and a label.
"""

from __future__ import annotations

import numpy as np

# A label with fewer validation documents takes the threshold of all: its own would be chance.
LEAST_DOCUMENTS = 5


def best(score: np.ndarray, truth: np.ndarray) -> float:
    """The threshold with the best F1 over all pairs, of any shape, taken together: in the middle
    between the two scores that it lies between. 0.5 where nothing is true.

    Of several that are equally good it is the one in the middle of the widest gap.
    """
    if not truth.any():
        return 0.5
    order_K = np.argsort(-score, axis=None, kind="stable")
    score_K, true_K = score.ravel()[order_K], truth.ravel()[order_K]
    correct_K = np.cumsum(true_K)
    f1_K = 2 * correct_K / (np.arange(1, len(true_K) + 1) + correct_K[-1])
    below_K = np.append(score_K[1:], max(0.0, 2 * score_K[-1] - score_K[0]))
    gap_K = score_K - below_K
    f1_K[gap_K <= 0] = -1  # equal scores are predicted together
    if not (gap_K > 0).any():
        return float(score_K[-1])
    equal = np.flatnonzero(f1_K == f1_K.max())
    place = equal[gap_K[equal].argmax()]
    return float((score_K[place] + below_K[place]) / 2)


def per_label(score_BL: np.ndarray, truth_BL: np.ndarray) -> np.ndarray:
    """For each label the threshold with its best F1, (L,); for one with fewer than LEAST_DOCUMENTS
    true documents that of all labels together."""
    common = best(score_BL, truth_BL)
    enough_L = truth_BL.sum(0) >= LEAST_DOCUMENTS
    return np.array([
        best(score_BL[:, label], truth_BL[:, label]) if enough else common
        for label, enough in enumerate(enough_L)
    ])  # fmt: skip
