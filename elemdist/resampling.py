"""Figures of a classifier on documents drawn anew, many times at once: the bootstrap.

Pairs of a document and a label are sorted once. A draw is how often each document counts, so its
figures are one pass over the sorted pairs; see area_kernels.py. A draw for which a figure is not
defined, as an area without a true pair, is left out of that figure.
Shape suffixes: see elemdist/rows.py; R draws, K pairs of a document and a label.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

SEED = 0x5EED
RESAMPLED = (
    "micro_f1",
    "macro_f1",
    "micro_roc_auc",
    "macro_roc_auc",
    "micro_average_precision",
    "macro_average_precision",
)
DRAWS_AT_ONCE = 64
WEIGHT_BYTES = 48 << 20  # of the draws that are in memory
PAIRS_AT_ONCE = 1 << 20
LEAST_DRAWS = 40  # with fewer no draw at all lies beyond a bound of the interval
MOST_THREADS = 8
SHOWN_AFTER_S = 2.0  # what takes less shows no progress
LINE_EVERY_S = 30.0  # where no terminal shows it


def draws(documents: int, count: int) -> Iterator[np.ndarray]:
    """Yield how often each document counts in a draw, (B,) int64, the same for the same
    arguments. The first is the documents as they are, each once; `count` others follow."""
    yield np.ones(documents, np.int64)
    generator = np.random.default_rng(SEED)
    chance_B = np.full(documents, 1 / documents)
    for _ in range(count):
        yield generator.multinomial(documents, chance_B)


class Sorted:
    """Documents whose pairs are sorted, ready for figures of draws.

    Args:
        score_BL: probabilities, without NaN. truth_BL: booleans. threshold_L: (L,), or a number.
    """

    def __init__(
        self, score_BL: np.ndarray, truth_BL: np.ndarray, threshold_L: np.ndarray | float
    ) -> None:
        documents, labels = score_BL.shape
        self.pair_K = pairs_of(score_BL.ravel(), truth_BL.ravel(), labels)
        kind = self.pair_K.dtype
        self.by_label_K = np.empty((labels, documents), kind)
        for label, pair_B in enumerate(self.by_label_K):
            pair_B[:] = pairs_of(score_BL[:, label], truth_BL[:, label], 1)
        self.by_label_K = self.by_label_K.ravel()
        self.start_L = np.arange(labels + 1) * documents
        self.cut_L = (score_BL >= threshold_L).sum(0)

    def figures(self, weight_BR: np.ndarray) -> dict[str, np.ndarray]:
        """Return each of RESAMPLED for every draw, (R,); NaN where it is not defined."""
        from elemdist.area_kernels import sweep  # loads numba

        drawn, labels = weight_BR.shape[1], len(self.cut_L)
        all_6SR, each_6LR = np.empty((6, 1, drawn)), np.empty((6, labels, drawn))
        ends = np.array([0, len(self.pair_K)])
        sweep(self.pair_K, ends, np.array([0]), weight_BR, all_6SR)
        sweep(self.by_label_K, self.start_L, self.cut_L, weight_BR, each_6LR)
        true_LR, false_LR, correct_LR, wrong_LR = each_6LR[:4]
        predicted_LR = correct_LR + wrong_LR
        with np.errstate(invalid="ignore", divide="ignore"):
            micro_f1_R = 2 * correct_LR.sum(0) / (predicted_LR + true_LR).sum(0)
            f1_LR = 2 * correct_LR / (predicted_LR + true_LR)
            (micro_area_R,), (micro_precision_R,) = areas_of(all_6SR)
            area_LR, precision_LR = areas_of(each_6LR)
            both_LR = (true_LR > 0) & (false_LR > 0)
            return {
                "micro_f1": micro_f1_R,
                "macro_f1": mean_over(f1_LR, true_LR > 0),
                "micro_roc_auc": micro_area_R,
                "macro_roc_auc": mean_over(area_LR, both_LR),
                "micro_average_precision": micro_precision_R,
                "macro_average_precision": mean_over(precision_LR, both_LR),
            }


def pairs_of(score_K: np.ndarray, truth_K: np.ndarray, labels: int) -> np.ndarray:
    """Return the pairs as sweep() takes them, `labels` of them for each document in turn."""
    from elemdist.area_kernels import DOCUMENT, LAST, TRUE

    order_K = np.argsort(score_K)[::-1]
    kind = np.int32 if len(score_K) // labels < 1 << 29 else np.int64
    pair_K = np.empty(len(score_K), kind)
    for first in range(0, len(order_K), PAIRS_AT_ONCE):
        here = order_K[first : first + PAIRS_AT_ONCE]
        after = order_K[first + 1 : first + PAIRS_AT_ONCE + 1]
        last = np.ones(len(here), np.int64)
        last[: len(after)] = score_K[here[: len(after)]] != score_K[after]
        document = here // labels
        pair_K[first : first + len(here)] = (
            document << DOCUMENT | truth_K[here] * TRUE | last * LAST
        )
    return pair_K


def areas_of(sums_6SR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ROC AUC and average precision out of sweep()'s sums, (S, R) each; NaN where there is
    no true pair, or no false one."""
    true_SR, false_SR, _, _, wrong_SR, precise_SR = sums_6SR
    pairs_SR = true_SR * false_SR
    precision_SR = np.where(false_SR > 0, precise_SR / true_SR, np.nan)
    return (pairs_SR - wrong_SR / 2) / pairs_SR, precision_SR


