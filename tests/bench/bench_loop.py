"""The training loop: ours against the bare DeepSpeed step on the same engine and batches.

    elemdist bench loop [--rounds 7] [--steps 20] [--layers 4] [--width 384] [--zero 1]
        [--threads 2] [--quick] [--json FILE]

Ours is `elemdist train` as users run it: it gathers and masks every batch, agrees with the other
ranks, times its parts, counts what is sent, watches for stalls, judges every gradient and writes
metrics. The bare step takes batches that were masked before, and only calls forward, backward and
step. One process; both take turns on one engine.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started by path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import itertools
import os
import tempfile

from elemdist.train import Run
from tests.bench.rounds import Peer, Rates, parser, report
from tests.bench.training import made_shards, open_run

OURS, BARE = "elemdist's loop", "bare DeepSpeed"
LEAST = 0.97  # of the bare speed
N, V = 256, 12
GLOBAL_SAMPLES, MICRO_SAMPLES = 16, 8


def bare_steps(run: Run, steps: int) -> Peer:
    """So many steps on batches that are ready, again and again."""
    engine, plan, made = run.session.engine, run.session.plan, []
    loader = run.loader()
    for number in range(8):
        passes = run.passes(next(loader), number)
        made.append((passes, sum(one.text_bytes for one in passes)))
    loader.close()
    batches = itertools.cycle(made)

    def peer() -> float:
        for _ in range(steps):
            passes, text_bytes = next(batches)
            for one in passes:
                nats_M, _ = engine(*one.inputs)
                engine.backward(nats_M.sum() / text_bytes * plan.passes)
                engine.step()
        return steps

    return peer


def our_steps(run: Run, steps: int) -> Peer:
    """So many steps of the run."""
    coming = run.steps()

    def peer() -> float:
        for _ in range(steps):
            run.after_step(next(coming))
        return steps

    return peer


def main() -> None:
    options = parser(__doc__, 7)
    for name, default in (("steps", 20), ("layers", 4), ("width", 384), ("zero", 1)):
        options.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options.add_argument("--threads", type=int, help="of torch; default: all cores")
    chosen = options.parse_args()
    if chosen.threads:
        os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    steps, rounds = (2, 2) if chosen.quick else (chosen.steps, chosen.rounds)
    layers, width = (1, 96) if chosen.quick else (chosen.layers, chosen.width)
    with tempfile.TemporaryDirectory() as folder:
        shards = made_shards(Path(folder), 0.2 if chosen.quick else 8, N, V)
        words = {
            "run-dir": f"{folder}/run",
            "data.train": shards,
            "model.layers": layers,
            "model.width": width,
            "batch.global-samples": GLOBAL_SAMPLES,
            "batch.micro-samples": MICRO_SAMPLES,
            "zero.stage": chosen.zero,
            "eval-every": 0,
            "checkpoint-every": 0,
            "steps": 1_000_000,
        }
        with open_run(*(f"--{name}={value}" for name, value in words.items())) as run:
            table = Rates(
                f"{layers} layers of width {width}, {GLOBAL_SAMPLES} samples of {N} rows a step in"
                f" {run.session.plan.passes} passes, ZeRO {chosen.zero}, {run.ranks.device.type}",
                "steps/s",
                [BARE],
                [] if chosen.quick else [(OURS, BARE, LEAST)],
            )
            peers = {OURS: our_steps(run, steps), BARE: bare_steps(run, steps)}
            table.measure(peers, rounds)
        report([table], chosen.json)


if __name__ == "__main__":
    main()
