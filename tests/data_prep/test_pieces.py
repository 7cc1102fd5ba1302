"""Long documents in pieces: the same materials however a document is delivered."""

from __future__ import annotations

import numpy as np
import pytest
from cutting import TOKENIZERS, UNICODE, marked, materials, saved_tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import SEGMENTERS, texts

from data_prep import library_segmenters
from data_prep.segment import Segmenter


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return saved_tokenizers(tmp_path_factory.mktemp("tokenizers"))


def plain_pieces(text: bytes, limit: int) -> list[bytes]:
    """The rule for pieces, in plain Python."""
    found = []
    while len(text) > limit:
        head = text[:limit]
        if b"\n" in head:
            size = head.rindex(b"\n") + 1
        elif b" " in head:
            size = head.rindex(b" ") + 1
        else:
            size = len(text[: limit + 1].decode(errors="ignore").encode())
            size = size if size <= limit else limit
            while text[size] & 0xC0 == 0x80:
                size -= 1
        found.append(text[:size])
        text = text[size:]
    return [*found, text]


def streamed(cutter: Segmenter, document: bytes, known: list[int]) -> np.ndarray:
    """The marks of a document whose bytes come in steps: known[k] of them are there at step k."""
    data = np.frombuffer(document, np.uint8)
    marks = np.zeros(len(data), np.uint8)
    start = 0
    for step, end in enumerate(known):
        last = step == len(known) - 1
        stop = end if last else cutter.cut(data[:end], start, end)
        assert start <= stop <= end
        base = max(0, start - cutter.context)
        found = cutter.marks(data[base:stop], np.array([0]), np.array([stop - base]))
        marks[start:stop] = found[start - base :]
        start = stop
    return marks


PIECE_SIZES = (4, 7, 16, 50)


@pytest.mark.parametrize("name", [*SEGMENTERS, *UNICODE, *TOKENIZERS])
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(text=texts, limit=st.sampled_from(PIECE_SIZES), choice=st.data())
def test_batches_do_not_matter(
    tokenizer_files: dict[str, str], name: str, text: str, limit: int, choice: st.DataObject
) -> None:
    document = text.encode()
    places = [len(text[:k].encode()) for k in range(len(text) + 1)]
    known = sorted(choice.draw(st.lists(st.sampled_from(places), max_size=6)))
    tokenizer = tokenizer_files.get(name)
    segmenter = "subword" if tokenizer else name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library_segmenters, "PIECE_BYTES", limit)
        patch.setattr(library_segmenters, "GROUP_BYTES", 3 * limit)
        whole, again = marked(segmenter, [document, document], tokenizer, b"\n")
        steps = streamed(Segmenter(segmenter, tokenizer), document, [*known, len(document)])
    assert (whole[1:] == again[1:]).all()
    assert (whole[1:] == steps[1:]).all()


@pytest.mark.parametrize("name", [*UNICODE, "wordpiece"])
@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(text=texts, limit=st.sampled_from(PIECE_SIZES))
def test_pieces(tokenizer_files: dict[str, str], name: str, text: str, limit: int) -> None:
    tokenizer = tokenizer_files.get(name)
    segmenter = "subword" if tokenizer else name
    parts = [piece.decode() for piece in plain_pieces(text.encode(), limit)]
    wanted = [found for part in parts for found in materials(part, segmenter, tokenizer)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library_segmenters, "PIECE_BYTES", limit)
        assert materials(text, segmenter, tokenizer) == wanted


@pytest.mark.parametrize("letter", ["a", "\u4e2d", "\U0001f600", "\u0e01", "\0", "\n", "."])
def test_long_texts_without_spaces(letter: str) -> None:
    text = letter * (2_200_000 // len(letter.encode()))
    for name in UNICODE:
        assert "".join(materials(text, name)) == text
    cutter = Segmenter("uax29")
    data = np.frombuffer(text.encode(), np.uint8)
    assert cutter.cut(data, 0, 1 << 20) == 0
    size = len(letter.encode())
    assert cutter.cut(data, 0, len(data)) == 2 * ((1 << 20) // size * size)
