"""Attention by its definition, in float64 and with a dense mask, and inputs for it."""

from __future__ import annotations

import torch
from torch import Tensor

from elemdist.attention import Segments, starts


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
