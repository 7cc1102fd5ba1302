"""Seconds by part."""

from __future__ import annotations

import time
import timeit

import pytest
import torch

from elemdist import timing
from elemdist.timing import Stopwatch, StreamClock
from tests.conftest import NO_GPU


def test_seconds_add_up_by_part_and_start_again_at_a_report():
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(3):
        with watch("data"):
            time.sleep(0.02)
        with watch("forward"):
            time.sleep(0.01)
    seconds = watch.take()
    assert list(seconds) == ["data", "forward"]
    assert 0.06 <= seconds["data"] < 0.3
    assert 0.03 <= seconds["forward"] < 0.2
    assert watch.take() == {"data": 0.0, "forward": 0.0}


def test_a_part_ends_with_an_error_too_and_parts_may_lie_in_each_other():
    watch = Stopwatch(torch.device("cpu"))

    def fail() -> None:
        with watch("outer"), watch("inner"):
            time.sleep(0.02)
            raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        fail()
    seconds = watch.take()
    assert seconds["outer"] >= seconds["inner"] >= 0.02


def test_a_use_costs_less_than_two_microseconds():
    watch = Stopwatch(torch.device("cpu"))

    def use() -> None:
        with watch("forward"):
            pass

    # The least of many short trials: other processes only ever add to it.
    assert min(timeit.repeat(use, number=1000, repeat=50)) / 1000 < 2e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
def test_on_cuda_the_stream_is_timed_and_the_host_does_not_wait(monkeypatch):
    monkeypatch.setattr(timing, "MANY_SPANS", 4)
    watch = Stopwatch(torch.device("cuda"))
    a = torch.randn(8192, 8192, device="cuda")
    with watch("forward"):
        a @ a
    watch.take()
    before = time.perf_counter()
    for _ in range(20):
        with watch("forward"):
            for _ in range(10):
                a @ a
    launched = time.perf_counter() - before
    torch.cuda.synchronize()
    whole = time.perf_counter() - before
    spent = watch.take()["forward"]
    assert launched < whole / 2
    assert whole / 2 < spent < whole * 1.1


class Stream:
    """Stands for a CUDA stream where there is none: events are over once `done`; times in ms."""

    def __init__(self) -> None:
        self.now, self.done, self.waits = 0.0, False, 0


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = stream.now

        def query(self) -> bool:
            return stream.done

        def synchronize(self) -> None:
            stream.waits += 1

        def elapsed_time(self, other: Event) -> float:
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    return stream


def test_spans_of_a_stream_wait_for_the_report_and_do_not_pile_up(stream, monkeypatch):
    monkeypatch.setattr(timing, "MANY_SPANS", 4)
    clock = StreamClock()
    for number in range(10):
        stream.done = number >= 8
        started = clock.start()
        stream.now += 500.0
        clock.stop(started)
        stream.now += 70.0  # between the spans
        assert len(clock.spans) == (number + 1 if number < 8 else 4)
    assert stream.waits == 0
    assert clock.take() == 5.0
    assert stream.waits == 4
    assert clock.take() == 0.0
