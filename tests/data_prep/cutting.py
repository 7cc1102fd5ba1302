"""What the tests of the library segmenters share: materials out of marks, and small tokenizers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from data_prep.segment import Segmenter

UNICODE = ("uax29", "sentence")


def marked(
    name: str, documents: list[bytes], tokenizer: str | None = None, between: bytes = b""
) -> list[np.ndarray]:
    """The marks of documents of one batch, `between` them bytes that are no document's."""
    starts = np.cumsum([0] + [len(document) + len(between) for document in documents])[:-1]
    ends = starts + np.array([len(document) for document in documents], np.int64)
    data = np.frombuffer(between.join(documents), np.uint8)
    marks = Segmenter(name, tokenizer).marks(data, starts, ends)
    return [marks[start:end].copy() for start, end in zip(starts, ends, strict=True)]


def cut_at(text: bytes, marks: np.ndarray) -> list[str]:
    """The materials between marks; the first byte's mark means nothing."""
    bounds = [0, *(np.flatnonzero(marks[1:]) + 1).tolist(), len(text)]
    return [text[i:j].decode() for i, j in pairwise(bounds) if j > i]


def materials(text: str, name: str, tokenizer: str | None = None) -> list[str]:
    return cut_at(text.encode(), marked(name, [text.encode()], tokenizer)[0])


LINES = ["The heron's nest wasn't empty; Żółta łódź 世界 👍🏽 x", "Hello   World É é", "no no no"]


def trained(kind: str) -> Tokenizer:
    """A small tokenizer: WordPiece lower-cases and strips accents, bpe counts bytes, unigram has
    compatibility forms and marks spaces."""
    common = {"show_progress": False}
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[UNK]", "[CLS]"]
        trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, **common)
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, **common)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        special = ["<unk>"]
        trainer = trainers.UnigramTrainer(
            vocab_size=80, special_tokens=special, unk_token="<unk>", **common
        )
    tokenizer.train_from_iterator(LINES * 10, trainer)
    return tokenizer


TOKENIZERS = ("wordpiece", "bpe", "unigram")


def saved_tokenizers(folder: Path) -> dict[str, str]:
    """The files of all three, by their kinds."""
    for kind in TOKENIZERS:
        trained(kind).save(str(folder / kind))
    return {kind: str(folder / kind) for kind in TOKENIZERS}
