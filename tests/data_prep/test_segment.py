"""Segmenters: nothing is lost, and the compiled ones do what the plain ones do."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import SAMPLES, SEGMENTERS, WIDTHS, rows, texts
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from data_prep.library_segmenters import NAMES
from data_prep.segment import rows_of
from elemdist.rows import FIRST_SPECIAL, PAD, rows_to_bytes

CORPUS = os.environ.get("ELEMDIST_TEST_CORPUS")


def cut(text: str, v: int, segmenter: str) -> list[bytes]:
    """The rows of a text without PAD, the form of each row checked."""
    rows_TV = rows_of(text.encode(), v, segmenter)
    assert rows_TV.dtype == np.uint8
    assert rows_TV.shape[1:] == (v,)
    found = []
    for row_V in rows_TV:
        length = int((row_V < FIRST_SPECIAL).sum())
        assert length > 0
        assert (row_V[length:] == PAD).all()
        found.append(row_V[:length].tobytes())
    return found


@pytest.mark.parametrize("segmenter", SEGMENTERS)
@settings(deadline=None, max_examples=150)
@given(text=texts, v=st.sampled_from(WIDTHS))
def test_compiled_is_reference(segmenter: str, text: str, v: int) -> None:
    found = cut(text, v, segmenter)
    assert b"".join(found) == text.encode()
    assert found == rows(text, v, segmenter)


@pytest.mark.parametrize("name", SAMPLES)
def test_scripts(name: str) -> None:
    for v in WIDTHS:
        for segmenter in SEGMENTERS:
            found = cut(SAMPLES[name], v, segmenter)
            assert found == rows(SAMPLES[name], v, segmenter)
            if segmenter != "byte" and v >= 4:
                assert "".join(row.decode() for row in found) == SAMPLES[name]


def test_word_rule() -> None:
    text = "Hello, world  x\n\n  y"
    assert cut(text, 12, "word") == [
        *(b"Hello", b",", b" ", b"world ", b" ", b"x", b"\n\n  ", b"y"),
    ]
    assert cut("-----x...!?", 12, "word") == [b"-----", b"x", b"...", b"!", b"?"]
    assert cut("snake_case", 12, "word") == [b"snake", b"_", b"case"]


def test_space_of_a_full_word_stays_its_own() -> None:
    assert cut("abcd  \n", 4, "word") == [b"abcd", b" ", b" \n"]
    assert cut("abcdef \n", 4, "word") == [b"abcd", b"ef ", b"\n"]


def test_characters_stay_whole() -> None:
    assert cut("aaa\u00e9\u00e9", 4, "word") == [b"aaa", "\u00e9\u00e9".encode()]
    assert cut("\U0001f600", 3, "char") == [b"\xf0\x9f\x98", b"\x80"]


def test_empty() -> None:
    for segmenter in SEGMENTERS:
        assert rows_of(b"", 12, segmenter).shape == (0, 12)


@pytest.mark.parametrize("segmenter", SEGMENTERS)
@pytest.mark.parametrize("letter", ["a", "\u00e9", "\u4e2d", "\U00010437", " ", "-", "\0"])
def test_long_materials(segmenter: str, letter: str) -> None:
    text = letter * (100_000 // len(letter.encode()))
    for v in (3, 12):
        assert cut(text, v, segmenter) == rows(text, v, segmenter)


def test_long_word_takes_linear_time() -> None:
    rows_of(b"warm", 12)
    seconds = []
    for size in (2_000_000, 16_000_000):
        start = time.perf_counter()
        rows_of(b"a" * size, 12)
        seconds.append(time.perf_counter() - start)
    assert seconds[1] < 40 * seconds[0] + 0.1  # 8 times the size; 64 times if it were quadratic


def documents_of(path: str) -> Iterator[bytes]:
    """The texts of a JSON Lines file, plain or .zst, by nothing of data_prep."""
    with open(path, "rb") as file:
        packed = path.endswith(".zst")
        stream = zstandard.ZstdDecompressor().stream_reader(file) if packed else file
        for line in io.TextIOWrapper(stream, encoding="utf-8"):
            yield json.loads(line)["text"].encode()


def trained_tokenizer(path: Path) -> str:
    """A file of byte-level BPE, as most models of our day have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SAMPLES.values(), trainer)
    tokenizer.save(str(path))
    return str(path)


@pytest.mark.skipif(
    CORPUS is None, reason="no corpus is given; ELEMDIST_TEST_CORPUS=FILE.jsonl[.zst] make test"
)
@pytest.mark.parametrize("segmenter", [*SEGMENTERS, *NAMES])
def test_outside_corpus(segmenter: str, tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(tmp_path / "bpe.json") if segmenter == "subword" else None
    count = 0
    for document in documents_of(CORPUS or ""):
        count += 1
        for v in WIDTHS if segmenter in SEGMENTERS else WIDTHS[-1:]:
            assert rows_to_bytes(rows_of(document, v, segmenter, tokenizer)) == document
        if count % 10 == 0 and segmenter in SEGMENTERS:
            assert cut(document.decode(), 12, segmenter) == rows(document.decode(), 12, segmenter)
    assert count
