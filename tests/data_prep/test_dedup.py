"""Finding documents that came before, over items, batches and pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import dedup
from data_prep.dedup import Hasher, Tables, normalized
from data_prep.documents import batch_of
from data_prep.store import LocalStore


def found(folder: Path, items: list[list[bytes]], normalize: bool = False) -> list[list[bool]]:
    """For each item, which of its documents are duplicates."""
    store = LocalStore(str(folder))
    for number, documents in enumerate(items):
        hasher = Hasher(normalize)
        for document in documents:  # a batch each
            hasher.add(batch_of([document]))
        store.write(f"{number}.hashes", hasher.table())
    sizes = [len(documents) for documents in items]
    bits = Tables(store, [f"{k}.hashes" for k in range(len(items))], sizes).duplicates()
    return [
        [False] * size
        if held is None
        else np.unpackbits(np.frombuffer(held, np.uint8)).astype(bool)[:size].tolist()
        for held, size in zip(bits, sizes, strict=True)
    ]


@settings(deadline=None, max_examples=60)
@given(
    items=st.lists(
        st.lists(st.sampled_from([b"a", b"b", b"c", b"d" * 99, b""]), max_size=20),
        min_size=1,
        max_size=5,
    ),
    at_once=st.sampled_from([1, 3, 1 << 20]),
)
def test_the_first_stays(
    tmp_path_factory: pytest.TempPathFactory, items: list[list[bytes]], at_once: int
) -> None:
    seen: set[bytes] = set()
    wanted = []
    for documents in items:
        wanted.append([])
        for document in documents:
            wanted[-1].append(document in seen)
            seen.add(document)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "HASHES_AT_ONCE", at_once)  # so that ranges are merged in groups
        assert found(tmp_path_factory.mktemp("hashes"), items) == wanted


def test_many_documents(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    numbers = [rng.integers(0, 3000, 2000) for _ in range(3)]
    duplicates = found(tmp_path, [[b"%d" % k for k in some] for some in numbers])
    seen: set[int] = set()
    for some, bits in zip(numbers, duplicates, strict=True):
        for number, bit in zip(some.tolist(), bits, strict=True):
            assert bit == (number in seen)
            seen.add(number)


def test_normalized_form() -> None:
    assert normalized(b"  Ab\tc\n") == b"ab c"
    assert normalized("ﬁne Straße".encode()) == normalized(b"FINE  STRASSE")
    assert normalized("é".encode()) == normalized("e\u0301".encode())
    assert normalized(b"ab c") != normalized(b"abc")


def test_normalized_duplicates(tmp_path: Path) -> None:
    items = [[b"One two", b"three"], [b"one  TWO\n", b"Three!"]]
    assert found(tmp_path / "a", items) == [[False, False], [False, False]]
    assert found(tmp_path / "b", items, normalize=True) == [[False, False], [True, False]]


def test_a_document_in_pieces_is_the_same_document() -> None:
    whole, pieces = Hasher(False), Hasher(False)
    whole.add(batch_of([b"one", b"a long text", b"two"]))
    pieces.add(batch_of([b"one", b"a lo"], open=True))
    pieces.add(batch_of([b"ng "], begun=True, open=True))
    pieces.add(batch_of([b"text", b"two"], begun=True))
    assert whole.table() == pieces.table()
