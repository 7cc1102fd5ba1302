from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from data_prep.kernels import row_ends
from data_prep.segment import Segmenter
from elemdist.batch import unpad
from elemdist.batch_plan import BatchPlan
from elemdist.data import Order, evaluation_batches, training_steps
from elemdist.errors import UserError
from elemdist.inputs import check_tokenizer, open_reading, open_symbols
from elemdist.model_config import Symbols
from elemdist.rows import SEP
from elemdist.shards import ShardSet
from elemdist.subword import token_bytes
from tests.input_cases import (
    SENTENCES,
    configured,
    in_order,
    pack,
    save_tokenizers,
    segments,
    subword,
    texts,
)


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory) -> dict[str, str]:
    return save_tokenizers(tmp_path_factory.mktemp("tokenizers"))


def marks_of(text: bytes, path: str) -> list[int]:
    """The lengths in bytes of the materials that the shards' segmenter makes of a text."""
    data = np.frombuffer(text, np.uint8)
    ends = np.array([len(data)])
    marks = Segmenter("subword", path).marks(data, np.zeros(1, np.int64), ends).copy()
    return np.diff(row_ends(data, marks, 10_000, False), prepend=0).tolist()


@pytest.mark.parametrize("name", ["wordpiece", "byte_level", "unigram"])
@given(documents=texts)
@settings(max_examples=40, deadline=None)
def test_tokens_are_the_tokenizers_and_their_bytes_the_text(tokenizer_files, name, documents):
    path = tokenizer_files[name]
    reading, tokenizer = subword(path), Tokenizer.from_file(path)
    rows = pack(documents, 2000, 6, "char")
    got = in_order(unpad(rows, None, np.arange(len(rows)), reading))
    for (_, ids, sizes, _), text in zip(got, documents, strict=True):
        assert ids.dtype == np.int32
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids[:, 0].tolist() == [reading.symbols.doc, *expected]
        assert sizes is not None
        assert sizes[0] == 0
        if expected:
            assert sizes.sum() == len(text.encode())
            assert [size for size in sizes.tolist() if size] == marks_of(text.encode(), path)
            assert sizes[1] > 0


@pytest.mark.parametrize("name", ["wordpiece", "byte_level", "unigram"])
@given(documents=texts, n=st.integers(2, 30), v=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_tokens_of_cut_segments_have_all_bytes(tokenizer_files, name, documents, n, v):
    """Of parts of documents, whose first and last characters may be torn apart, too."""
    reading = subword(tokenizer_files[name])
    rows = pack(documents, n, v, "byte")
    batch = unpad(rows, None, np.arange(len(rows)), reading)
    # A segment without a token, as of a blank, is none, unless it has a symbol.
    expected = []
    for sample, symbol, text, ended in segments(rows):
        readable = text.decode("utf-8", "surrogateescape")
        readable = re.sub("[\ud800-\udfff]", "\ufffd", readable)
        ids = reading.tokenizer.encode(readable, add_special_tokens=False).ids
        if ids or symbol >= 0:
            expected.append((sample, symbol, len(text) if ids else 0, ids, ended))
    total = 0
    for got, (sample, symbol, size, ids, ended) in zip(in_order(batch), expected, strict=True):
        assert (got[0], got[3]) == (sample, ended)
        assert got[1][:, 0].tolist() == [reading.symbols.doc] * (symbol >= 0) + ids
        assert got[2] is not None
        assert got[2].sum() == size
        total += size
    assert batch.text_bytes == total
    assert int(batch.text_T().sum()) == sum(len(ids) for *_, ids, _ in expected)


def test_a_character_of_several_tokens_has_its_bytes_with_the_first(tokenizer_files):
    rows = pack(["x🦖"], 4, 8, "char")
    batch = unpad(rows, None, np.array([0]), subword(tokenizer_files["byte_level"]))
    assert batch.bytes_T is not None
    assert batch.bytes_T[1:3].tolist() == [1, 4]
    assert not batch.bytes_T[3:].any()
    assert batch.text_T().tolist() == [False] + [True] * (len(batch.rows_TV) - 1)
    assert len(batch.rows_TV) > 3


def test_tokens_at_the_end_of_a_text_stand_for_nothing():
    """As some tokenizers give them, whatever else they leave out of a text."""
    sizes = np.array([1, 2, 3, 4, 1])
    found = token_bytes(np.array([1, 1, 2, 2, 0, 1]), np.array([4, 2]), sizes, np.array([2, 3]))
    assert found.tolist() == [3, 0, 0, 0, 3, 5]
    found = token_bytes(np.array([2, 0, 2]), np.array([1, 0, 2]), sizes, np.array([2, 1, 2]))
    assert found.tolist() == [3, 5, 0]


def test_a_segment_of_more_tokens_than_positions_loses_its_end(tokenizer_files):
    rows = pack([SENTENCES[0], "a b"], 200, 8)
    path = tokenizer_files["wordpiece"]
    whole = in_order(unpad(rows, None, np.array([3]), subword(path)))
    cut = in_order(unpad(rows, None, np.array([3]), subword(path, most=7)))
    assert len(whole[0][1]) > 7
    assert (cut[0][1] == whole[0][1][:7]).all()
    assert (cut[1][1] == whole[1][1]).all()
    assert [part[3] for part in whole] == [True, True]
    assert [part[3] for part in cut] == [False, True]


def test_separators_become_the_tokenizers(tokenizer_files):
    reading = subword(tokenizer_files["wordpiece"])
    rows = pack(["the dog"], 5, 8)
    rows[0, 0, 0] = SEP
    batch = unpad(rows, None, np.array([0]), reading)
    assert batch.rows_TV[0, 0] == reading.symbols.sep != reading.symbols.doc
    assert not batch.text_T()[0]


def test_a_tokenizer_that_refuses_a_text_is_one_line(tmp_path):
    path = str(tmp_path / "words.json")
    Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]")).save(path)
    with pytest.raises(UserError, match=re.escape(f"the tokenizer {path} cannot cut a text: ")):
        unpad(pack(["b"], 4, 8), None, np.array([0]), subword(path))


