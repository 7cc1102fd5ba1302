"""Seconds until the command answers, and until `elemdist train` has made its first step.

    elemdist bench startup [--rounds 5] [--quick] [--json FILE]

`elemdist --help` against a Python that imports nothing; `elemdist train configs/tiny.yaml`, from
the command to the line that says what is trained (data, model, engine and run folder are ready) and
to that of its first step (64 samples of 512 materials, 6,144 bytes each), against a Python that
imports torch and DeepSpeed, which every training with them has to.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.rounds import Rates, parser, report
from tests.bench.training import made_shards

ROOT = Path(__file__).resolve().parents[2]
HELP, BARE = "elemdist --help", "python -c pass"
READY, STEP = "ready to train", "first step done"
LIBRARIES = "import torch, deepspeed"
MOST_HELP_S, MOST_STEP_S = 0.5, 15.0


def seconds(*words: str) -> float:
    """Of a command from its start to its end."""
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - start


def training(shards: Path, folder: Path, number: int) -> tuple[float, float]:
    """Seconds until a run is ready, and until its first step is done."""
    words = [
        "configs/tiny.yaml",
        "--data.train",
        str(shards),
        "--device",
        "cpu",
        "--log-every",
        "1",
    ]
    words += ["--run-dir", str(folder / f"run-{number}"), "--stop-step", "1"]
    start, seen = time.perf_counter(), {}
    command = [sys.executable, "-u", "-m", "elemdist", "train", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            for mark in (" parameters (", "step 1/"):
                if mark in line:
                    seen.setdefault(mark, time.perf_counter() - start)
    ready, step = seen.values()
    return ready, step


def main() -> None:
    chosen = parser(__doc__, 5).parse_args()
    rounds = 2 if chosen.quick else chosen.rounds
    answers = Rates(
        "the command answers", "s", [(HELP, BARE, None)], [(HELP, MOST_HELP_S)], "--help", less=True
    )
    answers.rates = {HELP: [], BARE: []}
    starts = Rates(
        "elemdist train, configs/tiny.yaml, one process",
        "s",
        [(READY, LIBRARIES, None), (STEP, LIBRARIES, None)],
        [(STEP, MOST_STEP_S)],
        "train",
        less=True,
    )
    starts.rates = {READY: [], STEP: [], LIBRARIES: []}
    with tempfile.TemporaryDirectory() as folder:
        shards = made_shards(Path(folder), 0.5 if chosen.quick else 2, 512, 12)
        for number in range(rounds + 1):
            took = {
                HELP: seconds(sys.executable, "-m", "elemdist", "--help"),
                BARE: seconds(sys.executable, "-c", "pass"),
                LIBRARIES: seconds(sys.executable, "-c", LIBRARIES),
            }
            took[READY], took[STEP] = training(shards, Path(folder), number)
            for table in (answers, starts) if number else ():  # the first round warms up
                for name, found in table.rates.items():
                    found.append(took[name])
    report([answers, starts], chosen.json)


if __name__ == "__main__":
    main()
