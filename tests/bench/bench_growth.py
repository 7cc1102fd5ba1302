"""Memory and step time of a rank over thousands of steps: neither should grow.

    elemdist bench growth [--steps 5000] [--backbone bert] [--precision fp32] [--threads 2]
        [--remedies NAME ...] [--quick] [--json FILE]

Each remedy is a process of its own, `elemdist train` as users run it on documents of very
different lengths, so that nearly every step has new shapes. oneDNN keeps a compiled primitive per
shape; the remedies differ in how many of them. Anonymous memory and the time of a step are compared
between the window from step 500 to 1,000 and the last 500 steps.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from elemdist.cpu_primitives import FORMER, VARIABLE
from elemdist.errors import UserError
from tests.bench.rounds import Rates, parser, report

OURS, BEFORE = "elemdist", "oneDNN's 1,024"
# Remedy -> capacity of oneDNN's cache; None: what elemdist sets, "off": torch does without oneDNN.
REMEDIES: dict[str, str | None] = {
    BEFORE: "1024",
    OURS: None,
    "capacity 0": "0",
    "capacity 16": "16",
    "capacity 64": "64",
    "capacity 256": "256",
    "no oneDNN": "off",
}
MEMORY_GROWTH, TIME_GROWTH = 1.05, 1.03  # at most, from the first window to the last
WINDOW = 500  # steps; the first one begins after as many
N, V = 512, 12


def anonymous_mb() -> float:
    """Return the anonymous resident memory of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1000
    raise UserError("growth: this kernel does not report RssAnon in /proc/self/status")


def train_here(words: list[str], steps: int, capacity: str | None) -> dict[str, list[float]]:
    """Train in this process; return each step's seconds, those that all cores worked, and the
    anonymous memory after it in MB."""
    import torch

    from tests.bench.training import open_run

    if capacity == "off":
        torch.backends.mkldnn.set_flags(False)
    seconds, work, megabytes = [], [], []
    with open_run(*words) as run:
        run.session.begin_interval()
        coming = run.steps()
        for _ in range(steps):
            start, worked = time.perf_counter(), time.process_time()
            run.after_step(next(coming))
            seconds.append(time.perf_counter() - start)
            work.append(time.process_time() - worked)
            megabytes.append(anonymous_mb())
    return {"seconds": seconds, "work": work, "megabytes": megabytes}


def measure(remedy: str, words: list[str], chosen: argparse.Namespace) -> dict[str, list[float]]:
    """Train in a new process with one remedy; return what :func:`train_here` does."""
    capacity = REMEDIES[remedy]
    environment = {
        name: value for name, value in os.environ.items() if name not in (VARIABLE, FORMER)
    }
    if capacity not in (None, "off"):
        environment[VARIABLE] = str(capacity)
    if chosen.threads:
        environment["OMP_NUM_THREADS"] = str(chosen.threads)
    task = json.dumps([words, chosen.steps, capacity])
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.bench_growth", "--worker", task],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).resolve().parents[2],
    )
    if done.returncode:
        raise UserError(f"growth: training with {remedy} failed with {done.returncode}")
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def growth(values: list[float], window: int) -> float:
    """Return the median of the last `window` values over that of the second window."""
    return statistics.median(values[-window:]) / statistics.median(values[window : 2 * window])


