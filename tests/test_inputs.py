from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elemdist.batch import Reading, unpad
from elemdist.inputs import (
    ByteReading,
    CanineReading,
    SubwordReading,
    open_reading,
    open_symbols,
    some_rows,
)
from elemdist.objectives import mask_materials
from elemdist.rows import FIRST_SPECIAL, PAD, SEP
from elemdist.shards import ShardSet
from tests.input_cases import (
    SENTENCES,
    configured,
    in_order,
    pack,
    sample_of_rows,
    save_tokenizers,
    segments,
    subword,
    texts,
)

CHARACTER = re.compile(
    rb"[\xc0-\xdf][\x80-\xbf]?|[\xe0-\xef][\x80-\xbf]{,2}|[\xf0-\xfb][\x80-\xbf]{,3}|.", re.DOTALL
)


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory) -> dict[str, str]:
    return save_tokenizers(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(params=["elementwise", "byte", "canine", "wordpiece", "byte_level"])
def reading(request, tokenizer_files) -> Reading | None:
    if request.param in tokenizer_files:
        return subword(tokenizer_files[request.param])
    return {"elementwise": None, "byte": ByteReading(), "canine": CanineReading()}[request.param]


@pytest.mark.parametrize("segmenter", ["word", "byte", "char"])
@given(documents=texts, n=st.integers(2, 40), v=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_bytes_and_characters_of_a_segment_are_its_text(segmenter, documents, n, v):
    rows = pack(documents, n, v, segmenter)
    expected = segments(rows)
    for reading in (ByteReading(), CanineReading()):
        batch = unpad(rows, None, np.arange(len(rows)), reading)
        assert batch.bytes_T is None
        assert batch.text_bytes == sum(len(text) for _, _, text, _ in expected)
        for got, (sample, symbol, text, ended) in zip(in_order(batch), expected, strict=True):
            special = [bytes([symbol])] if symbol >= 0 else []
            whole = [bytes([x]) for x in text]
            if isinstance(reading, CanineReading):
                whole = CHARACTER.findall(text)
            assert [row.tobytes().rstrip(b"\xff") for row in got[1]] == special + whole
            assert (got[0], got[3]) == (sample, ended)


@given(documents=texts)
@settings(max_examples=50, deadline=None)
def test_a_position_of_canine_is_a_character_wherever_the_rows_cut(documents):
    rows = pack(documents, 2000, 5, "byte")
    got = in_order(unpad(rows, None, np.arange(len(rows)), CanineReading()))
    for (_, positions, _, _), text in zip(got, documents, strict=True):
        assert [row[row != PAD].tobytes().decode() for row in positions[1:]] == list(text)


@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_no_byte_is_lost_of_what_is_no_utf8(samples):
    rows = np.full((len(samples), 30, 1), PAD, np.uint8)
    for row, data in zip(rows, samples, strict=True):
        row[: len(data), 0] = [x % FIRST_SPECIAL for x in data]
    for reading in (ByteReading(), CanineReading()):
        got = in_order(unpad(rows, None, np.arange(len(rows)), reading))
        for (_, positions, _, _), data in zip(got, rows, strict=True):
            assert positions[positions != PAD].tolist() == data[data != PAD].tolist()


def test_stray_bytes_and_separators_are_positions_of_their_own():
    sample = np.full((1, 5, 4), PAD, np.uint8)
    sample[0, 0, 0] = SEP
    sample[0, 1] = [0x9F, 0x91, ord("a"), 0xE6]
    sample[0, 2, :2] = [0xBC, 0xA2]
    batch = unpad(sample, None, np.array([0]), CanineReading())
    assert batch.rows_TV.tolist() == [
        [SEP, PAD, PAD, PAD],
        [0x9F, PAD, PAD, PAD],
        [0x91, PAD, PAD, PAD],
        [ord("a"), PAD, PAD, PAD],
        [0xE6, 0xBC, 0xA2, PAD],
    ]
    assert batch.text_T().tolist() == [False, True, True, True, True]


def test_keys_are_unique_in_the_run_and_depend_on_the_place_alone(reading):
    # Full rows, too, so that a segment has many more positions than rows.
    rows = np.concatenate([pack([text] * 3, 24, 6) for text in [*SENTENCES, "letter" * 9]])
    places = np.random.default_rng(1).permutation(10_000)[: len(rows)]
    batch = unpad(rows, None, places, reading)
    assert batch.place_S.tolist() == places[batch.sample_S.numpy()].tolist()
    keys = batch.key_T.tolist()
    if isinstance(reading, ByteReading):  # one for every material
        assert sorted(set(keys)) == sorted(unpad(rows, None, places).key_T.tolist())
    else:
        assert len(set(keys)) == len(keys)
    some = np.array([5, 2])
    part = unpad(rows[some], None, places[some], reading)
    assert set(part.key_T.tolist()) == {
        key
        for key, sample in zip(keys, sample_of_rows(batch).tolist(), strict=True)
        if sample in some
    }


def test_masks_do_not_depend_on_the_rest_of_the_batch(reading):
    rows = np.concatenate([pack([text] * 3, 24, 6) for text in SENTENCES])
    places = np.arange(len(rows)) + 77
    whole = unpad(rows, None, places, reading)
    masked = mask_materials(whole, 0.4, seed=3)
    changed = differing = 0
    for sample in range(len(rows)):
        alone = unpad(rows[[sample]], None, places[[sample]], reading)
        its_own = mask_materials(alone, 0.4, seed=3)
        here = sample_of_rows(whole) == sample
        assert torch.equal(masked.rows_TV[here], its_own.rows_TV)
        changed += int((its_own.rows_TV != alone.rows_TV).any(1).sum())
        differing += int((mask_materials(alone, 0.4, 4).rows_TV != its_own.rows_TV).any(1).sum())
    assert changed > len(whole.rows_TV) / 5
    assert differing > len(whole.rows_TV) / 5


def test_labels_and_samples_of_every_reading(reading):
    rows = np.concatenate([pack([text] * 3, 24, 6) for text in SENTENCES])
    labels = np.random.default_rng(0).integers(0, 2, (len(rows), 3)).astype(np.uint8)
    batch = unpad(rows, labels, np.arange(len(rows)), reading)
    assert batch.labels_BL is not None
    assert batch.labels_BL.tolist() == labels.tolist()
    assert sorted(batch.sample_S.tolist()) == [sample for sample, *_ in segments(rows)]
    lengths_S = batch.segments.lengths
    assert batch.segments.cu_lengths.tolist() == [0, *np.cumsum(lengths_S)]
    assert batch.segments.cu_lengths.dtype == torch.int32


def test_a_configuration_opens_its_reading(tokenizer_files):
    assert open_reading(configured("elementwise")) is None
    assert isinstance(open_reading(configured("byte")), ByteReading)
    assert isinstance(open_reading(configured("canine")), CanineReading)
    path = tokenizer_files["wordpiece"]
    reading = open_reading(configured("subword", path))
    assert isinstance(reading, SubwordReading)
    assert (reading.most, reading.symbols) == (32, open_symbols(path))


def test_some_rows_are_text_in_the_models_slots(packed, tokenizer_files):
    shards = ShardSet(str(packed / "train"))
    text_bytes = shards.gather(np.arange(shards.samples))[0]
    text = text_bytes[text_bytes < FIRST_SPECIAL]
    for name, slots in (("elementwise", 8), ("byte", 1), ("canine", 4)):
        rows = some_rows(shards, open_reading(configured(name)))
        assert rows.shape[1] == slots
        assert rows[rows != PAD].bincount().tolist() == np.bincount(text).tolist()
    reading = open_reading(configured("subword", tokenizer_files["byte_level"], n=500))
    assert isinstance(reading, SubwordReading)
    rows = some_rows(shards, reading)
    decoded = reading.tokenizer.decode(rows[:, 0].tolist()).encode()
    assert np.bincount(list(decoded)).tolist() == np.bincount(text).tolist()
