from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from elemdist.data import Batch, unpad
from elemdist.embedding import ElementwiseEmbedding
from elemdist.errors import UserError
from elemdist.model import Model, ModelConfig, parameter_groups
from elemdist.rows import DOC, PAD

CONFIG = ModelConfig(
    n=8, v=4, width=32, layers=2, heads=4, feedforward=64, dropout=0.0, norm="post",
    objective="classify", pooling="doc", labels=["a", "b", "c"],
)  # fmt: skip


def batch(*lengths: int, seed: int = 0) -> Batch:
    """One sample per length, its first row a DOC row, random bytes behind it."""
    rng = np.random.default_rng(seed)
    rows = np.full((len(lengths), 8, 4), PAD, np.uint8)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = rng.integers(0, 200, (length, 4))
        row[0] = [DOC, PAD, PAD, PAD]
    return unpad(rows, None, np.arange(len(lengths)))


def test_a_material_is_the_concatenation_of_its_elements():
    embedding = ElementwiseEmbedding(v=3, width=12)
    assert embedding.table.shape == (256, 4)
    rows = torch.tensor([[[1, 2, 3], [255, 0, 1]]], dtype=torch.uint8)
    out = embedding(rows)
    assert out.shape == (1, 2, 12)
    expected = torch.cat([embedding.table[255], embedding.table[0], embedding.table[1]])
    assert torch.equal(out[0, 1], expected)


def test_a_width_that_v_does_not_divide_is_refused():
    with pytest.raises(UserError, match="the nearest are 96 and 108"):
        ElementwiseEmbedding(v=12, width=100)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="5 heads do not divide the width 32"):
        dataclasses.replace(CONFIG, heads=5)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("pooling", ["doc", "mean", "max"])
def test_a_document_does_not_depend_on_its_neighbours_in_the_batch(norm, pooling):
    torch.manual_seed(0)
    model = Model(dataclasses.replace(CONFIG, norm=norm, pooling=pooling)).eval()
    together = batch(3, 5, 8)
    logits = model(together.rows_TV, together.position_T, together.segments)
    assert logits.shape == (3, 3)
    for number in range(3):
        first, last = together.segments.cu_lengths[number : number + 2].tolist()
        alone = np.full((1, 8, 4), PAD, np.uint8)
        alone[0, : last - first] = together.rows_TV[first:last].numpy()
        one = unpad(alone, None, np.array([0]))
        expected = model(one.rows_TV, one.position_T, one.segments)
        torch.testing.assert_close(logits[number], expected[0])


def test_the_element_head_is_tied_to_the_table_and_runs_on_the_chosen_rows_only():
    torch.manual_seed(0)
    model = Model(dataclasses.replace(CONFIG, objective="mlm", labels=None))
    b = batch(5, 8)
    logits = model(b.rows_TV, b.position_T, b.segments, torch.tensor([2, 7]))
    assert logits.shape == (2, 4, 256)
    names = [name for name, p in model.named_parameters() if p.shape == (256, 8)]
    assert names == ["encoder.embedding.table"]
    # 32 and 33 occur neither as bytes nor as targets: their gradient comes from the head alone
    rows = torch.full_like(b.rows_TV, 5)
    model(rows, b.position_T, b.segments, torch.tensor([2]))[..., 33].sum().backward()
    grad = model.encoder.embedding.table.grad
    assert grad is not None
    assert (grad[33] != 0).any()
    assert (grad[32] == 0).all()


def test_weight_decay_is_for_matrices_only():
    model = Model(dataclasses.replace(CONFIG, objective="mlm", labels=None))
    decayed, plain = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all(p.ndim == 2 for p in decayed["params"])
    assert any(p is model.encoder.embedding.table for p in plain["params"])
    total = sum(p.numel() for group in (decayed, plain) for p in group["params"])
    assert total == sum(p.numel() for p in model.parameters())


def test_predictions_start_at_the_frequency_of_the_elements_in_each_slot():
    model = Model(dataclasses.replace(CONFIG, objective="mlm", labels=None))
    rows = np.full((1000, 4), PAD, np.uint8)
    rows[:, 0] = 97
    rows[:500, 1] = 98
    rows[:10] = [DOC, PAD, PAD, PAD]  # is never predicted
    model.expect_elements(torch.from_numpy(rows))
    bias = model.head.bias_VE.detach().softmax(-1)
    assert bias[0, 97] == pytest.approx(991 / (990 + 256))
    assert bias[1, 98] == pytest.approx(491 / (990 + 256))
    assert bias[1, PAD] == pytest.approx(501 / (990 + 256))
    # slot 2 counts the materials of two bytes only: those of one have ended before
    assert bias[2, PAD] == pytest.approx(491 / (490 + 256))


def test_a_classifier_starts_at_the_share_of_each_label():
    model = Model(CONFIG)
    model.expect_labels(torch.tensor([0.5, 0.1, 0.0]))
    assert model.head.labels.bias.sigmoid().tolist() == pytest.approx([0.5, 0.1, 1e-4])
