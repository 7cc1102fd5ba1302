from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from elemdist.attention import Segments
from elemdist.batch import Batch, Reading, unpad
from elemdist.config import TrainSettings
from elemdist.inputs import ByteReading
from elemdist.model_config import Symbols, model_config
from elemdist.objectives import (
    element_nats,
    hash_uniform,
    label_nats,
    mask_materials,
    next_materials,
    share_batch,
    targets_of,
)
from elemdist.rows import DOC, MASK, PAD


def test_hash_uniform_is_uniform_and_streams_are_independent():
    key = torch.arange(200_000)
    one, two = hash_uniform(key, 1, 0), hash_uniform(key, 1, 1)
    for values in (one, two, hash_uniform(key, 2, 0)):
        assert values.min() >= 0
        assert values.max() < 1
        counts = torch.histc(values, 100, 0, 1)
        assert ((counts - 2000) ** 2 / 2000).sum() < 160  # 99 degrees of freedom: once in 10,000
    assert abs(np.corrcoef(one.numpy(), two.numpy())[0, 1]) < 0.01
    assert abs(np.corrcoef(one[1:].numpy(), one[:-1].numpy())[0, 1]) < 0.01


def samples_of(samples: int, n: int, v: int = 4) -> np.ndarray:
    """Samples of a DOC row and distinct materials of v - 1 bytes each."""
    rows = np.full((samples * n, v), PAD, np.uint8)
    rows[:, :-1] = np.arange(samples * n)[:, None] // 200 ** np.arange(v - 1) % 200
    rows[::n] = [DOC] + [PAD] * (v - 1)
    return rows.reshape(samples, n, v)


def batch_of(samples: int, n: int, v: int = 4, reading: Reading | None = None) -> Batch:
    return unpad(samples_of(samples, n, v), None, np.arange(samples), reading)


