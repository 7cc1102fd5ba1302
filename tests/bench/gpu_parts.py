"""The parts of the report of a GPU, one to a process; every row of a table is a line of JSON.

    python tests/bench/gpu_parts.py PART --device cuda --seconds 60 [--quick]

gpu_report.py runs them all. Shape suffixes: see elemdist/rows.py; D = W / H.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from elemdist.attention import Segments, attention, backends, choose
from elemdist.run_settings import MemorySettings
from tests.bench.gpu_measure import (
    BACKWARD_OF_FLASH,
    Row,
    attention_flops,
    cases_in_time,
    elements_of,
    environment,
    frugal,
    peak_gb,
    seconds_of,
    size_of,
    stated_tflops,
    step_flops,
)
from tests.bench.models import MASK_RATE, Ours, full_batch

HERE = Path(__file__).resolve().parent
HEADS, HEAD_WIDTH = 12, 64  # of attention by itself: those of BERT-base
WINDOW = 512
LONG = 16384  # rows of a sequence from which on memory is saved
CASE_S, ATTENTION_S = 5.0, 0.8  # of one case, more or less
OUT_OF_MEMORY = 3  # exit code of a try

Cases = list[tuple[Row, Callable[[], Row]]]


@dataclass(frozen=True)
class Place:
    """Where it runs, in what precision, until when, and whether in small."""

    device: torch.device
    dtype: torch.dtype
    deadline: float
    quick: bool

    def run(self, cases: Cases) -> Iterator[Row]:
        return cases_in_time(cases, self.deadline, self.device)


def attention_case(place: Place, name: str, n: int, rows: int, causal: bool, window: int) -> Row:
    """Forward and backward of attention in segments of n rows, by one back end."""
    device = place.device
    choose(name, device, place.dtype)
    generator = torch.Generator(device).manual_seed(1)
    qkvg = [
        torch.randn(rows, HEADS, HEAD_WIDTH, device=device, dtype=place.dtype, generator=generator)
        for _ in range(4)
    ]
    q, k, v = (x.requires_grad_() for x in qkvg[:3])
    cu_lengths = torch.arange(0, rows + 1, n, dtype=torch.int32, device=device)
    segments = Segments(cu_lengths, [n] * (rows // n))

    def work() -> None:
        out = attention(q, k, v, segments, causal=causal, window=window)
        torch.autograd.grad(out, (q, k, v), qkvg[3])

    taken = seconds_of(work, device, ATTENTION_S)
    flops = (1 + BACKWARD_OF_FLASH) * attention_flops(rows, n, HEADS * HEAD_WIDTH, causal, window)
    return {"ms": taken * 1e3, "tflops": flops / taken / 1e12, "peak_gb": peak_gb(device)}


def attention_part(place: Place) -> Iterator[Row]:
    """Back ends side by side."""
    lengths, least = ([64, 256], 512) if place.quick else ([512, 4096, 32768, 131072], 65536)
    names = [name for name, no in backends(place.device, place.dtype).items() if no is None]
    window = 32 if place.quick else WINDOW
    cases: Cases = []
    for n in lengths:
        for causal, reach in ((False, 0), (True, 0), (False, window)):
            for name in names:
                rows = max(n, least)
                label = {"n": n, "rows": rows, "causal": causal, "window": reach, "by": name}
                cases.append((label, partial(attention_case, place, name, n, rows, causal, reach)))
    return place.run(cases)


def table_part(place: Place) -> Iterator[Row]:
    """The ways to the gradient of the element table: bench_table.py, as rows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
        command = [sys.executable, str(HERE / "bench_table.py"), "--device", place.device.type]
        command += ["--json", str(out), *(["--quick"] if place.quick else ["--rounds", "3"])]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(done.stderr or "bench_table.py failed")
        tables = json.loads(out.read_text())
    for table in tables:
        for name, median in table["medians"].items():
            yield {"table": table["title"], "by": name, table["unit"]: median}


def training_case(
    place: Place, size: str, n: int, rows: int, memory: MemorySettings, compiled: bool = False
) -> Row:
    """Training steps of one size on sequences of n rows."""
    device, v = place.device, elements_of(size)
    config = size_of(size, n, v)
    trainer = Ours(config, full_batch(rows, n, v, device), memory, place.dtype)
    row: Row = {}
    if compiled:
        start = time.perf_counter()
        trainer.compile_blocks()
        trainer.step().item()
        row["first_step_s"] = time.perf_counter() - start
    taken = seconds_of(trainer.step, device, CASE_S)
    tflops = step_flops(config, rows, n, MASK_RATE * rows) / taken / 1e12
    stated = stated_tflops(device)
    if not trainer.step().isfinite():
        raise RuntimeError("the loss is not finite")
    return row | {
        "ms": taken * 1e3,
        "rows_per_s": rows / taken,
        "text_mb_per_s": trainer.batch.text_bytes / taken / 1e6,
        "tflops": tflops,
        "mfu": stated and tflops / stated,
        "peak_gb": peak_gb(device),
    }


