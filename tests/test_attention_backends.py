"""Every attention back end that this machine has, and what a kernel is given."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from elemdist import attention_kernels
from elemdist.attention import attention, backend, backends, choose, flash
from elemdist.attention_kernels import ALL, BACKENDS, Packed, Window, trial
from elemdist.errors import UserError
from tests.attention_reference import (
    allowed,
    expect_equal,
    keyed_reference,
    qkv,
    reference,
    segments,
    with_gradients,
)
from tests.conftest import NO_GPU

CPU = torch.device("cpu")
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
HERE = [
    pytest.param(name, device, dtype, id=f"{name}-{device}-{str(dtype).removeprefix('torch.')}")
    for device, dtype in itertools.product(DEVICES, (torch.bfloat16, torch.float32))
    for name, reason in backends(torch.device(device), dtype).items()
    if reason is None
]
if not torch.cuda.is_available():
    skipped = pytest.mark.skip(reason=NO_GPU)
    HERE.append(pytest.param("varlen", "cuda", torch.bfloat16, id="cuda", marks=skipped))


@pytest.fixture
def free_choice():
    yield
    choose("auto", CPU, torch.float32)


@pytest.mark.parametrize("width", [64, 12])  # of a head; flash kernels take multiples of 8
@pytest.mark.parametrize(("causal", "window"), [(False, 0), (True, 0), (False, 5), (True, 5)])
@pytest.mark.parametrize(("name", "device", "dtype"), HERE)
def test_packed_equals_alone(free_choice, name, device, dtype, causal, window, width):
    """Packed rows against each segment alone."""
    assert choose(name, torch.device(device), dtype) == name
    lengths = (1, 7, 7, 32)
    inputs = qkv(sum(lengths), 4, width, dtype, device)
    options = {"causal": causal, "window": window}
    packed = attention(*inputs, segments(*lengths, device=device), **options)
    assert packed.dtype == dtype
    pieces = [x.split(lengths) for x in inputs]
    alone = torch.cat(
        [
            attention(*piece, segments(length, device=device), **options)
            for length, *piece in zip(lengths, *pieces, strict=True)
        ]
    )
    # A back end may add in another order.
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
    got = with_gradients(packed, inputs)
    expect_equal(got, with_gradients(alone, inputs), tolerance)
    pairs = allowed(segments(*lengths), causal, window)
    expect_equal(got, with_gradients(reference(*inputs, pairs), inputs), 2 * tolerance)


@pytest.mark.parametrize(("name", "device", "dtype"), HERE)
def test_keys_on_every_back_end(free_choice, name, device, dtype):
    choose(name, torch.device(device), dtype)
    inputs = qkv(11, 4, 16, dtype, device)
    parts = segments(3, 3, 5, keys=[3, 0, 2], device=device)
    expected = keyed_reference(*(x.cpu().double() for x in inputs), parts)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-5
    expect_equal([attention(*inputs, parts).cpu()], [expected], tolerance)


def plain_kernel(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float, reach: Window
) -> Tensor:
    """What a variable-length flash kernel computes, segment by segment; as strict as those."""
    assert q.shape[-1] % 8 == 0
    assert packed.cu_q.dtype == packed.cu_k.dtype == torch.int32
    length_q, length_k = packed.cu_q.diff().tolist(), packed.cu_k.diff().tolist()
    assert (packed.longest_q, packed.longest_k) == (max(length_q), max(length_k))
    outs = []
    for one_q, one_k, one_v in zip(
        q.split(length_q), k.split(length_k), v.split(length_k), strict=True
    ):
        offset = torch.arange(len(one_k)) - torch.arange(len(one_q)).unsqueeze(1)
        scores = torch.einsum("qhd,khd->hqk", one_q, one_k) * scale
        if reach[0] != ALL:
            scores = scores.masked_fill(offset < -reach[0], float("-inf"))
        if reach[1] != ALL:
            scores = scores.masked_fill(offset > reach[1], float("-inf"))
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), one_v))
    return torch.cat(outs)


@pytest.mark.parametrize("width", [5, 8, 12])
@pytest.mark.parametrize("reach", [(ALL, ALL), (ALL, 0), (3, 3), (3, 0)])
def test_a_kernel_gets_what_it_asks_for_at_any_width_of_a_head(reach, width):
    parts, inputs = segments(2, 6, 9), qkv(17, 2, width)
    out = flash(plain_kernel, *inputs, parts, reach)
    expected = reference(*inputs, allowed(parts, reach[1] == 0, max(reach[0], 0)))
    expect_equal(with_gradients(out, inputs), with_gradients(expected, inputs))


def test_a_kernel_gets_only_the_rows_that_are_keys():
    parts, inputs = segments(4, 4, 6, keys=[4, 2, 3]), qkv(14, 2, 12)
    out = flash(plain_kernel, *inputs, parts, (ALL, ALL))
    expected = keyed_reference(*inputs, parts)
    expect_equal(with_gradients(out, inputs), with_gradients(expected, inputs))


def test_a_kernel_is_tried_before_it_is_used():
    def without_window(q, k, v, packed, scale, reach):
        return plain_kernel(q, k, v, packed, scale, (ALL, ALL))

    def without_gradient(q, k, v, packed, scale, reach):
        return plain_kernel(q, k.detach(), v, packed, scale, reach) + 0 * k

    def broken(q, k, v, packed, scale, reach):
        raise OSError("libcudart.so.11: cannot open shared object file\nand more")

    state = torch.get_rng_state()
    assert trial(plain_kernel, CPU, torch.bfloat16) is None
    assert "something else" in str(trial(without_window, CPU, torch.bfloat16))
    assert "something else" in str(trial(without_gradient, CPU, torch.bfloat16))
    reason = trial(broken, CPU, torch.bfloat16)
    assert reason == "it does not run here: libcudart.so.11: cannot open shared object file"
    assert torch.equal(torch.get_rng_state(), state)


def test_the_back_end_on_cpu_is_sdpa_and_the_others_say_why_not():
    assert backend(CPU, torch.bfloat16) == choose("auto", CPU, torch.float32) == "sdpa"
    assert list(backends(CPU, torch.bfloat16)) == list(BACKENDS)
    for name, reason in backends(CPU, torch.bfloat16).items():
        assert (reason is None) == (name == "sdpa")
        assert reason is None or "GPU" in reason


def test_a_back_end_that_is_none_or_cannot_run_is_a_users_mistake(free_choice):
    with pytest.raises(UserError, match=r"'varlne'.*did you mean 'varlen'.*auto, flash_attn, v"):
        choose("varlne", CPU, torch.float32)
    for name in ("varlen", "flash_attn"):
        with pytest.raises(UserError, match=f"{name} cannot run on cpu: it needs a GPU"):
            choose(name, CPU, torch.bfloat16)
    assert attention_kernels._chosen == "auto"
    assert choose("sdpa", CPU, torch.float32) == "sdpa"


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
def test_on_a_gpu_float32_runs_sdpa_and_bfloat16_a_flash_kernel():
    device = torch.device("cuda")
    assert backend(device, torch.float32) == "sdpa"
    if torch.cuda.get_device_capability() >= (8, 0):
        assert backend(device, torch.bfloat16) in ("flash_attn", "varlen")