def mean_over(value_LR: np.ndarray, counts_LR: np.ndarray) -> np.ndarray:
    """Return the mean over the labels that count, (R,); NaN where none does."""
    return np.asarray(np.where(counts_LR, value_LR, 0.0).sum(0) / counts_LR.sum(0))


def resampled(
    score_BL: np.ndarray, truth_BL: np.ndarray, threshold_L: np.ndarray | float, count: int
) -> dict[str, np.ndarray]:
    """Return each of RESAMPLED for the documents as they are and for `count` draws of them,
    (1 + count,) each; NaN where it is not defined. Shows its progress on standard error."""
    from tqdm import tqdm

    documents = Sorted(score_BL, truth_BL, threshold_L)
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    width = WEIGHT_BYTES // ((threads + 2) * len(score_BL))
    found: list[dict[str, np.ndarray]] = []
    pending: deque[Future[dict[str, np.ndarray]]] = deque()
    seldom = 0.1 if sys.stderr.isatty() else LINE_EVERY_S
    bar = tqdm(
        total=1 + count, desc="intervals", unit="draw", delay=SHOWN_AFTER_S, mininterval=seldom
    )
    with ThreadPoolExecutor(threads) as pool, bar:
        for weight_BR in blocks_of(len(score_BL), count, max(1, min(DRAWS_AT_ONCE, width))):
            pending.append(pool.submit(documents.figures, weight_BR))
            while len(pending) > threads:  # no more of them in memory
                found.append(pending.popleft().result())
                bar.update(weight_BR.shape[1])
        found += [one.result() for one in pending]
        bar.update(bar.total - bar.n)
    return {name: np.concatenate([one[name] for one in found]) for name in RESAMPLED}


def blocks_of(documents: int, count: int, width: int) -> Iterator[np.ndarray]:
    """Yield draws() side by side, (B, up to `width`) uint8: nothing is drawn 256 times."""
    weight_BR = np.empty((documents, width), np.uint8)
    place = 0
    for weight_B in draws(documents, count):
        weight_BR[:, place] = weight_B
        place += 1
        if place == width:
            yield weight_BR
            weight_BR, place = np.empty((documents, width), np.uint8), 0
    if place:
        yield np.ascontiguousarray(weight_BR[:, :place])


def interval(value_R: np.ndarray) -> list[float] | None:
    """Return the 95 % interval of a figure out of resampled(), by the percentiles of the draws for
    which it is defined; None where it is not defined as the documents are, or for too few."""
    drawn = defined(value_R[1:])
    if np.isnan(value_R[0]) or len(drawn) < min(LEAST_DRAWS, len(value_R) - 1):
        return None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [float(low), float(high)]


def defined(value_R: np.ndarray) -> np.ndarray:
    """Return the values that are not NaN."""
    return value_R[~np.isnan(value_R)]


def intervals(
    score_BL: np.ndarray, truth_BL: np.ndarray, threshold_L: np.ndarray | float, count: int
) -> tuple[dict[str, list[float] | None], dict[str, int]]:
    """Return figure -> interval(), and figure -> how many of the `count` draws are left out as it
    is not defined for them, where any is. Both are empty without draws or documents."""
    if not count or not len(score_BL):
        return {}, {}
    found = resampled(score_BL, truth_BL, threshold_L, count)
    left_out = {name: int(np.isnan(value_R[1:]).sum()) for name, value_R in found.items()}
    return (
        {name: interval(value_R) for name, value_R in found.items()},
        {name: number for name, number in left_out.items() if number},
    )
