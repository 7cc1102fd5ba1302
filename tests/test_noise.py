from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemdist.noise import ALIKE, KINDS, LOOKS, SCANS, noisy

TEXT = "Bahia cocoa review: showers continued throughout the week, 1,000 tonnes. " * 60
LETTERS = sum(letter.isalpha() for letter in TEXT)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@given(text=texts, kind=st.sampled_from(KINDS), rate=st.floats(0, 1), seed=st.integers(0, 99))
def test_noise_is_text_and_the_same_each_time(text, kind, rate, seed):
    found = noisy(text, kind, rate, seed, 5)
    assert found.encode().decode() == found
    assert found == noisy(text, kind, rate, seed, 5)
    assert noisy(text, kind, 0.0, seed) == text
    kept = [c for c in text if not c.isalpha()]
    if kind != "ocr":  # which makes digits of letters
        assert [c for c in found if not c.isalpha()] == kept or kind in ("case", "mixed")


def test_it_is_this_noise_on_every_machine():
    assert noisy("The grey heron stands in water.", "mixed", 0.3, seed=1) == (
        "The gery hеron sotandsn iyna wAfEr."
    )


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_so_many_letters_are_hit(rate):
    bound = 4 * (rate * (1 - rate) / LETTERS) ** 0.5
    assert (LETTERS - sum(map(str.isalpha, noisy(TEXT, "drop", rate, 1)))) / LETTERS == (
        pytest.approx(rate, abs=bound)
    )
    for kind in ("insert", "repeat"):
        assert (len(noisy(TEXT, kind, rate, 1)) - len(TEXT)) / LETTERS == (
            pytest.approx(rate, abs=bound)
        )
    changed = sum(a != b for a, b in zip(TEXT, noisy(TEXT, "case", rate, 1), strict=True))
    assert changed / LETTERS == pytest.approx(rate, abs=bound)


def test_what_each_kind_does_to_every_letter():
    assert noisy("abcde fg", "swap", 1.0, 1) == "badce gf"
    assert noisy("ab, c", "drop", 1.0, 1) == ", "
    assert noisy("ab 1", "repeat", 1.0, 1) == "aabb 1"
    assert noisy("aB 雨1", "case", 1.0, 1) == "Ab 雨1"
    assert noisy("mild", "ocr", 1.0, 1) == "rnl1cl"
    inserted = noisy("дом", "insert", 1.0, 1)
    assert inserted[::2] == "дом"
    assert set(inserted) == set("дом")
    assert noisy("cocoa", "homoglyph", 1.0, 1) == "сосоа"


def test_what_looks_alike_is_of_another_script():
    for latin, other in LOOKS.items():
        assert unicodedata.name(latin).startswith("LATIN")
        assert unicodedata.name(other).split()[0] in ("CYRILLIC", "GREEK")
        assert ALIKE[other] == latin
    assert all(before != after for before, after in SCANS.items())


def test_documents_and_seeds_have_noise_of_their_own():
    found = {noisy(TEXT, "mixed", 0.1, seed, number) for seed in (1, 2) for number in (0, 1, 2)}
    assert len(found) == 6
