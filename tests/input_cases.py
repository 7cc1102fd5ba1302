"""Texts in many scripts, tokenizers trained on them, and what a batch holds segment by segment."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data_prep.segment import rows_of as cut_text
from elemdist.batch import Batch
from elemdist.config import TrainSettings
from elemdist.model_config import ModelConfig, model_config
from elemdist.rows import DOC, FIRST_SPECIAL, PAD
from elemdist.subword import SubwordReading, open_symbols

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "  Two spaces before,\n\nnewlines\tand tabs within, and blanks behind.   ",
    "Jeder Mensch hat das Recht auf Leben, Freiheit und Sicherheit der Person.",
    "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "すべての人間は、生まれながらにして自由である。",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "👩‍🚀 and 🇫🇷 and e\u0301 and ﷺ, NUL \0 and \x7f, 𝔘𝔫𝔦𝔠𝔬𝔡𝔢.",
]
texts = st.lists(
    st.one_of(
        st.sampled_from(SENTENCES),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        st.text("ab é\n漢👍\0", max_size=20),
    ),
    min_size=1,
    max_size=5,
)


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=250, special_tokens=special)
    )
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet)
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>"),
    )
    return tokenizer


def save_tokenizers(folder: Path) -> dict[str, str]:
    """Their files by their names."""
    made = {"wordpiece": wordpiece(), "byte_level": byte_level(), "unigram": unigram()}
    for name, tokenizer in made.items():
        tokenizer.save(str(folder / f"{name}.json"))
    return {name: str(folder / f"{name}.json") for name in made}


def subword(path: str, most: int = 10_000) -> SubwordReading:
    return SubwordReading(path, Tokenizer.from_file(path), open_symbols(path), most)


def pack(documents: list[str], n: int, v: int, segmenter: str = "word") -> np.ndarray:
    """Documents back to back, each behind a DOC row, the last sample padded: (B, n, v)."""
    doc = np.full((1, v), PAD, np.uint8)
    doc[0, 0] = DOC
    rows = [part for text in documents for part in (doc, cut_text(text.encode(), v, segmenter))]
    joined = np.concatenate(rows)
    out = np.full((-(-len(joined) // n) * n, v), PAD, np.uint8)
    out[: len(joined)] = joined
    return out.reshape(-1, n, v)


def segments(rows_BNV: np.ndarray) -> list[tuple[int, int, bytes, bool]]:
    """For every segment, one at a time: its sample, its special symbol or -1, its text, and whether
    something follows in its sample."""
    found = []
    for number, rows in enumerate(rows_BNV):
        filled = [row for row in rows.tolist() if row[0] != PAD]
        starts = [k for k, row in enumerate(filled) if row[0] == DOC or k == 0]
        for first, last in zip(starts, [*starts[1:], len(filled)], strict=True):
            symbol = filled[first][0] if filled[first][0] >= FIRST_SPECIAL else -1
            text = bytes(x for row in filled[first:last] for x in row if x < FIRST_SPECIAL)
            found.append((number, symbol, text, last < len(rows)))
    return found


def in_order(batch: Batch) -> list[tuple[int, np.ndarray, np.ndarray | None, bool]]:
    """Sample, rows, bytes of tokens and `ended` of every segment, in the order of the samples."""
    cu = batch.segments.cu_lengths.tolist()
    assert batch.segments.lengths == np.diff(cu).tolist() == sorted(batch.segments.lengths)
    assert len(batch.rows_TV) == len(batch.key_T) == cu[-1]
    assert batch.position_T.tolist() == [k for length in np.diff(cu) for k in range(length)]
    bounds = sorted(itertools.pairwise(cu), key=lambda bound: int(batch.key_T[bound[0]]))
    return [
        (
            int(batch.sample_S[cu.index(first)]),
            batch.rows_TV[first:last].numpy(),
            None if batch.bytes_T is None else batch.bytes_T[first:last].numpy(),
            bool(batch.ended_S[cu.index(first)]),
        )
        for first, last in bounds
    ]


def sample_of_rows(batch: Batch) -> torch.Tensor:
    return batch.sample_S.repeat_interleave(torch.tensor(batch.segments.lengths))


def configured(name: str, path: str | None = None, n: int = 32, v: int = 8) -> ModelConfig:
    """A model of this input."""
    chosen = TrainSettings()
    chosen.model.input, chosen.model.tokenizer = name, path
    return model_config(chosen, n, v, symbols=open_symbols(path) if path else None)
