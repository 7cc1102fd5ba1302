"""The wide part of a classifier: counts of materials beside the transformer."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.segment import rows_of
from elemdist.attention import Segments
from elemdist.batch import Batch, unpad
from elemdist.errors import UserError
from elemdist.guard import GuardedAdamW
from elemdist.heads import Classifier
from elemdist.model import Model, parameter_groups
from elemdist.model_config import ModelConfig, Symbols, resolved
from elemdist.model_settings import AblationSettings, ModelSettings
from elemdist.objectives import label_loss
from elemdist.rows import DOC, PAD
from elemdist.wide import LEAD_ROWS, PARTS, Wide, counts
from tests.conftest import elemdist as run_elemdist

N, V = 16, 12
WORDS = b"cocoa exports wheat shipments interest "


def config(**model: object) -> ModelConfig:
    settings = ModelSettings(
        layers=1, width=192, dropout=0.0, ablation=AblationSettings(mixing=8), **model
    )
    shape = resolved(settings, V)
    labels = ["a", "b", "c"]
    return ModelConfig(N, V, "classify", shape, pooling="max", labels=labels, wide=True)


def documents(*texts: bytes) -> Batch:
    rows = np.full((len(texts), N, V), PAD, np.uint8)
    rows[:, 0, 0] = DOC
    for row, text in zip(rows, texts, strict=True):
        materials = rows_of(text, V)
        row[1 : 1 + len(materials)] = materials
    return unpad(rows, None, np.arange(len(texts)))


def built(shape: ModelConfig) -> tuple[Model, Wide]:
    torch.manual_seed(0)
    model = Model(shape).eval()
    rows = torch.from_numpy(rows_of(WORDS, V))
    most_often_first = rows.repeat_interleave(torch.arange(len(rows), 0, -1), 0)
    model.encoder.embedding.answer_to(most_often_first)
    assert isinstance(model.head, Classifier)
    assert model.head.wide is not None
    return model, model.head.wide


def in_order(batch: Batch, x_SX: torch.Tensor) -> torch.Tensor:
    """Of the documents as they were given; a batch sorts them by their lengths."""
    return torch.empty_like(x_SX).index_copy(0, batch.sample_S, x_SX)


def seen(model: Model, wide: Wide, batch: Batch) -> torch.Tensor:
    """How often each unit's word stands in each document."""
    _, *answers = model.encoder.embedding(batch.rows_TV, answers=True)
    return in_order(batch, wide.counts.logs(batch.segments, *answers, batch.position_T).expm1())


def test_counts_by_hand():
    bounds = torch.tensor([0, 3, 3, 5])
    place = torch.tensor([1, 0, 1, 2, 2])
    once = torch.full((5,), PARTS)
    got = counts(bounds, None, place, once, 4)
    assert got.tolist() == [[1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0]]
    answer = torch.tensor([[1.0, 0.5], [0.0, 2.0], [0.25, 0.0]])
    assert counts(bounds, answer, place, once, 2).tolist() == [[1, 4.5], [0, 0], [0.5, 0]]
    weight = torch.tensor([3, 1, 1, 2, 1]) * PARTS
    assert counts(bounds, answer, place, weight, 2).tolist() == [[1, 8.5], [0, 0], [0.75, 0]]


def test_the_start_of_a_document_counts_more():
    """Counting from its own first row, DOC."""
    model, wide = built(dataclasses.replace(config(), wide_lead=4.0))
    got = seen(model, wide, documents(b"wheat oats ", b"barley oats oats cocoa ")).detach()
    full = seen(*built(config()), documents(b"wheat cocoa ")).detach()[0]  # without the lead
    for unit, document, position in ((2, 0, 1), (0, 1, 4)):
        expected = 1 + 4 * math.exp(-position / LEAD_ROWS)
        assert float(got[document, unit] / full[unit]) == pytest.approx(expected, rel=0.01)


def test_units_count_their_words_and_misspelt_ones_a_little_less():
    model, wide = built(config())
    right, wrong = seen(
        model, wide, documents(b"cocoa exports cocoa wheat ", b"cocoa exporta cocoa whaet ")
    ).detach()
    torch.testing.assert_close(right[:5], torch.tensor([2.0, 1, 1, 0, 0]), atol=0.35, rtol=0)
    assert wrong[0] == pytest.approx(float(right[0]), abs=0.05)
    assert 0.3 < wrong[1] < right[1]


def test_scales_start_at_inverse_document_frequencies():
    model, wide = built(config())
    # A batch at a time, as training does.
    batches = [documents(b"cocoa wheat ", b"cocoa "), documents(b"cocoa cocoa exports ")]
    model.expect_documents(batches)
    # A document counts once at most, and by how much of the word is in it.
    seen_DK = torch.cat([seen(model, wide, batch) for batch in batches])[:, :5].clamp(max=1)
    assert ((seen_DK > 0.8).sum(0) == torch.tensor([3, 1, 1, 0, 0])).all()
    expected = [math.log(4 / (1 + seen_in)) + 1 for seen_in in seen_DK.sum(0).tolist()]
    weights = wide.counts.weight[:5].tolist()
    assert weights == pytest.approx(expected, rel=1e-5)
    # A misspelt word counts by how much it is like the right one.
    model.expect_documents([documents(b"exporta ", b"exports ", b"wheat ")])
    weight = wide.counts.weight.detach()
    assert math.log(4 / 3) + 1 < weight[1] < math.log(4 / 2) + 1
    model.expect_documents([documents(b"cocoa wheat ", b"cocoa "), documents(b"cocoa exports ")])
    x = wide.counts(*places(model, documents(b"cocoa wheat wheat "))).detach()[0]
    assert float(x.norm()) == pytest.approx(1)
    ratio = math.log1p(2) * weights[2] / (math.log1p(1) * weights[0])
    assert float(x[2] / x[0]) == pytest.approx(ratio, rel=0.05)


