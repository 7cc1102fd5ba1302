from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from elemdist.objectives import element_loss, hash_uniform, label_loss, mask_materials
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


def rows_of(segments: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments of a DOC row and distinct materials; and their cumulative lengths."""
    rows = torch.arange(segments * length)[:, None] // torch.tensor([1, 200, 40_000]) % 200
    rows = torch.cat([rows, torch.full((len(rows), 1), PAD)], 1).to(torch.uint8)
    rows[::length] = torch.tensor([DOC, PAD, PAD, PAD], dtype=torch.uint8)
    return rows, torch.arange(0, segments * length + 1, length, dtype=torch.int32)


def test_masking_chooses_materials_at_the_rate_and_hides_eight_in_ten():
    rows, cu = rows_of(400, 100)
    masked = mask_materials(rows, torch.arange(len(rows)), cu, 0.15, seed=1)
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


def test_a_mask_depends_on_the_place_in_the_run_and_not_on_the_batch():
    rows, cu = rows_of(6, 50)
    key = torch.arange(len(rows)) + 12_345
    whole = mask_materials(rows, key, cu, 0.3, seed=1)
    part = mask_materials(rows[100:200], key[100:200], cu[2:5] - 100, 0.3, seed=1)
    assert torch.equal(whole.rows_TV[100:200], part.rows_TV)
    assert not torch.equal(whole.rows_TV, mask_materials(rows, key, cu, 0.3, seed=2).rows_TV)


def test_element_loss_counts_all_bytes_and_one_end_mark():
    target = torch.tensor([[1, 2, PAD, PAD], [3, 4, 5, 6]], dtype=torch.uint8)
    uniform = element_loss(torch.zeros(2, 4, 256), target)
    assert uniform.item() == pytest.approx((2 + 1 + 4) * math.log(256))
    logits = torch.zeros(2, 4, 256)
    logits[0, 3] = torch.randn(256)  # behind the end mark: says nothing
    assert element_loss(logits, target).item() == pytest.approx(uniform.item())
    logits[0, 2, PAD] = 100.0
    assert element_loss(logits, target).item() == pytest.approx(6 * math.log(256))


def test_label_loss_is_the_mean_over_labels_summed_over_documents():
    logits, truth = torch.randn(5, 7), (torch.rand(5, 7) < 0.5).float()
    p = logits.double().sigmoid()
    expected = -(truth * p.log() + (1 - truth) * (1 - p).log()).sum() / 7
    assert label_loss(logits, truth).item() == pytest.approx(expected.item(), rel=1e-5)
