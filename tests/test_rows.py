from __future__ import annotations

import numpy as np

from elemdist.rows import DOC, PAD, SEP, documents, rows_to_bytes, special_row


def rows(*materials: bytes, v: int = 4) -> np.ndarray:
    return np.array([list(m) + [PAD] * (v - len(m)) for m in materials], np.uint8)


def test_special_bytes_never_occur_in_utf8():
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)])).encode()
    assert max(text) < SEP


def test_special_row_holds_the_symbol_in_slot_0():
    assert special_row(DOC, 3).tolist() == [DOC, PAD, PAD]


def test_rows_to_bytes_keeps_control_characters_and_drops_special_bytes():
    assert rows_to_bytes(rows(bytes([DOC]), b"a\0b", b"\x7f", bytes([SEP]), b"abcd")) == (
        b"a\0b\x7fabcd"
    )


def test_documents_go_on_over_the_ends_of_samples():
    first = rows(bytes([DOC]), b"one ", bytes([DOC]), b"tw")
    second = rows(b"o", b" x", bytes([DOC]), bytes([DOC]))
    third = rows(bytes([SEP]), b"end", b"", b"")
    assert list(documents([first, second, third])) == [b"one ", b"two x", b"", b"end"]
