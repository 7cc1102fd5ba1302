from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import elemdist
from data_prep.segment import rows_of
from elemdist import checkpoint
from elemdist.embedding import (
    INVALID_CODE,
    PRIMES,
    ElementwiseEmbedding,
    HashEmbedding,
    SlotMixing,
    TokenEmbedding,
    build_embedding,
    code_points,
)
from elemdist.errors import UserError
from elemdist.materials import distinct, most_frequent, shuffled, uncased
from elemdist.model import Model
from elemdist.model_config import ModelConfig, Symbols, resolved
from elemdist.model_settings import AblationSettings, CanineSettings, ModelSettings
from elemdist.rows import DOC, MASK, PAD, SEP, special_row
from elemdist.shards import ShardSet
from elemdist.streaming_compat import fit_torchvision
from elemdist.table_gradient import lookup
from tests.conftest import TINY
from tests.conftest import elemdist as run_elemdist

fit_torchvision()  # transformers imports torchvision, too, which fails beside a CPU torch

from transformers import CanineConfig, CanineTokenizer  # noqa: E402
from transformers.models.canine import modeling_canine  # noqa: E402

SCRIPTS = (
    "The heron's nest, 3.5 m. Ünïcödé Żółta łódź. Ο γάτος. Серая цапля. שלום مرحبا नमस्ते "
    "สวัสดี 雨が降る 안녕 \x00\t\n\x7f\x80߿ࠀ￿ \U00010000 👩‍🚀🏳️‍🌈 𝔘𝔫𝔦 \U0010ffff \ue000 e\u0301"
)


def words(text: str, v: int) -> torch.Tensor:
    return torch.from_numpy(rows_of(text.encode(), v))


def characters(text: str) -> torch.Tensor:
    return torch.from_numpy(rows_of(text.encode(), 4, "char"))


def config(**settings: object) -> ModelConfig:
    model = ModelSettings(**{"width": 48, **settings})
    symbols = Symbols(doc=1, sep=2, mask=3, vocabulary=50) if model.input == "subword" else None
    return ModelConfig(n=8, v=12, objective="mlm", model=resolved(model, 12), symbols=symbols)


# The elementwise embedding


@pytest.mark.parametrize("tables", ["shared", "per_slot"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 0, 3)])
def test_a_material_is_its_bytes_vectors_side_by_side(tables, dtype, shape):
    embedding = ElementwiseEmbedding(4, 12, tables=tables)
    assert embedding.table.shape == ((256, 3) if tables == "shared" else (4, 256, 3))
    rows = torch.randint(0, 256, (*shape, 4)).to(dtype)
    out = embedding(rows)
    assert out.shape == (*shape, 12)
    for row, vector in zip(rows.reshape(-1, 4), out.reshape(-1, 12), strict=True):
        for slot, byte in enumerate(row.tolist()):
            table = embedding.table if tables == "shared" else embedding.table[slot]
            assert torch.equal(vector[3 * slot : 3 * slot + 3], table[byte])


@pytest.mark.parametrize("tables", ["shared", "per_slot"])
def test_an_unused_slot_starts_at_zero(tables):
    out = ElementwiseEmbedding(12, 48, tables=tables)(words("heron", 12))
    assert (out[0, 5 * 4 :] == 0).all()
    assert (out[0, : 5 * 4] != 0).all()


