"""The table of classes against Python's own Unicode data, where that is no newer than the table."""

from __future__ import annotations

import unicodedata

import pytest

from data_prep import classes

# Letters, digits and joiners that are not what their Unicode category says.
ENCLOSED = set(range(0x2460, 0x2500)) | set(range(0x2776, 0x2794))  # they stand as signs do
JOINERS = {0x00AD, 0x200C, 0x200D}


@pytest.fixture(scope="module")
def table() -> list[int]:
    return classes.class_table().tolist()


def test_classes_follow_unicode_categories(table: list[int]) -> None:
    if float(unicodedata.unidata_version.rpartition(".")[0]) > 15.1:
        pytest.skip(
            "this Python's Unicode is newer than the table; make clean test PYTHON=python3.13"
        )
    unspaced = set()
    for first, last in classes.ranges(classes.UNSPACED):
        unspaced.update(range(first, last + 1))
    wrong = []
    for point in range(0x80, 0x10000):
        category = unicodedata.category(chr(point))
        if category in ("Cn", "Cs"):
            continue
        word = category[0] in "LNM" and point not in unspaced and point not in ENCLOSED
        if (table[point] == classes.WORD) != (word or point in JOINERS):
            wrong.append(f"{point:04X} {category}")
    assert not wrong


def test_ascii() -> None:
    table = classes.class_table()
    for point in range(0x80):
        character = chr(point)
        if character.isalnum():
            wanted = classes.WORD
        elif character in "\t\n\v\f\r ":
            wanted = classes.WHITE
        elif character.isprintable():
            wanted = classes.REPEAT
        else:
            wanted = classes.SINGLE
        assert table[point] == wanted, point


@pytest.mark.parametrize(
    "text", ["中か한ไ", "ラーメン", "ཀြ", "ခ", "ខ", "ꦗ", "𠀀", "🙂", "…", "€", "।", "،"]
)
def test_single(text: str, table: list[int]) -> None:
    for character in text.replace("한", ""):
        assert table[ord(character)] == classes.SINGLE, character


@pytest.mark.parametrize("character", "한éжعक்ሰªⅣ٣\u0301\u200d𝒜𐐷ﬁ")
def test_word(character: str, table: list[int]) -> None:
    assert table[ord(character)] == classes.WORD
