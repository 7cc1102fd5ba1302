from __future__ import annotations

import numpy as np
import pytest
import torch

from data_prep.segment import rows_of
from elemdist import checkpoint
from elemdist.embedding import ElementwiseEmbedding, SlotMixing
from elemdist.materials import distinct, most_frequent, shuffled
from elemdist.model import Model
from elemdist.model_settings import AblationSettings
from elemdist.shards import ShardSet
from elemdist.table_gradient import lookup
from tests.conftest import TINY
from tests.conftest import elemdist as run_elemdist
from tests.test_embedding import config, words


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