def test_it_comes_out_of_the_package_and_torch_only_when_asked_for():
    assert elemdist.ElementwiseEmbedding is ElementwiseEmbedding
    with pytest.raises(AttributeError, match="no attribute 'ElementEmbedding'"):
        elemdist.ElementEmbedding  # noqa: B018
    code = (
        "import sys, elemdist; assert 'torch' not in sys.modules; from elemdist import "
        "ElementwiseEmbedding; assert 'torch' in sys.modules; from elemdist import rows"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: ElementwiseEmbedding(12, 100), "width: 100 is not a .* nearest are 96 and 108"),
        (lambda: ElementwiseEmbedding(0, 100), "v=0 and width=100 are at least 1"),
        (lambda: ElementwiseEmbedding(4, 8, mixing=-1), "mixing=-1"),
        (lambda: ElementwiseEmbedding(4, 8, tables="perslot"), "did you mean 'per_slot'"),
        (lambda: ElementwiseEmbedding(4, 8, slots="x"), "there is no 'x'; it is ordered or"),
        (lambda: ElementwiseEmbedding(4, 8)(torch.zeros(3, 5).byte()), r"shape is \(3, 5\)"),
        (lambda: ElementwiseEmbedding(4, 8)(torch.zeros(4)), "not torch.float32"),
        (lambda: ElementwiseEmbedding(4, 8)(torch.zeros(4).bool()), "not torch.bool"),
        (lambda: ElementwiseEmbedding(2, 8)(torch.tensor([-1, 3])), "values from -1 to 3"),
        (
            lambda: ElementwiseEmbedding(2, 8, tables="per_slot")(torch.tensor([256, 3])),
            "values from 3 to 256",
        ),
        (lambda: HashEmbedding(30), "hashes=8 are 1 to 16 and divide width=30"),
        (lambda: HashEmbedding(34, hashes=17), "hashes=17"),
        (lambda: HashEmbedding(32, buckets=0), "buckets=0"),
        (lambda: HashEmbedding(32)(torch.zeros(3, 12).byte()), "v=4 bytes are needed"),
    ],
)
def test_a_mistake_gets_one_line(mistake, message):
    with pytest.raises(UserError, match=message) as caught:
        mistake()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{}, {"tables": "per_slot"}, {"slots": "shuffled"}, {"mixing": 3}]
)
def test_it_learns_what_another_one_knows(options):
    torch.manual_seed(0)
    knows, learns = (ElementwiseEmbedding(12, 24, **options) for _ in range(2))
    rows = words("The grey heron stands in shallow water, and waits for the herring.", 12)
    with torch.no_grad():
        knows.table *= 50
    goal = knows(rows).detach()
    optimizer = torch.optim.Adam(learns.parameters(), lr=0.05)
    losses = []
    for _ in range(80):
        losses.append((learns(rows) - goal).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.01 * losses[0]
    assert all((p.grad != 0).any() for p in learns.parameters())


# Ablations


def test_shuffled_slots_are_an_order_of_each_material_itself():
    rows = words(SCRIPTS * 3, 12)
    moved = shuffled(rows)
    assert torch.equal(moved.sort(-1).values, rows.sort(-1).values)  # the same bytes
    assert torch.equal(shuffled(rows), moved)
    alone = torch.cat([shuffled(row.unsqueeze(0)) for row in rows])  # whatever stands around
    assert torch.equal(alone, moved)
    assert torch.equal(shuffled(rows.unsqueeze(1)).squeeze(1), moved)
    assert torch.equal(shuffled(rows.long()), moved.long())


def test_shuffled_slots_say_nothing():
    # All rows of 12 different bytes, of which one byte differs: where byte 0 goes is uniform.
    rows = torch.arange(12).repeat(6000, 1)
    rows[:, 10] = 20 + torch.arange(6000) % 200
    rows[:, 11] = 20 + torch.arange(6000) // 200
    places = (shuffled(rows.byte()) == 0).int().argmax(-1)
    counts = torch.bincount(places, minlength=12)
    assert counts.min() > 400  # 500 are expected, with a deviation of 21
    assert counts.max() < 600


def test_shuffling_changes_the_input_only_where_it_is_asked_for():
    rows = words("The heron stands.", 12)
    torch.manual_seed(0)
    plain = ElementwiseEmbedding(12, 24)
    torch.manual_seed(0)
    mixed = ElementwiseEmbedding(12, 24, slots="shuffled")
    assert not torch.equal(plain(rows), mixed(rows))
    assert torch.equal(plain(shuffled(rows)), mixed(rows))


@pytest.mark.parametrize("key", [None, lambda rows_V: rows_V[..., 0].long()])
def test_rows_are_mixed_once_each_even_where_keys_collide(key, monkeypatch):
    if key is not None:
        monkeypatch.setattr("elemdist.materials.row_key", key)
    torch.manual_seed(0)
    rows = torch.randint(0, 3, (7, 40, 4), dtype=torch.uint8)
    found, place = distinct(rows.reshape(-1, 4))
    assert torch.equal(found[place], rows.reshape(-1, 4))
    assert len(found) == (len(rows.reshape(-1, 4).unique(dim=0)) if key is None else 280)
    embedding = ElementwiseEmbedding(4, 16, mixing=8)
    torch.nn.init.normal_(embedding.mixing.out)
    one_by_one = torch.stack([embedding(row) for row in rows.reshape(-1, 4)]).view(7, 40, 16)
    torch.testing.assert_close(embedding(rows), one_by_one)
    assert embedding(rows[:0]).shape == (0, 40, 16)
    weight = torch.randn(7, 40, 16)
    ours = torch.autograd.grad((embedding(rows) * weight).sum(), embedding.table)[0]
    theirs = torch.autograd.grad((one_by_one * weight).sum(), embedding.table)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_most_frequent_materials():
    rows = rows_of(b"b a b c b a dd ", 3)
    got = most_frequent(torch.from_numpy(rows))
    assert [bytes(row[row < 0xFC].tolist()) for row in got.numpy()[:2]] == [b"b ", b"a "]
    assert sorted(map(tuple, got.tolist())) == sorted(map(tuple, np.unique(rows, axis=0).tolist()))


def folded(row: bytes) -> bytes:
    """What :func:`uncased` gives, by Python's own methods."""
    text = row.split(bytes([PAD]))[0]
    lower = text.lower()
    lower = lower[:1] + lower[1:].removesuffix(b" ")
    return lower.ljust(len(row), bytes([PAD]))


@pytest.mark.parametrize("v", [1, 2, 5, 12])
def test_uncased_rows_are_words_in_lower_case_without_the_space_behind(v):
    text = SCRIPTS + " The HERON's  two\n wheat, Wheat WHEAT Zz@[ `{ \u00c5ngstr\u00f6m "
    rows = words(text, v)
    expected = [folded(bytes(row)) for row in rows.numpy()]
    assert [bytes(row) for row in uncased(rows).numpy()] == expected
    assert torch.equal(uncased(rows.long()), uncased(rows).long())
    symbols = np.stack([special_row(DOC, v), special_row(SEP, v), np.full(v, MASK)])
    symbols = torch.from_numpy(symbols.astype(np.uint8))
    assert torch.equal(uncased(symbols), symbols)


def test_an_uncased_model_reads_a_word_alike_wherever_it_stands():
    torch.manual_seed(0)
    embedding = ElementwiseEmbedding(12, 24, mixing=3, uncased=True)
    rows = words("Wheat wheat, WHEAT oats.", 12)  # "Wheat ", "wheat", ",", " ", "WHEAT ", ...
    embedding.answer_to(rows)
    torch.nn.init.normal_(embedding.mixing.out)
    vectors, answers, place = embedding(rows, answers=True)
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[0], vectors[4])
    assert not torch.equal(vectors[0], vectors[5])
    assert answers[place[4]].argmax() == 0  # the most frequent of the rows
    assert not torch.equal(*ElementwiseEmbedding(12, 24)(rows)[:2])


