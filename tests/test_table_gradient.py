from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from elemdist.rows import PAD
from elemdist.table_gradient import SPAN, TILE, lookup, one_hot_product, sorted_sums

WAYS = {"sorted_sums": sorted_sums, "one_hot_product": one_hot_product}


def bytes_of(*shape: int, seed: int = 0, pad: float = 0.6) -> torch.Tensor:
    """Rows of random bytes, many of them PAD."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 200, shape, generator=generator, dtype=torch.uint8)
    return torch.where(torch.rand(shape, generator=generator) < pad, PAD, rows).to(torch.uint8)


def exact_sums(index_K: torch.Tensor, gradient_KC: torch.Tensor, rows: int = 256) -> torch.Tensor:
    sums = torch.zeros(rows, gradient_KC.shape[1], dtype=torch.float64)
    return sums.index_add_(0, index_K.int(), gradient_KC.double())


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("count", [0, 1, SPAN - 1, SPAN, SPAN + 1, 3 * SPAN + 7, TILE + 5])
def test_every_way_sums_up_as_fp64_does(way, count):
    index = bytes_of(count)
    gradient = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    sums = way(index, gradient, 256)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(
        sums.double(), exact_sums(index, gradient), rtol=1e-5, atol=1e-4 if count > SPAN else 1e-5
    )
    double = way(index, gradient.double(), 256)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, exact_sums(index, gradient), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("used", [[0], [255], [0, 255], [7], list(range(256))])
def test_bytes_that_do_not_occur_have_a_gradient_of_zero(way, used):
    # 40 * SPAN ends one run of sums exactly where an index ends, too
    index = torch.tensor(used, dtype=torch.uint8).repeat(40 * SPAN // len(used))
    sums = way(index, torch.ones(len(index), 2), 256)
    counts = torch.bincount(index.int(), minlength=256).float()
    assert torch.equal(sums, counts.unsqueeze(1).expand(256, 2))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_gradients_are_summed_in_32_bits(way, dtype):
    """A sum of bf16 that is kept in bf16 stops growing: 1 added 20,000 times gives 256."""
    index = torch.full((20_000,), PAD, dtype=torch.uint8)
    gradient = torch.full((20_000, 2), 1.0, dtype=dtype)
    sums = way(index, gradient, 256)
    assert sums.dtype == torch.float32
    assert sums[PAD].tolist() == pytest.approx([20_000, 20_000], rel=2**-8)
    noise = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    mixed = bytes_of(20_000, pad=0.8)
    exact = exact_sums(mixed, noise)
    error = (way(mixed, noise, 256) - exact).abs().max() / exact.abs().max()
    assert error < 2**-8


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_numbers_are_the_same_on_every_run_and_number_of_threads(way, dtype):
    index = bytes_of(3 * SPAN + 1)
    gradient = torch.randn(len(index), 16).to(dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        once = way(index, gradient, 256)
        assert torch.equal(way(index, gradient, 256), once)
        torch.set_num_threads(1)
        single = way(index, gradient, 256)
    finally:
        torch.set_num_threads(threads)
    if way is sorted_sums:  # the other one leaves the order to the matrix product
        assert torch.equal(single, once)
    torch.testing.assert_close(single, once, rtol=1e-4, atol=1e-4)


def table_of(slots: int | None, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    shape = (256, 3) if slots is None else (slots, 256, 3)
    table = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    return table.requires_grad_()


def plain_lookup(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """What torch makes of it, slot by slot."""
    if table.ndim == 2:
        return F.embedding(rows.int(), table)
    slots = zip(table, rows.int().unbind(-1), strict=True)
    return torch.stack([F.embedding(row, one) for one, row in slots], -2)


CASES = list(itertools.product([1, 4], [False, True]))


@pytest.mark.parametrize(("v", "per_slot"), CASES)
@pytest.mark.parametrize("shape", [(5,), (2, 3), (), (0,)])
def test_a_look_up_and_its_gradient_are_those_of_torch(v, per_slot, shape):
    rows = bytes_of(*shape, v)
    table = table_of(v if per_slot else None)
    out, expected = lookup(table, rows), plain_lookup(table, rows)
    assert torch.equal(out, expected)
    weight = torch.randn(out.shape, dtype=out.dtype)
    (ours,) = torch.autograd.grad((out * weight).sum(), table)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), table)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("v", "per_slot"), CASES)
def test_the_gradient_is_the_difference_quotient(v, per_slot):
    rows = bytes_of(3, v) % 4
    shape = (v, 4, 2) if per_slot else (4, 2)
    table = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda table: lookup(table, rows), table)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_rows_and_gradients_need_not_lie_in_order(dtype):
    rows = bytes_of(4, 6).to(dtype)[:, ::2].transpose(0, 1)  # (3, 4)
    table = table_of(None)
    assert not rows.is_contiguous()
    weight = torch.randn(3, 4, 3, dtype=torch.float64).transpose(0, 1).transpose(0, 1)
    for factor in (weight, torch.ones(1, 1, 1, dtype=torch.float64).expand(3, 4, 3)):
        (ours,) = torch.autograd.grad(lookup(table, rows), table, factor)
        (theirs,) = torch.autograd.grad(plain_lookup(table, rows), table, factor)
        torch.testing.assert_close(ours, theirs)


def test_the_gradient_has_the_type_of_the_table_and_sums_up_over_steps():
    table = table_of(None, torch.bfloat16)
    rows = torch.full((1000, 4), PAD, dtype=torch.uint8)
    for step in (1, 2):
        lookup(table, rows).sum().backward()
        assert table.grad.dtype == torch.bfloat16
        assert table.grad[PAD].tolist() == pytest.approx([4000.0 * step] * 3, rel=2**-8)
    assert (table.grad[:PAD] == 0).all()


def test_a_frozen_table_gets_no_gradient():
    table = table_of(None).detach()
    assert not lookup(table, bytes_of(3, 2)).requires_grad


@pytest.mark.parametrize("reentrant", [False, True])
def test_it_can_be_computed_again_for_the_gradient(reentrant):
    table, rows = table_of(None), bytes_of(6, 4)

    def squared(table: torch.Tensor) -> torch.Tensor:
        return lookup(table, rows).flatten(-2).square()

    (plain,) = torch.autograd.grad(squared(table).sum(), table)
    checkpoint(squared, table, use_reentrant=reentrant).sum().backward()
    assert torch.equal(table.grad, plain)


def test_only_the_bytes_are_kept_for_the_gradient():
    kept: list[torch.Tensor] = []
    table, rows = table_of(None), bytes_of(6, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        lookup(table, rows)
    assert [(x.dtype, x.numel()) for x in kept] == [(torch.uint8, 24)]


def test_it_runs_where_only_deterministic_algorithms_may():
    table, rows = table_of(None, torch.float32), bytes_of(2000, 4)
    torch.use_deterministic_algorithms(True)
    try:
        lookup(table, rows).sum().backward()
        one_hot_product(rows.flatten(), torch.ones(8000, 2), 256)
    finally:
        torch.use_deterministic_algorithms(False)
    assert table.grad.sum() == 24_000
