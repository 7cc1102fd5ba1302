"""Packing: what samples look like, and that documents come back out of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import SEGMENTERS, rows, texts

from data_prep import library_segmenters
from data_prep.documents import batch_of
from data_prep.pack import Packer
from elemdist.rows import DOC, PAD, SEP, documents, rows_to_bytes


def pack(
    batches: list[list[str]], capacity: int = 3, n: int = 4, v: int = 3, **how: str
) -> tuple[np.ndarray, dict[str, int]]:
    """The samples of some documents, (S, n, v), through a block of `capacity` samples; counts."""
    blocks: list[np.ndarray] = []
    choices = {"segmenter": "word", "packing": "document", "overlong": "split"} | how
    packer = Packer(
        np.zeros((capacity, n * v), np.uint8),
        lambda block: blocks.append(block.copy()),
        n=n,
        v=v,
        **choices,
    )
    for texts_of in batches:
        batch = batch_of([text.encode() for text in texts_of])
        packer.add(batch.data, batch.starts, batch.ends)
    counts = packer.finish()
    assert all(len(block) == capacity for block in blocks[:-1])
    samples = np.concatenate(blocks) if blocks else np.zeros((0, n * v), np.uint8)
    return samples.reshape(-1, n, v), counts


def shown(sample_NV: np.ndarray) -> list[str]:
    names = {DOC: "DOC", SEP: "SEP", PAD: "PAD"}
    return [names.get(int(row[0]), rows_to_bytes(row).decode()) for row in sample_NV]


def test_document_packing_splits() -> None:
    samples, counts = pack([["a b c d e", "", "x"]])
    assert [shown(sample) for sample in samples] == [
        ["DOC", "a ", "b ", "c "],
        ["SEP", "d ", "e", "PAD"],
        ["DOC", "PAD", "PAD", "PAD"],
        ["DOC", "x", "PAD", "PAD"],
    ]
    assert counts == {
        "documents": 3,
        "text_bytes": 10,
        "rows": 10,
        "padding_rows": 6,
        "samples": 4,
        "separator_rows": 1,
        "split_documents": 1,
        "truncated_documents": 0,
        "dropped_bytes": 0,
    }


def test_document_packing_truncates() -> None:
    samples, counts = pack([["a b c d e", "a b c"]], overlong="truncate")
    assert [shown(sample) for sample in samples] == [
        ["DOC", "a ", "b ", "c "],
        ["DOC", "a ", "b ", "c"],
    ]
    assert (counts["truncated_documents"], counts["dropped_bytes"]) == (1, 3)
    assert counts["split_documents"] == 0


def test_packed_packing() -> None:
    samples, counts = pack([["a b c d", "x"], ["", "y z"]], packing="packed")
    assert [shown(sample) for sample in samples] == [
        ["DOC", "a ", "b ", "c "],
        ["d", "DOC", "x", "DOC"],
        ["DOC", "y ", "z", "PAD"],
    ]
    assert (counts["padding_rows"], counts["documents"]) == (1, 4)


def test_bitmaps_precede_every_sample_of_a_document() -> None:
    blocks: list[np.ndarray] = []
    packer = Packer(
        np.zeros((8, 2 + 12), np.uint8),
        lambda block: blocks.append(block.copy()),
        n=4,
        v=3,
        segmenter="word",
        packing="document",
        overlong="split",
    )
    batch = batch_of([b"a b c d", b"x"])
    packer.add(batch.data, batch.starts, batch.ends, np.array([[1, 2], [3, 4]], np.uint8))
    packer.finish()
    assert blocks[0][:, :2].tolist() == [[1, 2], [1, 2], [3, 4]]


@settings(deadline=None, max_examples=150)
@given(
    batches=st.lists(st.lists(texts, max_size=4), max_size=4),
    segmenter=st.sampled_from(SEGMENTERS),
    packing=st.sampled_from(("document", "packed")),
    n=st.integers(2, 9),
    v=st.sampled_from((1, 3, 4, 12)),
    capacity=st.integers(1, 4),
)
def test_documents_come_back(
    batches: list[list[str]], segmenter: str, packing: str, n: int, v: int, capacity: int
) -> None:
    samples, counts = pack(
        batches, n=n, v=v, capacity=capacity, segmenter=segmenter, packing=packing
    )
    wanted = [text for texts_of in batches for text in texts_of]
    assert list(documents(samples)) == [text.encode() for text in wanted]
    assert counts["samples"] == len(samples)
    assert counts["padding_rows"] == (samples[:, :, 0] == PAD).sum()
    assert counts["rows"] + counts["padding_rows"] == len(samples) * n
    found = [row[row < SEP].tobytes() for sample_NV in samples for row in sample_NV]
    assert [row for row in found if row] == [
        row for text in wanted for row in rows(text, v, segmenter)
    ]
    if packing == "packed":
        assert counts["padding_rows"] < n
        assert counts["separator_rows"] == 0


@pytest.mark.parametrize("packing", ["document", "packed"])
def test_full_block_at_the_end(packing: str) -> None:
    samples, counts = pack([["a b c"], ["a b c"]], capacity=2, packing=packing)
    assert len(samples) == 2
    assert counts["padding_rows"] == 0


@settings(deadline=None, max_examples=300)
@given(
    documents=st.lists(texts, min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    segmenter=st.sampled_from((*SEGMENTERS, "uax29")),
    packing=st.sampled_from(("document", "packed")),
    overlong=st.sampled_from(("split", "truncate")),
    n=st.integers(2, 9),
    v=st.sampled_from((1, 3, 4, 12)),
    capacity=st.integers(1, 4),
)
def test_documents_in_pieces(
    documents: list[str],
    cuts: list[int],
    segmenter: str,
    packing: str,
    overlong: str,
    n: int,
    v: int,
    capacity: int,
) -> None:
    how = {"segmenter": segmenter, "packing": packing, "overlong": overlong}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library_segmenters, "PIECE_BYTES", 16)
        whole, counts = pack([documents], n=n, v=v, capacity=capacity, **how)
        pieces, again = pack_pieces(documents, cuts, capacity, n, v, how)
    assert np.array_equal(whole, pieces)
    assert counts == again


def pack_pieces(
    documents: list[str], cuts: list[int], capacity: int, n: int, v: int, how: dict[str, str]
) -> tuple[np.ndarray, dict[str, int]]:
    """As pack, but the batches end at the characters `cuts`, counted over all documents."""
    blocks: list[np.ndarray] = []
    packer = Packer(
        np.zeros((capacity, n * v), np.uint8),
        lambda block: blocks.append(block.copy()),
        n=n,
        v=v,
        **how,
    )
    held: list[bytes] = []
    begun, place = False, 0
    for number, document in enumerate(documents):
        ends = sorted({cut - place for cut in cuts if 0 <= cut - place <= len(document)})
        last = 0
        for end in ends:
            batch = batch_of([*held, document[last:end].encode()])
            packer.add(batch.data, batch.starts, batch.ends, begun=begun, open=True)
            held, begun, last = [], True, end
        held.append(document[last:].encode())
        place += len(document)
        if ends or number == len(documents) - 1:
            batch = batch_of(held)
            packer.add(batch.data, batch.starts, batch.ends, begun=begun)
            held, begun = [], False
    counts = packer.finish()
    samples = np.concatenate(blocks) if blocks else np.zeros((0, n * v), np.uint8)
    return samples.reshape(-1, n, v), counts


@pytest.mark.parametrize("segmenter", [*SEGMENTERS, "uax29"])
@pytest.mark.parametrize("v", [1, 2, 3, 4])
def test_pieces_cut_at_every_character(segmenter: str, v: int) -> None:
    how = {"segmenter": segmenter, "packing": "packed", "overlong": "split"}
    for text in ("abc  \n x", "añb   \t b  ", "aaa...... b", "日本  語。x ", "abcd ef  gh"):
        whole, _ = pack([[text]], v=v, **how)
        for first in range(len(text) + 1):
            for second in range(first, len(text) + 1):
                cut, _ = pack_pieces([text], [first, second], 3, 4, v, how)
                assert np.array_equal(whole, cut), (text, first, second)