@pytest.mark.parametrize(
    ("model", "said"), [({"input": "subword"}, "tokenizer"), ({"input": "canine"}, "characters")]
)
def test_uncased_is_for_bytes(model, said):
    symbols = Symbols(0, 1, 2, 30) if model["input"] == "subword" else None
    shape = resolved(ModelSettings(uncased=True, **model), 12)
    with pytest.raises(UserError, match=rf"model.uncased: .*{said}"):
        ModelConfig(96, 12, "mlm", shape, symbols=symbols)


@pytest.mark.parametrize("options", [{}, {"tables": "per_slot"}, {"slots": "shuffled"}])
def test_units_of_mixing_answer_to_materials(options):
    """Each to its own most, to a misspelt one less, to others not; units left over stay random."""
    torch.manual_seed(0)
    embedding = ElementwiseEmbedding(12, 192, mixing=8, **options)
    before = embedding.mixing.into.clone()
    words = b"cocoa exports wheat shipments interest "
    rows = torch.from_numpy(rows_of(words, 12))
    embedding.answer_to(rows.repeat_interleave(torch.arange(5, 0, -1), 0))  # the first most often
    assert torch.equal(embedding.mixing.into[5:], before[5:])

    def answers(rows: torch.Tensor) -> torch.Tensor:
        mixing = embedding.mixing
        x = lookup(embedding.table, shuffled(rows) if embedding.shuffle else rows).flatten(-2)
        unit = torch.nn.functional.layer_norm(x, x.shape[-1:])
        return torch.nn.functional.relu(unit @ mixing.into.T + mixing.bias)[:, :5]

    own = answers(rows)
    assert (own.diagonal() > 1.5).all()
    assert (own - torch.diag(own.diagonal())).max() < 0.3
    if embedding.shuffle:
        return  # another byte is another order
    misspelt = answers(torch.from_numpy(rows_of(b"cocoa exporta wheat shipmemts interent ", 12)))
    assert (misspelt.diagonal() > 0.3).all()
    assert (misspelt.diagonal()[[1, 3, 4]] < own.diagonal()[[1, 3, 4]] - 0.1).all()


