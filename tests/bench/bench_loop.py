"""The training loop: ours against the bare DeepSpeed step on the same engine and batches.

    elemdist bench loop [--rounds 7] [--steps 20] [--layers 4] [--width 384] [--zero 1]
        [--threads 2] [--quick] [--json FILE]

Ours is `elemdist train` as users run it: it gathers and masks every batch, agrees with the other
ranks, times its parts, counts what is sent, watches for stalls, judges every gradient and writes
metrics. The bare step takes batches that were masked before, and only calls forward, backward and
step. One process; both take turns on one engine.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import itertools
import tempfile
from pathlib import Path

from elemdist.train import Run
from tests.bench.rounds import Peer, Rates, parser, report
from tests.bench.training import made_shards, open_run, read_options

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
    chosen = read_options(parser(__doc__, 7), steps=20, layers=4, width=384, zero=1)
    steps, rounds = (2, 2) if chosen.quick else (chosen.steps, chosen.rounds)
    with tempfile.TemporaryDirectory() as folder:
        shards = made_shards(Path(folder), 0.2 if chosen.quick else 8, N, V)
        words = {
            "run-dir": f"{folder}/run",
            "data.train": shards,
            "model.layers": chosen.layers,
            "model.width": chosen.width,
            "batch.global-samples": GLOBAL_SAMPLES,
            "batch.micro-samples": MICRO_SAMPLES,
            "zero.stage": chosen.zero,
            "eval-every": 0,
            "checkpoint-every": 0,
            "steps": 1_000_000,
        }
        with open_run(*(f"--{name}={value}" for name, value in words.items())) as run:
            table = Rates(
                f"{chosen.layers} layers of width {chosen.width}, {GLOBAL_SAMPLES} samples of {N}"
                f" rows a step in {run.session.plan.passes} passes, ZeRO {chosen.zero},"
                f" {run.ranks.device.type}",
                "steps/s",
                [(OURS, BARE, None if chosen.quick else LEAST)],
            )
            peers = {OURS: our_steps(run, steps), BARE: bare_steps(run, steps)}
            table.measure(peers, rounds)
        report([table], chosen.json)


if __name__ == "__main__":
    main()
