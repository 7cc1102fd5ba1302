"""The compiled loop under the bootstrap: counts along sorted pairs, of many draws at once.

A file of its own: numba's cache looks only at the file of the function that it compiles.
Shape suffixes: see elemdist/rows.py; K pairs of a document and a label, R draws, S groups of pairs.
"""

from __future__ import annotations

import numpy as np

from elemdist.compiled import compiled

LAST, TRUE, DOCUMENT = 1, 2, 2  # bits of a pair: last of equal scores, true; the shift of the rest


@compiled
def sweep(pair_K, start_S, cut_S, weight_BR, sums_6SR):  # type: ignore[no-untyped-def]
    """Go over the pairs of each group, the highest score first, and fill in sums_6SR.

    Args:
        pair_K: document << DOCUMENT | TRUE where it is true | LAST where the next score is another.
        start_S: where each group begins, and where the last one ends. cut_S: how many pairs of it
            are predicted. weight_BR: how often each document counts.
        sums_6SR: true pairs, false pairs; true and false ones among the predicted; twice the
            pairs of a true and a false one in the wrong order (once those of equal scores); the
            precision at each score, summed over the true pairs that have it.
    """
    draws = weight_BR.shape[1]
    true_R, false_R = np.zeros(draws, np.int64), np.zeros(draws, np.int64)
    more_true_R, more_false_R = np.zeros(draws, np.int64), np.zeros(draws, np.int64)
    for s in range(len(start_S) - 1):
        true_R[:] = 0
        false_R[:] = 0
        sums_6SR[:, s] = 0.0
        k, end, cut = start_S[s], start_S[s + 1], start_S[s] + cut_S[s]
        while k < end:
            if k == cut:
                sums_6SR[2, s] = true_R
                sums_6SR[3, s] = false_R
            pair = pair_K[k]
            if pair & 3 == LAST:  # one false pair with a score of its own, as most are
                weight_R = weight_BR[pair >> DOCUMENT]
                for r in range(draws):
                    false_R[r] += weight_R[r]
                k += 1
                continue
            more_true_R[:] = 0
            more_false_R[:] = 0
            while True:
                pair = pair_K[k]
                weight_R = weight_BR[pair >> DOCUMENT]
                if pair & TRUE:
                    for r in range(draws):
                        more_true_R[r] += weight_R[r]
                else:
                    for r in range(draws):
                        more_false_R[r] += weight_R[r]
                k += 1
                if pair & LAST:
                    break
            wrong_R, precise_R = sums_6SR[4, s], sums_6SR[5, s]
            for r in range(draws):  # without a branch: several draws in one instruction
                more, false = float(more_true_R[r]), float(false_R[r])
                others = float(more_false_R[r])
                true = float(true_R[r]) + more
                wrong_R[r] += more * (2.0 * false + others)
                precise_R[r] += more * (true / max(1.0, true + false + others))
                true_R[r] += more_true_R[r]
                false_R[r] += more_false_R[r]
        sums_6SR[0, s] = true_R
        sums_6SR[1, s] = false_R
        if cut == end:
            sums_6SR[2, s] = true_R
            sums_6SR[3, s] = false_R