def throughput_part(place: Place) -> Iterator[Row]:
    """Training by size and length of the sequence."""
    if place.quick:
        shapes = [("tiny", 64, 128), ("tiny", 256, 256)]
    else:
        # 87,552 rows have room for 1.05 MB, 175,104 for 2.1 MB.
        long = [("base", n, max(n, 65536)) for n in (512, 4096, 32768, 87552, 175104)]
        shapes = [
            *long[:4],
            *((size, n, 65536) for size in ("tiny", "small") for n in (512, 8192)),
            ("large", 512, 32768),
            ("large", 4096, 32768),
            ("large", 65536, 65536),
            long[4],
        ]
    limit = 128 if place.quick else LONG
    cases: Cases = []
    for size, n, rows in shapes:
        memory = frugal() if n >= limit else MemorySettings()
        label = {"size": size, "n": n, "mb_a_sequence": n * elements_of(size) / 1e6}
        label |= {"rows": rows, "recomputed": bool(memory.checkpoint_every)}
        cases.append((label, partial(training_case, place, size, n, rows, memory)))
    return place.run(cases)


def compile_part(place: Place) -> Iterator[Row]:
    """torch.compile off and on; not on a CPU if it should be quick, where it takes a minute."""
    ways = (False,) if place.quick and place.device.type == "cpu" else (False, True)
    size, n, rows = ("tiny", 64, 128) if place.quick else ("base", 512, 65536)
    return place.run(
        [
            (
                {"size": size, "n": n, "rows": rows, "compile": on},
                partial(training_case, place, size, n, rows, MemorySettings(), on),
            )
            for on in ways
        ]
    )


def try_rows(place: Place, size: str, window: int, rows: int) -> None:
    """One training step on one sequence of so many rows; exits with OUT_OF_MEMORY."""
    v = elements_of(size)
    try:
        config = size_of(size, rows, v, window=window)
        trainer = Ours(config, full_batch(rows, rows, v, place.device), frugal(), place.dtype)
        start = time.perf_counter()
        loss = trainer.step().item()
        print(json.dumps({"s": time.perf_counter() - start, "loss": loss}))
    except (torch.OutOfMemoryError, MemoryError):
        raise SystemExit(OUT_OF_MEMORY) from None
    print(json.dumps({"peak_gb": peak_gb(place.device)}))


def longest(place: Place, size: str, window: int, first: int, most: int, until: float) -> Row:
    """The longest sequence that trains: doubled until it does not, then halved in between."""
    good, bad, ended = 0, 0, f"not tried beyond {most:,} rows"
    last: Row = {}
    rows = first
    while rows <= most and (not bad or bad - good > good // 8):
        left = until - time.perf_counter()
        if left <= 0:
            ended = "out of time"
            break
        command = [sys.executable, __file__, "try", "--device", place.device.type]
        command += ["--size", size, "--window", str(window), "--rows", str(rows)]
        command += ["--quick"] if place.quick else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            ended = f"out of time at {rows:,} rows"
            break
        if done.returncode == 0:
            good, last = rows, {}
            for line in done.stdout.splitlines():
                last |= json.loads(line)
        elif done.returncode in (OUT_OF_MEMORY, -9):  # or ended by the system for its memory
            bad, ended = rows, f"out of memory at {rows:,} rows"
        else:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        rows = (good + bad) // 2 if bad else good * 2
        if not good and bad:
            rows = bad // 2
    return {"rows": good, "mb": good * elements_of(size) / 1e6, "ended": ended, **last}


def longest_part(place: Place) -> Iterator[Row]:
    """The longest sequence in a window and with all rows attending to all: the time for the latter
    grows with the square."""
    small = place.quick or place.device.type != "cuda"  # the memory of a host has no clear end
    size, most = ("tiny", 128) if small else ("base", 1 << 24)
    now = time.perf_counter()
    share = (place.deadline - now) * 0.6
    return place.run(
        [
            (
                {"size": size, "window": window},
                partial(longest, place, size, window, first, most, until),
            )
            for window, first, until in (
                (WINDOW, 64 if small else 1 << 20, now + share),
                (0, 64 if small else 1 << 17, place.deadline),
            )
        ]
    )


PARTS: dict[str, Callable[[Place], Iterator[Row]]] = {
    "environment": lambda place: iter([environment(place.device, place.dtype)]),
    "attention": attention_part,
    "table": table_part,
    "throughput": throughput_part,
    "compile": compile_part,
    "longest": longest_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "try"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=60.0, help="no new case after that (60)")
    parser.add_argument("--quick", action="store_true", help="in small: does it run?")
    parser.add_argument("--size", default="base", help="of a try (base)")
    parser.add_argument("--window", type=int, default=0, help="of a try (0: none)")
    parser.add_argument("--rows", type=int, default=1024, help="of a try (1024)")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --device cpu --quick shows whether it would run")
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if options.quick:
        torch.set_num_threads(1)  # what else runs here would take the second one's time
    place = Place(device, dtype, time.perf_counter() + options.seconds, options.quick)
    if options.part == "try":
        return try_rows(place, options.size, options.window, options.rows)
    for row in PARTS[options.part](place):
        print(json.dumps({"part": options.part, **row}), flush=True)


if __name__ == "__main__":
    main()
