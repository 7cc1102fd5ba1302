"""An engine's weights and optimizer state, parameter by parameter.

DeepSpeed cuts and flattens the parameters in another way in every ZeRO stage and on every number
of ranks. Here all of it is said in one way, that of the files (see checkpoint_parts.py): elements
of a flattened parameter. So any engine reads what any other one wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elemdist.checkpoint_parts import (
    MASTER,
    MOMENTS,
    WEIGHTS,
    Layout,
    PartReader,
    Shape,
    TensorFile,
    index_parts,
)
from elemdist.engine import on_every, on_first


@dataclass(frozen=True)
class Fragment:
    """Elements of a flattened parameter that this rank's optimizer updates.

    Attributes:
        parameter: its name.
        first, numel: which of its elements.
        owner: the tensor that the optimizer updates, a whole parameter or a flat piece of many.
        start: place of the first element in the flattened owner.
    """

    parameter: str
    first: int
    numel: int
    owner: Tensor
    start: int

    def view(self, engine: Any, kind: str) -> Tensor:
        """The elements of the weights or of a moment, flat; on a change the engine's change."""
        whole = self.owner if kind == MASTER else adam_state(engine, self.owner)[kind]
        return whole.detach().view(-1).narrow(0, self.start, self.numel)


def adam_state(engine: Any, owner: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of a tensor; where there is none yet, zeros, as Adam starts with."""
    state: dict[str, Tensor] = engine.basic_optimizer.state[owner]
    if "exp_avg" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=owner.device)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(owner, requires_grad=False)
    return state


def trained(engine: Any) -> list[tuple[str, Any]]:
    """(name, parameter) of all that the optimizer updates; a shared one comes once."""
    return [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]


def shapes(engine: Any) -> dict[str, Shape]:
    """Parameter name -> its shape, also where ZeRO 3 holds it in partitions."""
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in trained(engine)}


def kinds(engine: Any) -> tuple[str, ...]:
    """What is to be kept of each parameter, beside the weights that the model works with."""
    half = any(parameter.dtype != torch.float32 for _, parameter in trained(engine))
    return (MASTER, *MOMENTS) if half else MOMENTS


def held(engine: Any) -> list[Fragment]:
    """What this rank's optimizer updates. Under ZeRO 0 that is everything, on every rank."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        return list(partitions(engine))
    for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(flat_pieces(engine, getattr(optimizer, name)))
    masters = dict(copies(optimizer)) if hasattr(optimizer, "fp32_groups") else {}
    return [Fragment(name, 0, p.numel(), masters.get(p, p), 0) for name, p in trained(engine)]


def copies(optimizer: Any) -> Iterator[tuple[Any, Tensor]]:
    """(16-bit parameter, its fp32 copy) of ZeRO 0 in bf16."""
    for group, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        yield from zip(group, masters, strict=True)


def flat_pieces(engine: Any, flats: list[Tensor]) -> Iterator[Fragment]:
    """The fragments of ZeRO 1 and 2, which cut each group of parameters in one flat row."""
    for name, parameter in trained(engine):
        if (link := parameter._hp_mapping) is not None:
            place = link.hp_fragment_address
            owner = flats[link.param_group_index]
            yield Fragment(name, link.lp_fragment_address.start, place.numel, owner, place.start)


def partitions(engine: Any) -> Iterator[Fragment]:
    """The fragments of ZeRO 3, which cuts each parameter into equal parts and pads the last."""
    optimizer = engine.optimizer
    for name, parameter in trained(engine):
        group, start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        first = size * optimizer._get_param_partition_rank(parameter)
        if (numel := min(size, parameter.ds_numel - first)) > 0:
            owner = optimizer.fp32_partitioned_groups_flat[group]
            yield Fragment(name, first, numel, owner, start)


def own_share(engine: Any, rank: int, world_size: int) -> list[Fragment]:
    """The fragments that this rank writes: all ranks together write each element once."""
    found = held(engine)
    if engine.zero_optimization_stage():
        return found
    shares = []
    for part in found:
        low, high = part.numel * rank // world_size, part.numel * (rank + 1) // world_size
        if low < high:
            shares.append(replace(part, first=low, start=low, numel=high - low))
    return shares


def by_owner(found: Iterable[Fragment]) -> list[list[Fragment]]:
    """Fragments of the same parameter together, in order."""
    groups: dict[int, list[Fragment]] = {}
    for part in found:
        groups.setdefault(id(part.owner), []).append(part)
    return list(groups.values())


def in_memory(engine: Any, groups: list[list[Fragment]], change: bool) -> Iterator[list[Fragment]]:
    """The groups one by one; their owner lies in memory until the next one is asked for, and goes
    back to the fast disk it came from, `change`: written anew, and the model's weights with it."""
    optimizer = engine.optimizer
    parted = engine.zero_optimization_stage() == 3
    owners = optimizer.fp32_partitioned_groups_flat if parted else []
    number = {id(owner): place for place, owner in enumerate(owners)}
    for group in groups:
        place = number.get(id(group[0].owner))
        swapped = place is not None and optimizer._swappable_optimizer_subgroup(place)
        if swapped:
            optimizer._optimizer_states_and_gradient_swap_in(place)
        yield group
        if change and place is not None:
            optimizer._reassign_or_swap_out_partitioned_parameters(place)
        if swapped and change:
            optimizer._optimizer_states_and_gradient_swap_out(place)
        elif swapped:
            optimizer._release_swap_buffers(place)


def optimizer_steps(engine: Any) -> int:
    """How many steps Adam has taken; it corrects its young moments by that."""
    states = engine.basic_optimizer.state.values()
    return max((int(state["step"]) for state in states if "step" in state), default=0)


def state_file(engine: Any, rank: int, world_size: int) -> TensorFile:
    """This rank's parts of the optimizer's state."""
    groups, chosen = by_owner(own_share(engine, rank, world_size)), kinds(engine)
    order = [(part, kind) for group in groups for part in group for kind in chosen]
    layout: Layout = {
        f"{kind}/{part.parameter}@{part.first}": (torch.float32, (part.numel,))
        for part, kind in order
    }

    def tensors() -> Iterator[Tensor]:
        for group in in_memory(engine, groups, change=False):
            for part in group:
                for kind in chosen:
                    yield part.view(engine, kind).float()

    return TensorFile(f"state/rank-{rank:05d}.safetensors", layout, tensors())


def weights_file(engine: Any, rank: int) -> TensorFile:
    """The whole weights, for rank 0 to write. Under ZeRO 3 all ranks gather each one for it, and
    have to go through the tensors."""
    from deepspeed.runtime.zero import GatheredParameters

    parted = engine.zero_optimization_stage() == 3
    named = sorted(engine.module.named_parameters(), key=lambda item: -item[1].dtype.itemsize)
    layout = {name: (p.dtype, tuple(getattr(p, "ds_shape", p.shape))) for name, p in named}

    def tensors() -> Iterator[Tensor]:
        for _, parameter in named:
            with GatheredParameters([parameter], enabled=parted):
                yield parameter.detach()

    if rank == 0:
        return TensorFile(WEIGHTS, layout, tensors())
    return TensorFile("", {}, tensors() if parted else [])


def restore(engine: Any, folder: Path, files: list[str], steps: int) -> None:
    """Puts the engine where the one that wrote the checkpoint was: weights, masters, moments and
    Adam's count of `steps`. All ranks call it together.

    The engine may be fresh or have been trained. Raises UserError, on all ranks alike, where the
    files are not those of this model.
    """
    index = on_first(lambda: index_parts(folder, files, shapes(engine)))
    reader = PartReader(folder, index)
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.checkpoint_event_prologue()  # no parameter stays gathered

    def fill() -> None:
        for group in in_memory(engine, by_owner(held(engine)), change=True):
            for part in group:
                for kind in (MASTER, *MOMENTS):
                    reader.read(kind, part.parameter, part.first, part.view(engine, kind))
            adam_state(engine, group[0].owner)["step"].fill_(float(steps))

    with torch.no_grad():
        on_every(fill)
        refresh_weights(engine)


def assign(engine: Any, new: dict[str, Tensor]) -> None:
    """Gives parameters new values, by name, the same on all ranks, who call it together. Adam's
    moments of them stay."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.checkpoint_event_prologue()  # no parameter stays gathered
    with torch.no_grad():
        for group in in_memory(engine, by_owner(held(engine)), change=True):
            for part in group:
                if part.parameter in new:
                    flat = new[part.parameter].flatten()[part.first : part.first + part.numel]
                    part.view(engine, MASTER).copy_(flat)
        refresh_weights(engine)


def refresh_weights(engine: Any) -> None:
    """Makes the model's weights those of the optimizer, on all ranks."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        optimizer.checkpoint_event_epilogue()  # gathers the small ones, which stay whole
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_groups"):
        for parameter, master in copies(optimizer):
            parameter.data.copy_(master.data)
