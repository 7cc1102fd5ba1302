"""What the report of a GPU measures with: time, arithmetic by formula, what the device could do.

Shape suffixes: see elemdist/rows.py.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from elemdist import flops
from elemdist.attention import backends
from elemdist.commandline import parse
from elemdist.config import TrainSettings
from elemdist.model_config import ModelConfig, model_config
from elemdist.run_settings import MemorySettings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BACKWARD_OF_FLASH = 2.5  # five products where the forward pass has two
LEAST_TIMED_S = 0.05  # less than that, and a call is repeated within one reading

Row = dict[str, Any]


def stated_tflops(device: torch.device) -> float | None:
    """What the device's maker states for dense bf16; None: unknown."""
    return (
        flops.stated_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    )


def environment(device: torch.device, dtype: torch.dtype) -> Row:
    """What it all ran on."""
    row: Row = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        row |= {
            "device": found.name,
            "capability": f"{found.major}.{found.minor}",
            "memory_gb": found.total_memory / 1e9,
            "cuda": torch.version.cuda,
            "stated_tflops": stated_tflops(device),
        }
    else:
        row |= {"device": platform.machine(), "threads": torch.get_num_threads()}
    for name, reason in backends(device, dtype).items():
        row[f"attention: {name}"] = reason or "runs"
    return row


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device, most_s: float) -> float:
    """The median time of one call, in seconds, after one to warm up; at most about `most_s`."""
    work()
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    first = time.perf_counter() - start
    calls = max(1, int(LEAST_TIMED_S / max(first, 1e-9)))
    readings = [first] if calls == 1 else []
    while not readings or (len(readings) < 5 and sum(readings) * calls + first * calls < most_s):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        wait(device)
        readings.append((time.perf_counter() - start) / calls)
    return statistics.median(readings)


def size_of(name: str, n: int, v: int, **model: Any) -> ModelConfig:
    """A size of configs/ as an encoder of masked materials, positions rotary: a learned vector for
    each of a million positions would be the largest part of the model."""
    words = [str(CONFIGS / f"{name}.yaml"), "--model.positions", "rotary"]
    for key, value in model.items():
        words += [f"--model.{key.replace('_', '-')}", str(value)]
    return model_config(parse(TrainSettings, words, "gpu_report"), n, v)


def elements_of(name: str) -> int:
    """v: 12, or 16 where that does not divide the width."""
    width = parse(TrainSettings, [str(CONFIGS / f"{name}.yaml")], "gpu_report").model.width
    return 16 if width % 12 else 12


def segments_of(rows: int, n: int) -> list[int]:
    """Rows in segments of n, and a shorter one at the end."""
    return [n] * (rows // n) + ([rows % n] if rows % n else [])


def attention_flops(rows: int, n: int, width: int, causal: bool, window: int = 0) -> float:
    """Of one layer's attention, forward, for rows in segments of n."""
    return flops.attention_flops(segments_of(rows, n), width, causal, window)


def step_flops(config: ModelConfig, rows: int, n: int, predicted: float) -> float:
    """Of one training step, forward and backward, for rows in segments of n."""
    return flops.step_flops(config, segments_of(rows, n), predicted)


def frugal() -> MemorySettings:
    """For long sequences: every block computed again, feed-forward and loss in tiles."""
    return MemorySettings(checkpoint_every=1, tile_rows=16384, tile_loss_rows=4096)


def peak_gb(device: torch.device) -> float | None:
    """The most memory that tensors have had on a GPU since the last reset."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def cases_in_time(
    cases: list[tuple[Row, Callable[[], Row]]], deadline: float, device: torch.device
) -> Iterator[Row]:
    """Runs cases one after the other while there is time; one that fails says so in its row."""
    for label, case in cases:
        if time.perf_counter() > deadline:
            yield label | {"note": "no time left"}
            continue
        try:
            yield label | case()
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            kind = "out of memory" if "out of memory" in str(error) else "error"
            yield label | {kind: f"{type(error).__name__}: {lines[0][:120]}"}
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
