from __future__ import annotations

import itertools
import sys

import pytest
import torch
from torch import Tensor

from elemdist import attention_kernels, window_attention
from elemdist.attention import Segments, attention, backend, backends, choose, flash, starts
from elemdist.attention_kernels import ALL, BACKENDS, Packed, Window, trial
from elemdist.errors import UserError
from tests.conftest import NO_GPU, run_command

CPU = torch.device("cpu")
LENGTHS = [(5,), (1, 1, 3), (2, 2, 2), (1, 4, 4, 9, 30)]


def segments(*lengths: int, keys: list[int] | None = None, device: str = "cpu") -> Segments:
    cu = torch.tensor(starts(list(lengths)), dtype=torch.int32, device=device)
    return Segments(cu, list(lengths), keys)


def qkv(rows: int, heads: int = 3, width: int = 8, dtype=torch.float64, device: str = "cpu"):
    torch.manual_seed(0)
    made = torch.randn(3, rows, heads, width, dtype=torch.float64)
    return [x.to(device, dtype).requires_grad_() for x in made]


def allowed(parts: Segments, causal: bool = False, window: int = 0) -> Tensor:
    """(T, T) bool: which row may attend to which, from the definition."""
    length_S = torch.tensor(parts.lengths)
    owner = torch.repeat_interleave(torch.arange(len(length_S)), length_S)
    distance = torch.arange(len(owner)) - torch.arange(len(owner)).unsqueeze(1)
    pairs = owner == owner.unsqueeze(1)
    if causal:
        pairs = pairs & (distance <= 0)
    if window:
        pairs = pairs & (distance.abs() <= window)
    return pairs


def reference(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor) -> Tensor:
    """Softmax attention under a dense mask, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~pairs.to(q.device), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The output, and the gradient of a sum with a weight of its own for every output."""
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    loss = (out.double() * weight.to(out.device)).sum()
    return [out.detach(), *torch.autograd.grad(loss, inputs)]


def expect_equal(got: list[Tensor], expected: list[Tensor], tolerance: float | None = None) -> None:
    assert [x.shape for x in got] == [x.shape for x in expected]
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(
            one.double(), other.double(), atol=tolerance or 1e-9, rtol=tolerance or 1e-9
        )


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


def keyed_reference(q: Tensor, k: Tensor, v: Tensor, parts: Segments) -> Tensor:
    """As transformers' CANINE: what is no key gets the least score, in a float's precision."""
    assert parts.keys is not None
    outs = []
    for first, length, keys in zip(starts(parts.lengths), parts.lengths, parts.keys, strict=False):
        rows = slice(first, first + length)
        scores = torch.einsum("qhd,khd->hqk", q[rows], k[rows]) / q.shape[-1] ** 0.5
        hidden = torch.arange(length) >= keys
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[rows]))
    return torch.cat(outs)


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


# Every back end that this machine has: packed rows against each segment alone.

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
