"""What a comparison sets beside our models: linear models on TF-IDF, and a WordPiece vocabulary.

Both see the very documents that the models see, out of the same shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from elemdist.rows import DOC, documents
from elemdist.shards import ShardSet

SAMPLES_AT_ONCE = 1 << 10
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def documents_of(path: str | Path) -> tuple[list[str], np.ndarray | None]:
    """The documents of a shard set that holds them whole: their texts, and their labels (D, L) as
    booleans, None without.

    Args:
        path: a set of packing document, whose samples each hold one document or a part of one.

    Raises:
        UserError: it is no shard set, or a shard cannot be had.
    """
    shards = ShardSet(str(path))
    labels: list[np.ndarray] = []

    def samples() -> Iterator[np.ndarray]:
        for first in range(0, shards.samples, SAMPLES_AT_ONCE):
            ids = np.arange(first, min(first + SAMPLES_AT_ONCE, shards.samples))
            rows_BNV, labels_BL = shards.gather(ids)
            if labels_BL is not None:
                labels.append(labels_BL[rows_BNV[:, 0, 0] == DOC] > 0)
            yield from rows_BNV

    texts = [text.decode("utf-8", "replace") for text in documents(samples())]
    return texts, np.concatenate(labels) if labels else None


def learn_wordpiece(texts: Iterable[str], tokens: int, lowercase: bool) -> str:
    """The tokenizer.json of a WordPiece vocabulary of at most so many tokens, as BERT's: words and
    punctuation apart, in lower case and without accents if `lowercase`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=tokens, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str(pretty=True))


def baseline_scores(
    kind: Literal["svm", "logistic"], folder: Path
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str], np.ndarray]:
    """A linear model for each label on TF-IDF of words (logarithmic counts, words of two documents
    and more).

    Args:
        folder: holds train, val and test, sets of packing document with labels.

    Returns:
        val and test -> scores and truth, (D, L) each: scores lie between 0 and 1, the model's own
        threshold at 0.5, and those of an SVM are no probabilities; the labels; and how many
        training documents have each, (L,).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    texts, truth_DL = documents_of(folder / "train")
    assert truth_DL is not None, "compare asks for labels"
    vectors = TfidfVectorizer(sublinear_tf=True, min_df=2 if len(texts) > 100 else 1)
    features = vectors.fit_transform(texts)
    scores = {}
    for part in ("val", "test"):
        asked, known_BL = documents_of(folder / part)
        assert known_BL is not None
        scores[part] = (vectors.transform(asked), np.empty(known_BL.shape), known_BL)
    for label, truth_D in enumerate(truth_DL.T):
        if truth_D.all() or not truth_D.any():  # nothing to tell apart
            for _, score_BL, _ in scores.values():
                score_BL[:, label] = truth_D.all()
            continue
        if kind == "svm":
            model = LinearSVC(C=1.0, random_state=0).fit(features, truth_D)
        else:
            model = LogisticRegression(C=10.0, max_iter=1000).fit(features, truth_D)
        for columns, score_BL, _ in scores.values():
            score_BL[:, label] = 1 / (1 + np.exp(-model.decision_function(columns)))
    found = {part: (score_BL, known_BL) for part, (_, score_BL, known_BL) in scores.items()}
    return found, ShardSet(str(folder / "train")).labels or [], truth_DL.sum(0)
