"""The byte layout, checked sample by sample: ill-formed rows are found even if all hashes match."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sets import Opened, check, filled, gap, labelled, make_set, mask_row, names_of, packed
from reference import texts

from data_prep.verify.check_rows import (
    BEGINNING,
    BEHIND,
    CONTINUES,
    EXTRA_LABELS,
    MEANING,
    OTHER_LABELS,
    PADDING,
    PLACE,
    RESERVED,
    TEXT,
)
from data_prep.verify.check_shard import unfinished
from elemdist.rows import DOC, PAD, SEP

# What to change in a sound sample of a set of packed documents or of one document a sample, and
# what is told of it. `at` is the sample.
Change = Callable[[Opened, int], None]


def set_byte(row: int, slot: int, byte: int) -> Change:
    return lambda shard, at: shard.rows[at, row].__setitem__(slot, byte)


def symbol_within(shard: Opened, at: int) -> None:
    shard.rows[at, filled(shard, at)] = [ord("a"), DOC, PAD, PAD]


def text_behind_symbol(shard: Opened, at: int) -> None:
    shard.rows[at, filled(shard, at)] = [DOC, ord("a"), PAD, PAD]


def padding_between(shard: Opened, at: int) -> None:
    shard.rows[at, filled(shard, at)] = PAD


def separator(shard: Opened, at: int) -> None:
    shard.rows[at, filled(shard, at)] = [SEP, PAD, PAD, PAD]


def document(shard: Opened, at: int) -> None:
    shard.rows[at, filled(shard, at)] = [DOC, PAD, PAD, PAD]


def cut_character(shard: Opened, at: int) -> None:
    shard.rows[at, filled(shard, at)] = [0xC3, ord("a"), PAD, PAD]


def lone_end(shard: Opened, at: int) -> None:
    shard.rows[at, filled(shard, at)] = [ord("a"), 0x80, PAD, PAD]


def no_row(shard: Opened, at: int) -> None:
    shard.rows[at] = PAD


COMMON = [
    (mask_row, RESERVED),
    (gap, BEHIND),
    (symbol_within, BEHIND),
    (text_behind_symbol, BEHIND),
    (padding_between, PADDING),
    (separator, PLACE),
    (cut_character, TEXT),
    (lone_end, TEXT),
    (no_row, BEGINNING),
    *[
        (
            lambda shard, at, byte=byte: shard.rows[at, filled(shard, at)].__setitem__(0, byte),
            RESERVED,
        )
        for byte in (0xC0, 0xC1, *range(0xF5, 0xFC))
    ],
]


@pytest.mark.parametrize("packing", ["packed", "document"])
@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize(("change", "flag"), COMMON)
def test_ill_formed_rows_are_found_behind_good_hashes(
    tmp_path: Path, change: Change, flag: int, packing: str, compression: str | None
) -> None:
    make = packed if packing == "packed" else labelled
    path = make(tmp_path / "set", n=8, compression=compression)
    shard = Opened(path, 3)
    change(shard, 2)
    shard.write()
    found = [p for p in check(path).problems if p.sample is not None]
    assert [(p.file, p.sample) for p in found][:1] == [(shard.name, 2)]
    assert MEANING[flag] in found[0].text
    assert check(path, quick=True).problems == []


def test_a_sample_begins_as_the_packing_says(tmp_path: Path) -> None:
    path = labelled(tmp_path / "set", n=6)
    shard = Opened(path, 2)
    shard.rows[1, 0] = [ord("a"), PAD, PAD, PAD]
    shard.rows[3, 2] = [DOC, PAD, PAD, PAD]
    shard.write()
    told = {p.sample: p.text for p in check(path).problems if p.sample is not None}
    assert MEANING[BEGINNING] in told[1]
    assert MEANING[PLACE] in told[3]


def test_a_document_does_not_go_on_behind_padding(tmp_path: Path) -> None:
    documents = [b"%d" % k for k in range(8)]
    path = make_set(tmp_path / "set", documents, packing="document", samples=2)
    places = [(1, 0), (2, 1)]  # the first sample of a shard, and one within
    for number, sample in places:
        shard = Opened(path, number)
        shard.rows[sample, 0, 0] = SEP
        shard.write()
    found = [p for p in check(path).problems if p.sample is not None]
    assert found == [(names_of(path)[k], sample, MEANING[CONTINUES]) for k, sample in places]


def test_the_first_sample_of_a_set_goes_on_with_nothing(tmp_path: Path) -> None:
    path = packed(tmp_path / "set")
    shard = Opened(path, 0)
    shard.rows[0, 0] = [ord("a"), PAD, PAD, PAD]
    shard.write()
    assert any(p[1:] == (0, MEANING[CONTINUES]) for p in check(path).problems)


def test_labels(tmp_path: Path) -> None:
    path = labelled(tmp_path / "set", n=4, samples=3)
    starts = [
        (number, sample)
        for number in range(len(names_of(path)))
        for sample, rows in enumerate(Opened(path, number).rows)
        if rows[0, 0] == DOC
    ]
    shard = Opened(path, starts[3][0])
    shard.block[starts[3][1], 1] |= 1  # the 16th of 11 labels
    shard.write()
    told = [
        p.text for p in check(path).problems if (p.file, p.sample) == (shard.name, starts[3][1])
    ]
    assert MEANING[EXTRA_LABELS] in told[0]
    shard.block[starts[3][1], 1] &= 0xFE
    shard.write()
    assert check(path).good
    # A sample within a shard, and one at the start of a shard, that go on with a document.
    for place in (1, 0):
        number = next(k for k in range(3, 30) if Opened(path, k).rows[place, 0, 0] == SEP)
        shard = Opened(path, number)
        shard.block[place, 0] ^= 0x80
        shard.write()
        told = [p.text for p in check(path).problems if (p.file, p.sample) == (shard.name, place)]
        assert told == [MEANING[OTHER_LABELS]]
        shard.block[place, 0] ^= 0x80
        shard.write()
    shard = Opened(path, starts[3][0])
    shard.block[starts[3][1], 0] ^= 0x80
    shard.write()
    assert any("label_counts['label 0']" in p.text for p in check(path).problems)


@pytest.mark.parametrize("v", [1, 2, 3])
def test_characters_cut_between_shards(tmp_path: Path, v: int) -> None:
    text = "é中👍a" * 40
    path = make_set(tmp_path / "set", [text.encode()], n=2, v=v, segmenter="byte", samples=1)
    assert check(path).good
    for number in range(1, 20):
        shard = Opened(path, number)
        before = shard.raw.copy()
        shard.rows[0, 0, 0] = 0x41 if shard.rows[0, 0, 0] & 0xC0 == 0x80 else 0x80
        shard.write()
        report = check(path)
        near = (
            names_of(path)[number - 3 : number + 4] if number > 3 else names_of(path)[: number + 4]
        )
        told = [p for p in report.problems if MEANING[TEXT] in p.text]
        assert told, number
        assert {p.file for p in told} <= set(near)
        shard.raw[:] = before
        shard.write()
    assert check(path).good


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("packing", ["packed", "document", "truncated"])
def test_a_document_that_ends_within_a_character(
    tmp_path: Path, packing: str, samples: int
) -> None:
    """At the end of a full sample, of the set, and in front of padding."""
    documents = [b"a" * 14 + "é".encode(), b"b" * 16, "cé".encode()]
    more: dict[str, Any] = {"n": 5, "v": 4, "segmenter": "byte", "samples": samples}
    if packing == "truncated":
        packing, more["overlong"] = "document", "truncate"
    path = make_set(tmp_path / "set", documents, packing=packing, **more)
    for sample in (0, 2):
        shard = Opened(path, sample // samples)
        flat = shard.rows[sample % samples].reshape(-1)
        at = np.flatnonzero(flat == 0xA9)[0]
        flat[at] = PAD
        shard.write()
        told = [p for p in check(path).problems if p.sample is not None]
        lost = sample == 0 and "overlong" in more  # what a full sample cannot hold is dropped
        assert told == [(shard.name, sample % samples, MEANING[TEXT])] * (not lost)
        flat[at] = 0xA9
        shard.write()
    assert check(path).good


EDGES = [
    b"\xe0\x9f\x80",
    b"\xed\xa0\x80",
    b"\xf0\x8f\x80\x80",
    b"\xf4\x90\x80\x80",
    b"\x80",
    b"\xe4\xb8",
]
characters = st.characters(codec="utf-8").map(str.encode)
almost = st.lists(
    st.one_of(characters, characters, st.sampled_from(EDGES), st.binary(min_size=1, max_size=1)),
    max_size=5,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(almost, st.integers(1, 4), st.integers(1, 3))
def test_utf8_is_judged_as_python_does(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, v: int, samples: int
) -> None:
    """Any bytes but the symbols and the reserved ones, over rows, samples and shards."""
    data = bytes(byte for byte in data if byte not in (0xC0, 0xC1) and byte < 0xF5)
    path = tmp_path_factory.mktemp("any")
    make_set(path, [b"ok", data, b"ok"], n=2, v=v, samples=samples, segmenter="byte")
    try:
        data.decode()
        valid = True
    except UnicodeDecodeError:
        valid = False
    try:
        assert check(path).good == valid
    finally:
        shutil.rmtree(path)


def test_unfinished() -> None:
    for character in ("a", "é", "中", "👍"):
        data = character.encode()
        for cut in range(1, len(data)):
            assert unfinished(b"ab" + data[:cut]) == data[:cut]
        assert unfinished(b"ab" + data) == b""
    assert unfinished(b"\x80\x80\x80") == b""
    assert unfinished(b"") == b""


@settings(deadline=None)
@given(
    documents=st.lists(texts, min_size=1, max_size=6),
    n=st.integers(2, 6),
    v=st.integers(1, 5),
    samples=st.integers(1, 4),
    segmenter=st.sampled_from(["word", "char", "byte"]),
    kind=st.sampled_from([("packed", "split"), ("document", "split"), ("document", "truncate")]),
    labels=st.booleans(),
)
def test_whatever_is_packed_is_good(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[str],
    n: int,
    v: int,
    samples: int,
    segmenter: str,
    kind: tuple[str, str],
    labels: bool,
) -> None:
    path = tmp_path_factory.mktemp("good")
    more: dict[str, Any] = {}
    if labels and kind[0] == "document":
        more = {"names": list("abcdefghi"), "labels": [[k % 9] for k in range(len(documents))]}
    data = [text.encode("utf-8", "replace") for text in documents]
    packing, overlong = kind
    make_set(
        path, data, n=n, v=v, samples=samples, segmenter=segmenter, packing=packing,
        overlong=overlong, **more,
    )  # fmt: skip
    try:
        assert check(path).problems == []
    finally:
        shutil.rmtree(path)
