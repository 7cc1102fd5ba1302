"""Where the time of training goes: seconds by part, between two reports.

On a CPU they are the host's. On CUDA they are those of the stream: events mark where a part begins
and ends, and the host waits for them only when the sums are taken, never within a step.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

import torch

MANY_SPANS = 4096  # that are kept for the report; beyond, those that are over are summed


class Clock(Protocol):
    """Sums the seconds of spans: ``clock.stop(clock.start())``. Spans may overlap."""

    def start(self) -> Any:
        """Begins a span."""

    def stop(self, started: Any) -> None:
        """Ends the span that `start` gave."""

    def take(self) -> float:
        """The seconds of all spans that have ended since the last call."""


class HostClock:
    """Seconds of the host."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def start(self) -> float:
        """A span begins; to be handed to stop()."""
        return time.perf_counter()

    def stop(self, started: float) -> None:
        """It ends."""
        self.seconds += time.perf_counter() - started

    def take(self) -> float:
        """Seconds of all spans since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class StreamClock:
    """Seconds of the CUDA stream that is current where a span begins and ends."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.spans: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def start(self) -> torch.cuda.Event:
        """A span of the device's work begins; to be handed to stop()."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def stop(self, started: torch.cuda.Event) -> None:
        """It ends, when the device comes to it."""
        self.spans.append((started, self.start()))
        while len(self.spans) > MANY_SPANS and self.spans[0][1].query():
            self.add_first()

    def add_first(self) -> None:
        """Adds up the oldest span, which has ended."""
        started, ended = self.spans.popleft()
        self.seconds += started.elapsed_time(ended) / 1e3

    def take(self) -> float:
        """Seconds of all spans since the last call; waits for the device."""
        while self.spans:
            self.spans[0][1].synchronize()
            self.add_first()
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def clock_on(device: torch.device) -> Clock:
    """A clock of what `device` does."""
    return StreamClock() if device.type == "cuda" else HostClock()


class Part:
    """One part of a step, a context manager; not to be entered again within itself."""

    def __init__(self, watch: Stopwatch, name: str) -> None:
        self.watch, self.name, self.clock = watch, name, clock_on(watch.device)
        self.label: torch.profiler.record_function | None = None
        self.started: Any = None

    def __enter__(self) -> None:
        if self.watch.labelled:
            self.label = torch.profiler.record_function(self.name)
            self.label.__enter__()
        self.started = self.clock.start()

    def __exit__(self, *error: object) -> None:
        self.clock.stop(self.started)
        if self.label is not None:
            self.label.__exit__(None, None, None)
            self.label = None


class Stopwatch:
    """Sums the seconds of the parts of a step::

        with watch("forward"):
            loss = model(batch)

    On CUDA a part lasts from when the stream has come to its beginning until it has come to its
    end: waiting for data counts only as far as the device has run out of work.

    Attributes:
        labelled: whether the parts also stand in a trace, see elemdist/trace.py, which sets it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.labelled = False
        self.parts: dict[str, Part] = {}

    def __call__(self, name: str) -> Part:
        part = self.parts.get(name)
        if part is None:
            part = self.parts[name] = Part(self, name)
        return part

    def take(self) -> dict[str, float]:
        """Part -> seconds since the last call, of all parts that ever were; starts again at 0."""
        return {name: part.clock.take() for name, part in self.parts.items()}