def test_training_starts_mixing_at_the_materials_of_its_shards(labelled, tmp_path):
    words = ["--objective", "classify", "--model.ablation.mixing", "6", "--optim.lr", "1e-12"]
    run = tmp_path / "run"
    done = run_elemdist(
        "train", *TINY, *words, "--steps", "1", "--run-dir", run, "--data.train", labelled / "train"
    )
    assert done.returncode == 0, done.stderr
    weights = checkpoint.find(str(run)).weights()
    shards = ShardSet(str(labelled / "train"))
    rows = torch.from_numpy(shards.gather(np.arange(shards.samples))[0].reshape(-1, shards.v))
    first = most_frequent(rows[rows[:, 0] < 0xFC])[:6]
    x = weights["encoder.embedding.table"][first.long()].flatten(1)
    unit = torch.nn.functional.layer_norm(x, x.shape[-1:])
    got = torch.nn.functional.cosine_similarity(weights["encoder.embedding.mixing.into"], unit)
    torch.testing.assert_close(got, torch.ones(6))


@pytest.mark.parametrize("few", [0, 1 << 40])  # compute all pairs that count, or all there are
def test_mixing_of_the_few_units_that_answer_is_that_of_all(few, monkeypatch):
    monkeypatch.setattr("elemdist.embedding.FEW", few)
    torch.manual_seed(0)
    mixing = SlotMixing(24, 40).double()
    torch.nn.init.normal_(mixing.out)
    torch.nn.init.normal_(mixing.bias)
    x = torch.randn(9, 24, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(9, 24).double(), torch.randn(9, 40).double()
    inputs = [x, *mixing.parameters()]

    def gradients(mixed: torch.Tensor, answers: torch.Tensor) -> list[torch.Tensor]:
        loss = (mixed * weights[0]).sum() + (answers * weights[1]).sum()
        return [mixed, answers, *torch.autograd.grad(loss, inputs)]

    unit = torch.nn.functional.layer_norm(x, (24,))
    inner = torch.nn.functional.relu(unit @ mixing.into.T + mixing.bias)
    expected = gradients(x + inner @ mixing.out.T, inner / 3)
    for got, known in zip(gradients(*mixing(x, answers=True)), expected, strict=True):
        torch.testing.assert_close(got, known)
    assert torch.equal(mixing(x)[0], mixing(x, answers=True)[0])
    assert mixing(x)[1] is None


def test_mixing_starts_as_the_identity_also_within_a_model():
    model = Model(config(ablation=AblationSettings(mixing=5)))
    embedding = model.encoder.embedding
    assert [p.shape for p in embedding.mixing.parameters()] == [(5, 48), (5,), (48, 5)]
    rows = words("The heron stands.", 12)
    side_by_side = embedding.table[rows.int()].flatten(-2)
    torch.testing.assert_close(embedding(rows), side_by_side)
    torch.nn.init.normal_(embedding.mixing.out)
    x = side_by_side
    unit = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    inner = torch.nn.functional.relu(unit @ embedding.mixing.into.T + embedding.mixing.bias)
    torch.testing.assert_close(embedding(rows), x + inner @ embedding.mixing.out.T)


# Characters by hashes


def test_hashes_are_those_of_canine():
    torch.manual_seed(0)
    theirs = modeling_canine.CanineEmbeddings(
        CanineConfig(hidden_size=48, num_hash_functions=6, num_hash_buckets=97)
    )
    ours = HashEmbedding(48, hashes=6, buckets=97)
    parts = [getattr(theirs, f"HashBucketCodepointEmbedder_{k}").weight for k in range(6)]
    with torch.no_grad():
        ours.tables.copy_(torch.stack(parts))
    symbols = [special_row(DOC, 4), special_row(SEP, 4), np.full(4, MASK), np.full(4, PAD)]
    rows = torch.cat([torch.from_numpy(np.stack(symbols).astype(np.uint8)), characters(SCRIPTS)])
    tokenizer = CanineTokenizer()
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
    ids = torch.tensor([*special, tokenizer.pad_token_id, *map(ord, SCRIPTS)])
    assert torch.equal(code_points(rows), ids)
    expected = theirs._embed_hash_buckets(ids.unsqueeze(0), 48, 6, 97)[0]
    torch.testing.assert_close(ours(rows), expected, rtol=0, atol=0)
    assert torch.equal(ours(rows.view(1, -1, 4))[0], expected)


def test_all_sixteen_hashes_are_those_of_canine():
    assert list(PRIMES) == modeling_canine._PRIMES


def test_every_character_of_unicode_has_its_code_point():
    codes = torch.tensor([c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF])
    text = "".join(map(chr, codes.tolist()))
    assert torch.equal(code_points(characters(text)), codes)


def code_point(row: bytes) -> int:
    """By Python's own decoder."""
    special = {PAD: 0, DOC: 0xE000, SEP: 0xE001, MASK: 0xE003}
    if row[0] in special:
        return special[row[0]]
    end = row.find(PAD)
    content, behind = (row, b"") if end < 0 else (row[:end], row[end:])
    try:
        (character,) = content.decode()
    except ValueError:  # no UTF-8, or not one character
        return INVALID_CODE
    return ord(character) if set(behind) <= {PAD} else INVALID_CODE


# Bytes at the borders of what UTF-8 allows, and any others.
BORDERS = [0, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1]
BORDERS += [0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xF7, 0xF8, 0xFB, SEP, DOC, MASK, PAD, PAD]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.sampled_from(BORDERS) | st.integers(0, 255), min_size=4, max_size=4),
                min_size=1, max_size=300))  # fmt: skip
