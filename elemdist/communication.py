"""What the ranks send each other: calls, bytes and seconds of this rank's collectives.

A :class:`Meter` stands between the callers (DeepSpeed, and our own code) and the collectives of
torch.distributed while it is installed. Point-to-point messages are not counted.

Bytes are counted twice. ``payload_bytes`` are those of the whole tensor that a call is about: what
is reduced, or what is there once all parts are gathered. ``sent_bytes`` are those that a rank sends
when p ranks do the work by the usual ring (Thakur et al. 2005), or directly where each pair has
something of its own: 2 (p - 1) / p of the payload for an all-reduce, which is a reduce-scatter and
an all-gather, and (p - 1) / p for all others. Of a broadcast, reduce, gather or scatter, in which
the ranks send unequally, that is the mean over the ranks.

Seconds are those for which the caller is held up: the call and, where it returns at once, the wait
for its end. On CUDA they are those of the calling stream. Most collectives run within the backward
pass and the optimizer step, so these seconds are a part of theirs and do not come on top.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from elemdist.timing import Clock, clock_on


@dataclass
class Count:
    """Of one kind of collective, or of all; see the module for what the figures mean."""

    calls: int = 0
    payload_bytes: int = 0
    sent_bytes: float = 0.0
    seconds: float = 0.0


@dataclass
class Traffic:
    """What a rank did between two reports: in all, and by the name of the collective."""

    by_operation: dict[str, Count] = field(default_factory=dict)

    @property
    def total(self) -> Count:
        """Of all operations."""
        counts = self.by_operation.values()
        return Count(
            sum(count.calls for count in counts),
            sum(count.payload_bytes for count in counts),
            sum(count.sent_bytes for count in counts),
            sum(count.seconds for count in counts),
        )


@dataclass(frozen=True)
class Collective:
    """How to count one function of torch.distributed.

    Attributes:
        amount: its argument that says how much there is.
        parts: that argument is one rank's part of p.
        rounds: how often (p - 1) / p of the payload is sent.
    """

    amount: str
    parts: bool = False
    rounds: int = 1


COLLECTIVES = {
    "all_reduce": Collective("tensor", rounds=2),
    "all_reduce_coalesced": Collective("tensors", rounds=2),
    "reduce": Collective("tensor"),
    "broadcast": Collective("tensor"),
    "reduce_scatter": Collective("input_list"),
    "reduce_scatter_tensor": Collective("input"),
    "reduce_scatter_single": Collective("input"),
    "all_gather": Collective("tensor", parts=True),
    "all_gather_into_tensor": Collective("output_tensor"),
    "all_gather_single": Collective("output_tensor"),
    "all_gather_coalesced": Collective("input_tensor_list", parts=True),
    "all_to_all_single": Collective("input"),
    "all_to_all": Collective("input_tensor_list"),
    "gather": Collective("tensor", parts=True),
    "scatter": Collective("tensor", parts=True),
}
# DeepSpeed keeps these two functions of torch.distributed as it found them at its start.
KEPT_BY_DEEPSPEED = {
    "all_gather_function": "all_gather_into_tensor",
    "reduce_scatter_function": "reduce_scatter_tensor",
}


def size_of(tensors: Any) -> int:
    """Bytes of a tensor, or of all in a list."""
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(map(size_of, tensors))


class TimedWork:
    """A collective under way; waiting for it is timed, all else is that of torch's own object."""

    def __init__(self, work: Any, clock: Clock) -> None:
        self.work, self.clock = work, clock

    def wait(self, *args: Any, **options: Any) -> Any:
        """As the work's, and timed."""
        started = self.clock.start()
        try:
            return self.work.wait(*args, **options)
        finally:
            self.clock.stop(started)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.work, name)


def homes() -> Iterator[tuple[Any, str, str]]:
    """Where the collectives are called from: (object, its attribute, name of the collective)."""
    for module in (dist, dist.distributed_c10d):
        for name in COLLECTIVES:
            yield module, name, name
    deepspeed = sys.modules.get("deepspeed.comm.comm")
    backend = getattr(deepspeed, "cdb", None)
    for attribute, name in KEPT_BY_DEEPSPEED.items():
        yield backend, attribute, name


class Meter:
    """Counts the collectives of this rank while it is installed::

        with Meter(device) as meter:
            ...
            traffic = meter.take()

    Install it before or after DeepSpeed starts; of two meters, the last one is removed first.
    Functions imported by name (``from torch.distributed import all_reduce``) are not seen.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = {name: Count() for name in COLLECTIVES}
        self.clocks = {name: clock_on(device) for name in COLLECTIVES}
        self.wrapped: dict[Any, Any] = {}  # the function -> what stands in its place
        self.inside = threading.local()

    def install(self) -> Meter:
        """Puts the meter in front of all collectives that are not metered yet."""
        for owner, attribute, name in homes():
            function = getattr(owner, attribute, None)
            if function is None or function in self.wrapped.values():
                continue
            if function not in self.wrapped:
                self.wrapped[function] = self.metered(name, function)
            setattr(owner, attribute, self.wrapped[function])
        return self

    def remove(self) -> None:
        """Puts torch's functions back, DeepSpeed's copies included."""
        originals = {wrapper: function for function, wrapper in self.wrapped.items()}
        for owner, attribute, _ in homes():
            function = getattr(owner, attribute, None)
            if function in originals:
                setattr(owner, attribute, originals[function])
        self.wrapped = {}

    def __enter__(self) -> Meter:
        return self.install()

    def __exit__(self, *error: object) -> None:
        self.remove()

    def metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counted as `name`."""
        clock, inside = self.clocks[name], self.inside
        names = list(inspect.signature(function).parameters)
        amount, group = COLLECTIVES[name].amount, "group"
        amount_place, group_place = names.index(amount), names.index(group)

        @functools.wraps(function)
        def wrapper(*args: Any, **options: Any) -> Any:
            if getattr(inside, "a_call", False):  # one collective in terms of another
                return function(*args, **options)
            inside.a_call = True
            started = clock.start()
            try:
                work = function(*args, **options)
            finally:
                clock.stop(started)
                inside.a_call = False
            self.add(
                name,
                args[amount_place] if len(args) > amount_place else options[amount],
                args[group_place] if len(args) > group_place else options.get(group),
            )
            return None if work is None else TimedWork(work, clock)

        return wrapper

    def add(self, name: str, tensors: Any, group: Any) -> None:
        """Counts one call."""
        ranks = dist.get_world_size(group)
        if ranks < 1:  # this rank is none of the group
            return
        collective, count = COLLECTIVES[name], self.counts[name]
        payload_bytes = size_of(tensors) * (ranks if collective.parts else 1)
        count.calls += 1
        count.payload_bytes += payload_bytes
        count.sent_bytes += collective.rounds * payload_bytes * (ranks - 1) / ranks

    def take(self) -> Traffic:
        """What was counted since the last call; starts again at 0."""
        counts, self.counts = self.counts, {name: Count() for name in COLLECTIVES}
        for name, count in counts.items():
            count.seconds = self.clocks[name].take()
        return Traffic(
            {name: count for name, count in counts.items() if count.calls or count.seconds}
        )
