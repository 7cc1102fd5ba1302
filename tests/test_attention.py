"""Packed attention against its definition."""

from __future__ import annotations

import sys

import pytest
import torch

from elemdist import window_attention
from elemdist.attention import attention
from tests.attention_reference import (
    allowed,
    expect_equal,
    keyed_reference,
    qkv,
    reference,
    segments,
    with_gradients,
)
from tests.conftest import run_command

LENGTHS = [(5,), (1, 1, 3), (2, 2, 2), (1, 4, 4, 9, 30)]


@pytest.mark.parametrize("window", [0, 1, 3, 8, 29, 100])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_equals_softmax_attention_with_a_dense_mask(lengths, causal, window):
    parts, inputs = segments(*lengths), qkv(sum(lengths))
    out = attention(*inputs, parts, causal=causal, window=window)
    expected = reference(*inputs, allowed(parts, causal, window))
    expect_equal(with_gradients(out, inputs), with_gradients(expected, inputs))


@pytest.mark.parametrize("window", [1, 3, 6, 17])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("slab_pairs", [1, 300])
def test_a_window_equals_the_dense_mask_over_many_blocks_and_slabs(
    monkeypatch, slab_pairs, causal, window
):
    monkeypatch.setattr(window_attention, "LEAST_BLOCK", 4)
    monkeypatch.setattr(window_attention, "LARGEST_BLOCK", 8)
    monkeypatch.setattr(window_attention, "SLAB_PAIRS", slab_pairs)
    parts, inputs = segments(1, 2, 7, 7, 41, 43), qkv(101)
    assert len(list(window_attention.slabs(101, window, window))) > 2
    out = attention(*inputs, parts, causal=causal, window=window)
    expected = reference(*inputs, allowed(parts, causal, window))
    expect_equal(with_gradients(out, inputs), with_gradients(expected, inputs))


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_flow_between_the_rows_that_may_see_each_other_and_no_others(causal, window):
    parts, (q, k, v) = segments(1, 5, 8), qkv(14)
    out = attention(q, k, v, parts, causal=causal, window=window)
    pairs = allowed(parts, causal, window)
    for row in range(14):
        of_q, of_k, of_v = torch.autograd.grad(out[row].sum(), (q, k, v), retain_graph=True)
        assert ((of_v != 0).all(dim=(1, 2)) == pairs[row]).all()
        several = pairs[row] & (pairs[row].sum() > 1)  # a softmax over one row is constant
        assert ((of_k != 0).all(dim=(1, 2)) == several).all()
        assert (of_k[~pairs[row]] == 0).all()
        assert (of_v[~pairs[row]] == 0).all()
        others = torch.arange(14) != row
        assert (of_q[others] == 0).all()


KEYED = [((4, 4, 6), [4, 2, 3]), ((3, 3, 5), [3, 0, 1]), ((2, 2), [0, 0]), ((5,), [5])]


@pytest.mark.parametrize(("lengths", "keys"), KEYED)
def test_only_keys_are_attended_to_and_without_any_all_rows_are_alike(lengths, keys):
    parts, inputs = segments(*lengths, keys=keys), qkv(sum(lengths))
    out, expected = attention(*inputs, parts), keyed_reference(*inputs, parts)
    expect_equal(with_gradients(out, inputs), with_gradients(expected, inputs))


def test_keys_go_with_neither_causal_nor_a_window():
    parts, inputs = segments(4, keys=[2]), qkv(4)
    with pytest.raises(ValueError, match="neither causal nor a window"):
        attention(*inputs, parts, causal=True)
    with pytest.raises(ValueError, match="neither causal nor a window"):
        attention(*inputs, parts, window=1)
    with pytest.raises(ValueError, match="a window of -1"):
        attention(*inputs, segments(4), window=-1)


def test_chunks_cut_every_segment_and_its_keys():
    cut = segments(2, 3, 7).chunks(3)
    assert (cut.lengths, cut.keys) == ([2, 3, 3, 3, 1], None)
    assert cut.cu_lengths.tolist() == [0, 2, 5, 8, 11, 12]
    assert cut.cu_lengths.dtype == torch.int32
    cut = segments(2, 3, 8, keys=[2, 0, 4]).chunks(3)
    assert (cut.lengths, cut.keys) == ([2, 3, 3, 3, 2], [2, 0, 3, 1, 0])
    with pytest.raises(ValueError, match="at least 1 row"):
        segments(2).chunks(0)


@pytest.mark.parametrize("keys", [None, [2, 3, 9], [1, 0, 6]])
def test_attention_stays_within_chunks(keys):
    cut, inputs = segments(2, 5, 11, keys=keys).chunks(4), qkv(18)
    expected = (
        keyed_reference(*inputs, cut)
        if keys
        else reference(*inputs, allowed(segments(*cut.lengths)))
    )
    expect_equal(with_gradients(attention(*inputs, cut), inputs), with_gradients(expected, inputs))


def test_a_window_over_a_long_segment_needs_memory_of_its_rows_only():
    code = (
        "import resource, torch\n"
        "from elemdist.attention import Segments, attention\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "def run(rows, causal):\n"
        "    x = [torch.randn(rows, 1, 16, requires_grad=True) for _ in range(3)]\n"
        "    cu = torch.tensor([0, rows], dtype=torch.int32)\n"
        "    out = attention(*x, Segments(cu, [rows]), causal=causal, window=64)\n"
        "    out.square().sum().backward()\n"
        "    assert x[1].grad.abs().sum(dim=(1, 2)).min() > 0\n"
        "run(256, True)\n"
        "before = peak()\n"
        "run(65536, False)\n"
        "run(65536, True)\n"
        "print(peak() - before)\n"
    )
    done = run_command(sys.executable, "-c", code, timeout=120)
    assert done.returncode == 0, done.stderr
    # A mask of all pairs takes 4,000 MB, eight tensors of all rows 32 MB, the slabs the rest.
    assert float(done.stdout) < 400