def test_bytes_that_are_no_character_have_a_code_point_of_their_own(rows):
    found = code_points(torch.tensor(rows, dtype=torch.uint8)).tolist()
    assert found == [code_point(bytes(row)) for row in rows]


def test_all_pairs_of_bytes_at_the_borders_decode_as_python_does():
    tails = [(), (0x80,), (0x80, 0x80), (0xBF, 0xBF), (0x41,)]
    rows = [
        [*(first, second, *tail), PAD, PAD][:4]
        for first in range(256) for second in BORDERS for tail in tails
    ]  # fmt: skip
    found = code_points(torch.tensor(rows, dtype=torch.uint8)).tolist()
    assert found == [code_point(bytes(row)) for row in rows]
    assert {INVALID_CODE, 0xE000, 0x41, 0x10FFFF} <= set(found)


# What a model gets


def test_each_input_has_its_embedding():
    assert build_embedding(config()).table.shape == (256, 4)
    byte = build_embedding(config(input="byte"))
    assert byte.table.shape == (256, 48)
    assert byte(torch.tensor([[97], [PAD]], dtype=torch.uint8)).shape == (2, 48)
    token = build_embedding(config(input="subword"))
    assert isinstance(token, TokenEmbedding)
    assert torch.equal(token(torch.tensor([[7]], dtype=torch.int32)), token.table[7:8])
    canine = build_embedding(config(input="canine", canine=CanineSettings(hashes=4, buckets=64)))
    assert canine.tables.shape == (4, 64, 12)
    narrow = build_embedding(config(embedding_width=24))
    assert narrow(words("heron", 12)).shape == (1, 24)


def test_ablations_reach_the_embedding():
    ablation = AblationSettings(tables="per_slot", slots="shuffled", mixing=3)
    embedding = build_embedding(config(ablation=ablation))
    assert embedding.table.shape == (12, 256, 4)
    assert embedding.shuffle
    assert embedding.mixing.out.shape == (48, 3)