def test_masking_chooses_materials_at_the_rate_and_hides_eight_in_ten():
    batch = batch_of(400, 100)
    rows = batch.rows_TV
    masked = mask_materials(batch, 0.15, seed=1)
    chosen = masked.select_M
    assert len(chosen) / (400 * 99) == pytest.approx(0.15, rel=0.05)
    assert (rows[chosen, 0] != DOC).all()
    assert torch.equal(masked.target_MV, rows[chosen])
    assert masked.text_bytes == 3 * len(chosen)
    rest = torch.ones(len(rows), dtype=torch.bool)
    rest[chosen] = False
    assert torch.equal(masked.rows_TV[rest], rows[rest])
    shown = masked.rows_TV[chosen]
    hidden, kept = (shown == MASK).all(1), (shown == rows[chosen]).all(1)
    assert hidden.float().mean() == pytest.approx(0.8, abs=0.03)
    assert kept.float().mean() == pytest.approx(0.1, abs=0.02)
    # the others are materials of the same segment, never its DOC row
    number = (rows[:, :3].long() * torch.tensor([1, 200, 40_000])).sum(1)
    other = (shown[~hidden & ~kept, :3].long() * torch.tensor([1, 200, 40_000])).sum(1)
    assert torch.equal(other // 100, chosen[~hidden & ~kept] // 100)
    assert (number[other] == other).all()


def test_nothing_is_masked_at_rate_zero():
    batch = batch_of(3, 10)
    masked = mask_materials(batch, 0.0, seed=1)
    assert torch.equal(masked.rows_TV, batch.rows_TV)
    assert masked.target_MV.shape == (0, 4)
    assert masked.text_bytes == 0


def test_a_mask_depends_on_the_place_in_the_run_and_not_on_the_batch():
    rows, places = samples_of(6, 50), np.arange(6) + 12_345
    batch = unpad(rows, None, places)
    whole = mask_materials(batch, 0.3, seed=1)
    part = mask_materials(unpad(rows[2:4], None, places[2:4]), 0.3, seed=1)
    assert torch.equal(whole.rows_TV[100:200], part.rows_TV)
    assert not torch.equal(whole.rows_TV, mask_materials(batch, 0.3, seed=2).rows_TV)


def test_bytes_are_masked_with_their_whole_material():
    v = 7
    materials, batch = batch_of(200, 40, v), batch_of(200, 40, v, ByteReading())
    masked = mask_materials(batch, 0.3, seed=5)
    chosen = set(batch.key_T[masked.select_M].tolist())
    # the same materials as of input elementwise
    of_rows = mask_materials(materials, 0.3, seed=5)
    assert chosen == set(materials.key_T[of_rows.select_M].tolist())
    assert len(masked.select_M) == (v - 1) * len(chosen)
    assert masked.text_bytes == of_rows.text_bytes == len(masked.select_M)
    shown = masked.rows_TV[masked.select_M].view(-1, v - 1)
    target = masked.target_MV.view(-1, v - 1)
    hidden = shown == MASK
    assert torch.equal(hidden.all(1), hidden.any(1))
    assert hidden.all(1).float().mean() == pytest.approx(0.8, abs=0.03)
    other = shown[~hidden.all(1) & (shown != target).any(1)]
    assert len(other) / len(target) == pytest.approx(0.1, abs=0.02)
    # random bytes of the segment, each by itself; most of the segment's are 0
    varied = [len(set(material)) for material in other.tolist()]
    assert np.mean(varied) > 2
    assert (other != DOC).all()


def token_batch(bytes_T: list[int], ended: bool) -> Batch:
    """A segment of tokens; the first is the document's symbol, 900."""
    t = len(bytes_T)
    return Batch(
        rows_TV=torch.tensor([[900], *([300 + k] for k in range(1, t))], dtype=torch.int32),
        position_T=torch.arange(t),
        key_T=torch.arange(t),
        segments=Segments(torch.tensor([0, t], dtype=torch.int32), [t]),
        sample_S=torch.tensor([0]),
        place_S=torch.tensor([0]),
        ended_S=torch.tensor([ended]),
        labels_BL=None,
        text_bytes=sum(bytes_T),
        bytes_T=torch.tensor(bytes_T, dtype=torch.int32),
    )


def test_tokens_are_masked_whatever_their_number_and_count_their_bytes():
    # number 301 has the first byte of a character, 302 and 303 its rest
    batch = token_batch([0, 4, 0, 0, 7], ended=True)
    masked = mask_materials(batch, 1.0, seed=1, mask_symbol=901)
    assert masked.select_M.tolist() == [1, 2, 3, 4]
    assert masked.target_MV.tolist() == [[301], [302], [303], [304]]
    assert masked.target_MV.dtype == masked.rows_TV.dtype == torch.int32
    assert masked.text_bytes == 11
    shown = [
        value
        for seed in range(300)
        for value in mask_materials(batch, 1.0, seed, 901).rows_TV[1:, 0].tolist()
    ]
    assert shown.count(901) / len(shown) == pytest.approx(0.8, abs=0.05)
    assert set(shown) == {301, 302, 303, 304, 901}
    half = mask_materials(batch, 0.5, seed=3, mask_symbol=901)
    assert 0 < len(half.select_M) < 4
    assert half.text_bytes == sum([0, 4, 0, 0, 7][k] for k in half.select_M.tolist())


def rows(*materials: bytes) -> list[list[int]]:
    return [[*material, *[PAD] * (3 - len(material))] for material in materials]


def test_a_row_predicts_the_next_one_and_the_last_the_next_document():
    doc = bytes([DOC])
    samples = np.array([rows(doc, b"a", doc, b"b", b"cd"), rows(doc, b"e", b"f", b"g", b"")])
    batch = unpad(samples.astype(np.uint8), None, np.array([0, 1]))
    assert batch.segments.lengths == [2, 3, 4]
    assert batch.ended_S.tolist() == [True, False, True]
    targets = next_materials(batch)
    assert torch.equal(targets.rows_TV, batch.rows_TV)
    # "cd" ends its sample: what follows is not known
    assert targets.select_M.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert targets.target_MV.tolist() == rows(b"a", doc, b"b", b"cd", b"e", b"f", b"g", doc)
    assert targets.target_MV.dtype == torch.uint8
    assert targets.text_bytes == 7


def test_bytes_predict_the_next_byte():
    doc = bytes([DOC])
    samples = np.array([rows(doc, b"ab", b"c", b"")], np.uint8)
    targets = next_materials(unpad(samples, None, np.array([0]), ByteReading()))
    assert targets.select_M.tolist() == [0, 1, 2, 3]
    assert targets.target_MV.tolist() == [[ord("a")], [ord("b")], [ord("c")], [DOC]]
    assert targets.text_bytes == 3


@pytest.mark.parametrize("ended", [True, False])
def test_tokens_predict_the_next_token_and_count_its_bytes(ended):
    targets = next_materials(token_batch([0, 4, 0, 7], ended), doc_symbol=900)
    assert targets.select_M.tolist() == [0, 1, 2, 3][: 3 + ended]
    assert targets.target_MV.tolist() == [[301], [302], [303], [900]][: 3 + ended]
    assert targets.target_MV.dtype == torch.int32
    assert targets.text_bytes == 11


def test_the_objective_chooses_the_targets_and_the_configuration_the_symbols():
    chosen = TrainSettings()
    batch = batch_of(2, 20)
    masked = targets_of(batch, model_config(chosen, 20, 4), 0.3, seed=1)
    assert torch.equal(masked.rows_TV, mask_materials(batch, 0.3, seed=1).rows_TV)
    chosen.model.input, chosen.model.tokenizer = "subword", "tokenizer.json"
    tokens, symbols = token_batch([0, 4, 0, 7], ended=True), Symbols(900, 902, 901, 903)
    masked = targets_of(tokens, model_config(chosen, 20, 4, symbols=symbols), 1.0, seed=0)
    assert torch.equal(masked.rows_TV, mask_materials(tokens, 1.0, 0, 901).rows_TV)
    assert 901 in masked.rows_TV
    chosen.objective, chosen.model.backbone = "clm", "decoder"
    targets = targets_of(tokens, model_config(chosen, 20, 4, symbols=symbols), 1.0, seed=0)
    assert torch.equal(targets.rows_TV, tokens.rows_TV)
    assert targets.target_MV[-1] == 900
    chosen.model.input, chosen.model.tokenizer = "elementwise", None
    targets = targets_of(batch, model_config(chosen, 20, 4), 0.3, seed=1)
    assert torch.equal(targets.target_MV, batch.rows_TV[targets.select_M + 1])


def test_a_classifier_that_masks_nothing_gets_the_batch_itself():
    chosen, batch = TrainSettings(), batch_of(2, 20)
    chosen.objective = "classify"
    shape = model_config(chosen, 20, 4, labels=["a"])
    targets = targets_of(batch, shape, 0.0, seed=1)
    assert targets.rows_TV is batch.rows_TV
    assert len(targets.select_M) == len(targets.target_MV) == targets.text_bytes == 0
    share = share_batch(batch, targets, None)
    assert share[0] is batch.rows_TV
    assert len(targets_of(batch, shape, 0.5, seed=1).select_M) > 0


def test_element_nats_counts_all_bytes_and_one_end_mark():
    target = torch.tensor([[1, 2, PAD, PAD], [3, 4, 5, 6]], dtype=torch.uint8)
    uniform = element_nats(torch.zeros(2, 4, 256), target)[0]
    assert uniform.tolist() == pytest.approx([3 * math.log(256), 4 * math.log(256)])
    logits = torch.zeros(2, 4, 256)
    logits[0, 3] = torch.randn(256)  # behind the end mark: says nothing
    assert element_nats(logits, target)[0].tolist() == pytest.approx(uniform.tolist())
    logits[0, 2, PAD] = 100.0
    assert element_nats(logits, target)[0].sum().item() == pytest.approx(6 * math.log(256))


def test_a_material_is_right_if_all_its_bytes_and_its_end_are():
    target = torch.tensor([[1, 2, PAD, PAD]] * 3 + [[3, 4, 5, 6]], dtype=torch.uint8)
    guess = torch.tensor([[1, 2, PAD, 7], [1, 2, 3, PAD], [1, 9, PAD, PAD], [3, 4, 5, 6]])
    logits = F.one_hot(guess, 256).float()
    assert element_nats(logits.requires_grad_(), target)[1] is None
    with torch.no_grad():
        correct = element_nats(logits, target)[1]
    assert correct is not None
    assert correct.tolist() == [True, False, False, True]


def test_a_tokens_number_that_is_pads_is_an_element_like_any_other():
    target = torch.tensor([[PAD], [3], [PAD], [299]], dtype=torch.int32)
    logits = torch.randn(4, 1, 300)
    expected = -logits.squeeze(1).log_softmax(-1).gather(1, target.long()).squeeze(1)
    with torch.no_grad():
        nats, correct = element_nats(logits, target)
    assert torch.allclose(nats, expected)
    assert correct is not None
    assert correct.tolist() == (logits.argmax(-1) == target).squeeze(1).tolist()


def test_label_nats_are_the_mean_over_labels_of_each_document():
    logits, truth = torch.randn(5, 7), (torch.rand(5, 7) < 0.5).float()
    p = logits.double().sigmoid()
    expected = -(truth * p.log() + (1 - truth) * (1 - p).log()).sum(1) / 7
    assert label_nats(logits, truth).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