def test_symbols_are_the_tokenizers_where_it_has_them(tokenizer_files, tmp_path):
    pieces = Tokenizer.from_file(tokenizer_files["wordpiece"])
    numbers = [pieces.token_to_id(name) for name in ("[CLS]", "[SEP]", "[MASK]")]
    assert open_symbols(tokenizer_files["wordpiece"]) == Symbols(*numbers, pieces.get_vocab_size())
    size = Tokenizer.from_file(tokenizer_files["byte_level"]).get_vocab_size()
    assert open_symbols(tokenizer_files["byte_level"]) == Symbols(
        size, size + 1, size + 2, size + 3
    )
    some = Tokenizer.from_file(tokenizer_files["unigram"])
    size = some.get_vocab_size()
    expected = Symbols(some.token_to_id("<s>"), some.token_to_id("</s>"), size, size + 1)
    assert open_symbols(tokenizer_files["unigram"]) == expected
    # numbers that are left out are no room for new ones
    path = str(tmp_path / "holes.json")
    Tokenizer(models.WordLevel({"a": 0, "<mask>": 7}, unk_token="a")).save(path)
    assert open_symbols(path) == Symbols(8, 9, 7, 10)


def test_a_missing_or_wrong_tokenizer_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"model\.tokenizer: .*--model\.tokenizer FILE"):
        open_symbols(None)
    with pytest.raises(UserError, match=r"cannot read .*nothing\.json: there is no such file"):
        open_symbols(str(tmp_path / "nothing.json"))
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"other\.json is no file of the tokenizers library"):
        open_symbols(str(path))


def test_shards_of_another_tokenizer_or_segmenter_are_refused(tokenizer_files):
    path = tokenizer_files["wordpiece"]
    digest = xxhash.xxh3_128(Path(path).read_bytes()).hexdigest()
    good = {"segmenter": "subword", "libraries": {"tokenizer_xxh3_128": digest}}
    check_tokenizer(good, path, "set")
    advice = re.escape(f"make it with `elemdist shard --segmenter subword --tokenizer {path}`")
    with pytest.raises(UserError, match=f"set: .* segmenter word; {advice}"):
        check_tokenizer(good | {"segmenter": "word"}, path, "set")
    for libraries in ({"tokenizer_xxh3_128": "0" * 32}, {}, None):
        with pytest.raises(UserError, match=f"set: .* another tokenizer .*; {advice}"):
            check_tokenizer(good | {"libraries": libraries}, path, "set")


def test_the_loader_reads_as_the_model_does(corpus, make_shards, tokenizer_files):
    """From the command that makes shards to batches of tokens, on two ranks and for evaluation."""
    path = tokenizer_files["wordpiece"]
    folder = make_shards(corpus, "--segmenter", "subword", "--tokenizer", path, "--n", "256")
    shards = ShardSet(str(folder))
    check_tokenizer(shards.manifest, path, shards.path)
    reading = open_reading(configured("subword", path, n=256))
    tokenizer = Tokenizer.from_file(path)
    expected = [
        tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
        for line in corpus.read_text(encoding="utf-8").splitlines()[:40]
    ]
    got: list[list[int]] = []
    for batch, counted in evaluation_batches(shards, 8, 0, 1, 40, reading):
        assert counted == 8
        got += [ids[1:, 0].tolist() for _, ids, _, _ in in_order(batch)]
    assert got == expected
    for rank in range(2):
        order = Order(BatchPlan(8, 2, 1, 2), rank, 1)
        for batches in training_steps(shards, order, range(2), reading=reading):
            assert [batch.rows_TV.dtype for batch in batches] == [torch.int32] * 2
            assert all(batch.bytes_T.sum() == batch.text_bytes > 0 for batch in batches)
