"""Rows a tile at a time: a function's inner values are computed again for the gradient, not kept.

Gradients of parameters are summed over the tiles in fp32 and rounded once. Left to autograd they
would be added up in the parameter's own type: over 512 tiles in bf16 a bias came out 14 % wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

Function = Callable[..., Tensor]


def tiled(
    function: Function, tile_rows: int, rows: Sequence[Tensor], parameters: Sequence[Tensor]
) -> Tensor:
    """Return function(*rows), computed for `tile_rows` rows at a time.

    Args:
        function: row by row, from tensors of equally many rows to one of as many.
        rows: those tensors. Gradients go to the ones of a floating type.
        parameters: all tensors besides `rows` that `function` needs gradients for.
    """
    if not torch.is_grad_enabled():
        return torch.cat([function(*tile) for tile in tiles(rows, tile_rows)])
    once = {id(one): one for one in parameters}.values()  # else its gradient would come twice
    return cast(Tensor, Tiles.apply(function, tile_rows, len(rows), *rows, *once))


def tiles(rows: Sequence[Tensor], tile_rows: int) -> Sequence[tuple[Tensor, ...]]:
    """Return the tensors cut into tiles, as views."""
    return list(zip(*(tensor.split(tile_rows) for tensor in rows), strict=True))


class Tiles(torch.autograd.Function):
    """The loop over tiles, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, function: Function, tile_rows: int, inputs: int, *tensors: Tensor
    ) -> Tensor:
        """Return the function's values; the first `inputs` of `tensors` are cut into tiles."""
        ctx.function, ctx.tile_rows = function, tile_rows
        ctx.parameters = tensors[inputs:]
        ctx.save_for_backward(*tensors[:inputs])
        ctx.random = random_states(tensors[0].device)
        return torch.cat([function(*tile) for tile in tiles(tensors[:inputs], tile_rows)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Return the gradients of `tensors`, those of parameters in fp32 at least."""
        rows = ctx.saved_tensors
        needs_rows = ctx.needs_input_grad[3 : 3 + len(rows)]
        needs = ctx.needs_input_grad[3 + len(rows) :]
        wanted = [one for one, needed in zip(ctx.parameters, needs, strict=True) if needed]
        sums = [torch.zeros_like(one, dtype=summed_in(one.dtype)) for one in wanted]
        row_parts: list[list[Tensor]] = []
        device = rows[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            set_random_states(ctx.random, device)
            cut = zip(tiles(rows, ctx.tile_rows), gradients[0].split(ctx.tile_rows), strict=True)
            for tile, gradient in cut:
                with torch.enable_grad():
                    inputs = [
                        part.detach().requires_grad_(needed)
                        for part, needed in zip(tile, needs_rows, strict=True)
                    ]
                    values = ctx.function(*inputs)
                leaves = [part for part in inputs if part.requires_grad]
                found = torch.autograd.grad(values, [*leaves, *wanted], gradient, allow_unused=True)
                row_parts.append(list(found[: len(leaves)]))
                for total, part in zip(sums, found[len(leaves) :], strict=True):
                    if part is not None:
                        total += part
        row_gradients = iter([torch.cat(parts) for parts in zip(*row_parts, strict=True)])
        summed = iter(sums)
        return (
            *(None, None, None),
            *(next(row_gradients) if needed else None for needed in needs_rows),
            *(next(summed) if needed else None for needed in needs),
        )


def summed_in(dtype: torch.dtype) -> torch.dtype:
    """Return the type that gradients of `dtype` are summed in."""
    return torch.promote_types(dtype, torch.float32)


def random_states(device: torch.device) -> list[Tensor]:
    """Return the state of the random numbers that a function on `device` may draw."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_random_states(states: list[Tensor], device: torch.device) -> None:
    """Set what :func:`random_states` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
