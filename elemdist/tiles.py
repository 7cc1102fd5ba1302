"""Rows a tile at a time: a function's inner values are computed again for the gradient, not kept.

Gradients of parameters are summed over the tiles in fp32 and rounded once. Left to autograd they
would be added up in the parameter's own type: over 512 tiles in bf16 a bias came out 14 % wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

Function = Callable[..., Tensor]


def tiled(
    function: Function,
    tile_rows: int,
    rows: Sequence[Tensor],
    modules: Sequence[nn.Module],
    shared: Sequence[Tensor] = (),
) -> Tensor:
    """Return function(*rows, *shared), computed for `tile_rows` rows at a time.

    Args:
        function: row by row, from tensors of equally many rows to one of as many.
        rows: those tensors. Gradients go to the ones of a floating type.
        modules: all whose parameters `function` needs gradients for.
        shared: tensors besides that are whole for every tile.
    """
    if not torch.is_grad_enabled():
        return torch.cat([function(*tile, *shared) for tile in tiles(rows, tile_rows)])
    parameters = [parameter for _, _, parameter in slots(modules)]
    inputs = (len(rows), len(rows) + len(shared))
    applied = Tiles.apply(function, tile_rows, modules, inputs, *rows, *shared, *parameters)
    return cast(Tensor, applied)


def tiles(rows: Sequence[Tensor], tile_rows: int) -> Sequence[tuple[Tensor, ...]]:
    """Return the tensors cut into tiles, as views."""
    return list(zip(*(tensor.split(tile_rows) for tensor in rows), strict=True))


def slots(modules: Sequence[nn.Module]) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Return where the parameters of modules stand: module, name, parameter."""
    return [
        (part, name, getattr(part, name))  # as an attribute ZeRO 3 sees to it that it is whole
        for module in modules
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if parameter is not None
    ]


@contextmanager
def standing_in(places: Sequence[tuple[nn.Module, str, Any]], values: Sequence[Tensor]) -> Any:
    """Put `values` in the places of parameters for as long as the context lasts."""
    try:
        for (module, name, _), value in zip(places, values, strict=True):
            module._parameters[name] = cast(nn.Parameter, value)
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter


class Tiles(torch.autograd.Function):
    """The loop over tiles, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Function,
        tile_rows: int,
        modules: Sequence[nn.Module],
        inputs: tuple[int, int],
        *tensors: Tensor,
    ) -> Tensor:
        """Return the function's values; `inputs`: where in `tensors` the rows end, and the shared
        ones; what follows are the modules' parameters."""
        ctx.function, ctx.tile_rows, ctx.modules, ctx.inputs = function, tile_rows, modules, inputs
        rows, shared = tensors[: inputs[0]], tensors[inputs[0] : inputs[1]]
        ctx.save_for_backward(*rows)
        ctx.shared = shared
        ctx.random = random_states(tensors[0].device)
        return torch.cat([function(*tile, *shared) for tile in tiles(rows, tile_rows)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Return the gradients of `tensors`, those of all but the rows in fp32 at least."""
        rows, (first, second) = ctx.saved_tensors, ctx.inputs
        needs = ctx.needs_input_grad[4:]
        shared = leaves(ctx.shared, needs[first:second])
        places = slots(ctx.modules)
        parameters = leaves([parameter for _, _, parameter in places], needs[second:])
        wanted = [one for one in (*shared, *parameters) if one.requires_grad]
        sums = [torch.zeros_like(one, dtype=summed_in(one.dtype)) for one in wanted]
        row_parts: list[list[Tensor]] = []
        device = rows[0].device
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            standing_in(places, parameters),
            torch.enable_grad(),
        ):
            set_random_states(ctx.random, device)
            cut = zip(tiles(rows, ctx.tile_rows), gradients[0].split(ctx.tile_rows), strict=True)
            for tile, gradient in cut:
                own = leaves(tile, needs[:first])
                values = ctx.function(*own, *shared)
                asked = [part for part in own if part.requires_grad]
                found = torch.autograd.grad(values, [*asked, *wanted], gradient, allow_unused=True)
                row_parts.append(list(found[: len(asked)]))
                for total, part in zip(sums, found[len(asked) :], strict=True):
                    if part is not None:
                        total.detach().add_(part)
        summed = [torch.cat(parts) for parts in zip(*row_parts, strict=True)] + sums
        each = iter(summed)
        return (*(None,) * 4, *(next(each) if needed else None for needed in needs))


def leaves(tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    """Return the tensors' values as leaves of a graph of their own."""
    pairs = zip(tensors, needed, strict=True)
    return [tensor.detach().requires_grad_(wanted) for tensor, wanted in pairs]


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
