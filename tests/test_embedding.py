from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import elemdist
from data_prep.segment import rows_of
from elemdist.embedding import ElementwiseEmbedding, HashEmbedding, TokenEmbedding, build_embedding
from elemdist.errors import UserError
from elemdist.materials import shuffled, uncased
from elemdist.model_config import ModelConfig, Symbols, resolved
from elemdist.model_settings import AblationSettings, CanineSettings, ModelSettings
from elemdist.rows import DOC, MASK, PAD, SEP, special_row

SCRIPTS = (
    "The heron's nest, 3.5 m. Ünïcödé Żółta łódź. Ο γάτος. Серая цапля. שלום مرحبا नमस्ते "
    "สวัสดี 雨が降る 안녕 \x00\t\n\x7f\x80߿ࠀ￿ \U00010000 👩‍🚀🏳️‍🌈 𝔘𝔫𝔦 \U0010ffff \ue000 e\u0301"
)


def words(text: str, v: int) -> torch.Tensor:
    return torch.from_numpy(rows_of(text.encode(), v))


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