def places(model: Model, batch: Batch) -> tuple[Any, ...]:
    _, answer, place = model.encoder.embedding(batch.rows_TV, answers=True)
    return batch.segments, answer, place, batch.position_T


@pytest.mark.parametrize("backbone", ["bert", "albert", "canine"])
def test_its_logits_come_on_top_and_a_document_is_the_same_packed_and_alone(backbone):
    model, wide = built(config(backbone=backbone))
    torch.nn.init.normal_(wide.weight)
    texts = [b"cocoa exports ", b"wheat wheat interest rates ", b"nothing "]
    together = documents(*texts)
    logits = model(*inputs(together))
    for text, expected in zip(texts, in_order(together, logits), strict=True):
        torch.testing.assert_close(model(*inputs(documents(text)))[0], expected)
    of_wide = wide(*places(model, together))
    torch.nn.init.zeros_(wide.weight)
    torch.testing.assert_close(model(*inputs(together)) + of_wide, logits)


def inputs(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, Segments]:
    return batch.rows_TV, batch.position_T, batch.segments


def test_tokens_are_counted_as_they_are():
    shape = ModelConfig(
        N, V, "classify", resolved(ModelSettings(layers=1, width=24, input="subword"), V), "doc",
        ["a"], symbols=Symbols(5, 6, 7, 8), wide=True,
    )  # fmt: skip
    model = Model(shape).eval()
    assert isinstance(model.head, Classifier)
    assert model.head.wide is not None
    rows = torch.tensor([5, 1, 3, 1, 5, 2]).unsqueeze(1)
    segments = Segments(torch.tensor([0, 4, 6], dtype=torch.int32), [4, 2])
    _, *answers = model.encoder.embedding(rows, answers=True)
    position = torch.tensor([0, 1, 2, 3, 0, 1])
    got = model.head.wide.counts.logs(segments, *answers, position).expm1()
    torch.testing.assert_close(got[0], torch.tensor([0.0, 2, 0, 1, 0, 1, 0, 0]))
    torch.testing.assert_close(got[1], torch.tensor([0.0, 0, 1, 0, 0, 1, 0, 0]))


def test_large_weights_cost_what_is_said():
    """One label, one document, a count of 1: the least of (1 - w)^2 + l2 / 2 * w^2."""
    wide = Wide(units=1, labels=1)
    (*_, group) = parameter_groups(wide, 0.1, wide_l2=1.0)
    assert group["lr_ratio"] == Wide.LR_RATIO
    optimizer = GuardedAdamW([group], lr=0.01)
    for _ in range(1000):
        optimizer.zero_grad()
        loss = label_loss(wide.weight, torch.ones(1, 1), "squared_hinge").mean()
        loss.backward()
        optimizer.step()
    assert wide.weight.item() == pytest.approx(2 / 3, abs=1e-3)


def test_the_squared_hinge_by_hand():
    logits = torch.tensor([[2.0, 0.5, -0.5], [-3.0, 0.0, 1.0]])
    truth = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    got = label_loss(logits, truth, "squared_hinge")
    torch.testing.assert_close(got, torch.tensor([(0.25 + 2.25) / 3, (1.0 + 4.0) / 3]))


def test_labels_start_at_the_best_constant_margin():
    """Of squared hinges, too: between -1 and 1 the best is the mean of the signs."""
    model = Model(dataclasses.replace(config(), loss="squared_hinge"))
    model.expect_labels(torch.tensor([0.5, 0.25, 0.0]))
    assert isinstance(model.head, Classifier)
    assert model.head.labels.bias.tolist() == [0.0, -0.5, -1.0]


def test_there_must_be_something_to_count():
    shape = config()
    without = dataclasses.replace(shape.model, ablation=AblationSettings())
    with pytest.raises(UserError, match=r"add --model\.ablation\.mixing 4096"):
        dataclasses.replace(shape, model=without)
    with pytest.raises(UserError, match="input byte has no materials"):
        dataclasses.replace(shape, model=dataclasses.replace(without, input="byte"))


@pytest.mark.parametrize("setting", ["wide-lead", "wide-l2", "refit"])
def test_values_that_cannot_be(setting, labelled, tmp_path):
    done = run_elemdist(
        "train", "--objective", "classify", "--data.train", labelled / "train",
        "--run-dir", tmp_path / "run", f"--classify.{setting}", "-1",
    )  # fmt: skip
    assert done.returncode == 2
    assert f"classify.{setting.replace('-', '_')}: -1.0 is below 0" in done.stderr
    assert not (tmp_path / "run").exists()