def varied_shards(folder: Path, megabytes: float) -> Path:
    """Shards of made-up prose with a document a sample, of 16 to `N` rows."""
    import numpy as np

    from data_prep.shard import ShardSettings
    from data_prep.shard import run as shard
    from elemdist.commandline import parse
    from tests.bench.rounds import made_text

    made_text(folder / "text.txt", megabytes)
    words = (folder / "text.txt").read_text().split()
    lengths = np.random.default_rng(0).integers(16, N - 1, len(words) // 16)
    with (folder / "lines.txt").open("w") as file:
        first = 0
        for length in lengths:
            file.write(" ".join(words[first : first + length]) + "\n")
            first += length
            if first >= len(words):
                break
    out = folder / "shards"
    options = ["--out", str(out), "--n", str(N), "--v", str(V), "--processes", "1"]
    options += ["--input.document", "line", "--quiet"]
    shard(parse(ShardSettings, [str(folder / "lines.txt"), *options], "elemdist shard", "inputs"))
    return out


def training_words(shards: Path, folder: Path, chosen: argparse.Namespace) -> list[str]:
    """Return the arguments of `elemdist train`."""
    settings: dict[str, Any] = {
        "run-dir": folder,
        "data.train": shards,
        "model.layers": chosen.layers,
        "model.width": chosen.width,
        "model.backbone": chosen.backbone,
        "objective": "clm" if chosen.backbone == "decoder" else "mlm",
        "batch.global-samples": chosen.samples,
        "batch.micro-samples": chosen.samples,
        "precision": chosen.precision,
        "eval-every": 0,
        "checkpoint-every": 0,
        "device": "cpu",
        "steps": 1_000_000,
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def tables(found: dict[str, dict[str, list[float]]], title: str, chosen: Any) -> list[Rates]:
    """Return growth of memory and of step time per remedy, and what a step costs in the end."""
    window = min(WINDOW, chosen.steps // 3)
    aimed = not chosen.quick and OURS in found
    peers = [(OURS, BEFORE, None)] if {OURS, BEFORE} <= set(found) else []
    made = []
    for key, label, unit, bound in (
        ("megabytes", "memory", "MB", MEMORY_GROWTH),
        ("seconds", "time", "ms", TIME_GROWTH),
    ):
        scale = 1000 if key == "seconds" else 1
        grown, last = {}, {}
        for name, one in found.items():
            grown[name] = [growth(one[key], window)]
            last[name] = [scale * statistics.median(one[key][-window:])]
        bounds = [(OURS, bound)] if aimed else []
        windows = f"of the last {window} steps"
        head = f"{title}: {label} {windows} against that of steps {window} to {2 * window}"
        curve = {name: one[key][:: max(1, chosen.steps // 100)] for name, one in found.items()}
        made.append(Rates(head, "x", [], bounds, f"{label}, growth", True, curve, grown))
        made.append(
            Rates(f"{title}: {label} {windows}", unit, list(peers), [], label, True, None, last)
        )
    return made


def main() -> None:
    options = parser(__doc__, 1)
    options.add_argument("--steps", type=int, default=5000, help="default 5000")
    options.add_argument("--backbone", default="bert", choices=["bert", "decoder"])
    options.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options.add_argument("--layers", type=int, default=2, help="default 2")
    options.add_argument("--width", type=int, default=192, help="default 192")
    options.add_argument("--samples", type=int, default=2, help="of a step; default 2")
    options.add_argument("--threads", type=int, help="of torch; default: all cores")
    options.add_argument(
        "--remedies", nargs="+", choices=REMEDIES, default=[BEFORE, OURS], metavar="NAME",
        help=f"some of {', '.join(REMEDIES)}; default: {BEFORE}, {OURS}",
    )  # fmt: skip
    options.add_argument("--worker", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.worker:
        print(json.dumps(train_here(*json.loads(chosen.worker))))
        return
    if chosen.quick:
        chosen.steps, chosen.layers, chosen.width = 30, 1, 96
    title = (
        f"{chosen.backbone}, {chosen.layers} layers of width {chosen.width}, {chosen.precision},"
        f" {chosen.samples} documents a step, {chosen.steps} steps"
    )
    with tempfile.TemporaryDirectory() as folder:
        shards = varied_shards(Path(folder), 0.2 if chosen.quick else 8)
        found = {}
        for remedy in chosen.remedies:
            place = Path(folder, f"run{len(found)}")
            found[remedy] = measure(remedy, training_words(shards, place, chosen), chosen)
            print(f"{remedy}: done", file=sys.stderr, flush=True)
    report(tables(found, title, chosen), chosen.json)


if __name__ == "__main__":
    main()
