"""The back ends of attention: which there are, which can run here, and which does.

- ``flash_attn``: the package flash-attn 2 or flash-attn-4, on GPUs that it has kernels for.
- ``varlen``: the variable-length flash kernel that torch brings along, on GPUs from Ampere on.
- ``sdpa``: torch's scaled dot product, anywhere and in any precision.

The first of them that can run does, unless :func:`choose` was told another. A kernel that is there
is tried on a few rows before it counts as one that can run: a package built for another torch or
another GPU says so only then.

Under ``torch.use_deterministic_algorithms(True)`` the gradients of all of them are deterministic:
torch's kernels look at that switch themselves (with ``warn_only`` they warn and stay as they are),
and flash-attn is told.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from elemdist.errors import UserError, nearest

BACKENDS = ("flash_attn", "varlen", "sdpa")  # in order of preference
LEAST_CAPABILITY = (8, 0)  # of a GPU, for the flash kernels: Ampere
WIDEST_HEAD = 256  # floats that the flash kernels take; wider heads go to sdpa
HEAD_MULTIPLE = 8  # and a head's width has to be a multiple of this
ALL = -1  # as a part of a window: everything on that side

Window = tuple[int, int]  # rows before and behind


class Packed(NamedTuple):
    """How queries and keys lie: (S + 1,) int32 cumulative lengths of each, and the longest."""

    cu_q: Tensor
    cu_k: Tensor
    longest_q: int
    longest_k: int


Kernel = Callable[[Tensor, Tensor, Tensor, Packed, float, Window], Tensor]


def varlen(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, packed: Packed, scale: float, reach: Window
) -> Tensor:
    """By torch's variable-length flash kernel: (T, H, D) each, and so is the result."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(q_THD, k_THD, v_THD, *packed, scale=scale, window_size=reach)
    assert isinstance(out, Tensor)
    return out


@cache
def flash_attn_function() -> tuple[Callable[..., Any], int | None]:
    """flash-attn's function, and what it calls a window without an end on one side."""
    try:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func, -1
    except ImportError:  # flash-attn-4 installs flash_attn.cute only
        if find_spec("flash_attn.cute") is None:
            raise
    from flash_attn.cute import flash_attn_varlen_func

    return flash_attn_varlen_func, None


def flash_attn(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, packed: Packed, scale: float, reach: Window
) -> Tensor:
    """By flash-attn: (T, H, D) each, and so is the result."""
    function, endless = flash_attn_function()
    causal = reach == (ALL, 0)
    before, behind = (endless if causal or side == ALL else side for side in reach)
    out = function(
        q_THD,
        k_THD,
        v_THD,
        cu_seqlens_q=packed.cu_q,
        cu_seqlens_k=packed.cu_k,
        max_seqlen_q=packed.longest_q,
        max_seqlen_k=packed.longest_k,
        softmax_scale=scale,
        causal=causal,
        window_size=(before, behind),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return out[0] if isinstance(out, tuple) else out  # flash-attn-4 gives the normaliser, too


KERNELS: dict[str, Kernel] = {"flash_attn": flash_attn, "varlen": varlen}


def trial(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with a kernel here, found by computing a few rows and their gradient; None:
    nothing. Draws no random numbers."""
    lengths, heads, width = (5, 40), 2, 64
    cu = torch.tensor([0, 5, 45], dtype=torch.int32, device=device)
    values = torch.arange(sum(lengths) * heads * width, device=device, dtype=torch.float32)
    exact = [(values * step).sin().view(-1, heads, width) for step in (0.7, 0.9, 1.1)]
    given = [x.to(dtype).requires_grad_() for x in exact]
    exact = [x.detach().float().requires_grad_() for x in given]
    try:
        for reach in ((ALL, ALL), (3, 0)):
            packed = Packed(cu, cu, max(lengths), max(lengths))
            out = kernel(given[0], given[1], given[2], packed, width**-0.5, reach)
            results = [out, *torch.autograd.grad(out.float().pow(2).sum(), given)]
            expected = dense(exact, lengths, reach)
            right = [expected, *torch.autograd.grad(expected.pow(2).sum(), exact)]
            for one, other in zip(results, right, strict=True):
                if not torch.allclose(one.float(), other, atol=0.05, rtol=0.05):
                    return "it computes something else than softmax attention here"
    except Exception as error:  # of any kind: it is another package's
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return f"it does not run here: {lines[0]}"
    return None


def dense(qkv_THD: list[Tensor], lengths: tuple[int, ...], reach: Window) -> Tensor:
    """What a kernel should give for a few rows, by a mask of all pairs of a segment."""
    parts = []
    for q, k, v in zip(*(x.split(list(lengths)) for x in qkv_THD), strict=True):
        place = torch.arange(len(q), device=q.device)
        offset = place - place.unsqueeze(1)
        seen = torch.ones_like(offset, dtype=torch.bool)
        if reach[0] != ALL:
            seen &= offset >= -reach[0]
        if reach[1] != ALL:
            seen &= offset <= reach[1]
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(0, 1))
    return torch.cat(parts)


def tried(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> str | None:
    """:func:`trial` in a thread of its own, which knows nothing of the caller's autocast, grad
    mode and activation checkpointing."""

    def run() -> str | None:
        with torch.cuda.device(device):
            return trial(kernel, device, dtype)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


@cache
def obstacle(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a back end cannot run on a device in a precision; None if it can."""
    if name == "sdpa":
        return None
    if device.type != "cuda":
        return "it needs a GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bfloat16 and float16, not in {str(dtype).removeprefix('torch.')}"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        need, has = (".".join(map(str, pair)) for pair in (LEAST_CAPABILITY, capability))
        return f"it needs a GPU of compute capability {need}, this one has {has}"
    if name == "flash_attn" and find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    return tried(KERNELS[name], device, dtype)


def numbered(device: torch.device) -> torch.device:
    """The device by its number: ``cuda`` alone means another one in each thread and rank."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def backends(device: torch.device, dtype: torch.dtype) -> dict[str, str | None]:
    """Every back end, in order of preference, with the reason why it cannot run; None: it can."""
    return {name: obstacle(name, numbered(device), dtype) for name in BACKENDS}


_chosen = "auto"


def choose(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Sets, for this process, the back end that attention runs wherever it can; ``auto``: the
    first that can. Returns the name of what runs on `device` in `dtype`.

    Raises:
        UserError: there is no back end of that name, or it cannot run there.
    """
    global _chosen
    if name not in ("auto", *BACKENDS):
        raise UserError(
            f"attention: unknown back end '{name}'{nearest(name, BACKENDS)};"
            f" there are auto, {', '.join(BACKENDS)}"
        )
    reason = None if name == "auto" else backends(device, dtype)[name]
    if reason:
        raise UserError(f"attention: {name} cannot run on {device}: {reason}; take auto")
    _chosen = name
    return backend(device, dtype)


def backend(device: torch.device, dtype: torch.dtype) -> str:
    """The name of what attention runs on a device in a precision."""
    return first_fitting(_chosen, numbered(device), dtype)


@cache
def first_fitting(chosen: str, device: torch.device, dtype: torch.dtype) -> str:
    """`chosen` if it can run there, else the first that can: a run that trains in bfloat16 may
    still compute a thing or two in float32."""
    names = (chosen, *BACKENDS) if chosen in BACKENDS else BACKENDS
    return next(name for name in names if obstacle(name, device, dtype) is None)
