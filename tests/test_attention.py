from __future__ import annotations

import pytest
import torch

from elemdist.attention import Segments, attention, backend


def segments(*lengths: int) -> Segments:
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    return Segments(cu, list(lengths))


@pytest.mark.parametrize("lengths", [(5,), (1, 1, 3), (2, 2, 2), (1, 4, 4, 9)])
def test_equals_softmax_attention_with_a_dense_mask(lengths):
    torch.manual_seed(0)
    t, heads, width = sum(lengths), 3, 8
    q, k, v = (torch.randn(t, heads, width, dtype=torch.float64) for _ in range(3))
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    scores = torch.einsum("qhd,khd->hqk", q, k) / width**0.5
    scores = scores.masked_fill(owner[:, None] != owner[None, :], float("-inf"))
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
    torch.testing.assert_close(attention(q, k, v, segments(*lengths)), expected)


def test_no_row_sees_another_segment_forwards_or_backwards():
    torch.manual_seed(0)
    q, k, v = (torch.randn(7, 2, 4, requires_grad=True) for _ in range(3))
    attention(q, k, v, segments(3, 4))[:3].sum().backward()
    for x in (q, k, v):
        assert x.grad is not None
        assert (x.grad[3:] == 0).all()
        assert (v.grad[:3] != 0).all()


def test_the_back_end_on_cpu_is_sdpa():
    assert backend(torch.device("cpu"), torch.bfloat16) == "sdpa"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_the_variable_length_kernel_equals_sdpa_on_cuda():
    torch.manual_seed(0)
    q, k, v = (torch.randn(40, 4, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    parts = segments(1, 7, 32)
    parts = Segments(parts.cu_lengths.cuda(), parts.lengths)
    assert backend(q.device, q.dtype) == "varlen"
    expected = attention(q.float(), k.float(), v.float(), parts)
    torch.testing.assert_close(attention(q, k, v, parts).float(), expected, atol=2e-2, rtol=2e-2)
