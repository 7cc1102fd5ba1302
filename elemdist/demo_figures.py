"""The demo's last table: the model's figures beside what needs no learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from elemdist.demo_corpus import Corpus
from elemdist.metrics_file import last_evaluation
from elemdist.multilabel import multilabel_figures
from elemdist.rows import FIRST_SPECIAL, PAD
from elemdist.shards import ShardSet

SCORES = {
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "micro_roc_auc": "micro ROC AUC",
    "macro_roc_auc": "macro ROC AUC",
}


def most_frequent_baseline(corpus: Corpus) -> dict[str, Any]:
    """Figures of giving every function the same modules: the most frequent ones in training.

    How many is chosen as well as it can be for the training functions' micro F1.
    """

    def truth(part: str) -> np.ndarray:
        documents = corpus.functions[part]
        return np.array([[name in doc.modules for name in corpus.labels] for doc in documents])

    def figures(part: str, threshold: float) -> dict[str, Any]:
        score_BL = np.tile(share_L, (len(corpus.functions[part]), 1))
        return multilabel_figures(score_BL, truth(part), corpus.labels, threshold)

    share_L = truth("train").mean(0)
    best = max(share_L, key=lambda share: figures("train", share)["micro_f1"])
    return figures("test", best)


def slot_counts(shards: ShardSet) -> np.ndarray:
    """How often each byte, or a material's end (PAD), stands in each slot: (V, 256)."""
    rows_NV = shards.gather(np.arange(shards.samples))[0].reshape(-1, shards.v)
    rows_NV = rows_NV[rows_NV[:, 0] < FIRST_SPECIAL]
    counts_NV = (rows_NV == PAD).cumsum(1) <= 1  # the model's loss ends there too
    slots = [np.bincount(rows_NV[counts_NV[:, k], k], minlength=256) for k in range(shards.v)]
    return np.stack(slots)


def frequency_bits_per_byte(train: ShardSet, held_out: ShardSet) -> float:
    """Bits per byte of a model that knows how frequent each byte is in each slot, and no more."""
    known_VE, asked_VE = slot_counts(train) + 1, slot_counts(held_out)
    bits = -(asked_VE * np.log2(known_VE / known_VE.sum(1, keepdims=True))).sum()
    return float(bits / asked_VE[:, :FIRST_SPECIAL].sum())


def print_table(out: Path, corpus: Corpus, test: dict[str, Any]) -> None:
    """Bits per byte after pre-training, and the classifier's figures on the test functions."""
    shards = out / "shards"
    sets = [ShardSet(str(shards / f"source-{part}")) for part in ("train", "val")]
    baseline = most_frequent_baseline(corpus)
    pretrained = last_evaluation(out / "runs" / "pretrain")
    rows = [
        ("bits per byte, masked words", pretrained["bits_per_byte"]),
        *((text, test[key]) for key, text in SCORES.items()),
    ]
    trivial = [frequency_bits_per_byte(*sets), *(baseline[key] for key in SCORES)]
    print(f"\n{'':30}{'model':>8}{'without learning':>20}")
    for (name, value), without in zip(rows, trivial, strict=True):
        print(f"{name:30}{value:8.3f}{without:20.3f}")
    print(
        "\nWithout learning: each byte's frequency in its slot; always the most frequent modules."
        f"\nThe test: {test['documents']} functions, {len(corpus.labels)} modules."
    )
