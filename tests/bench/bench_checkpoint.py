"""How long a checkpoint holds up training: ours at once, in the background, and DeepSpeed's own.

    elemdist bench checkpoint [--rounds 5] [--layers 12] [--width 768] [--zero 1] [--threads 2]
        [--quick] [--json FILE]

The state is that of a whole model and its AdamW, fp32, written to a temporary folder of this
machine. Ours hashes every file and has the disk confirm it; DeepSpeed's save_checkpoint does
neither. In the background, training is held up for the copy only; what the writing itself takes is
told beside it, as the time until it is done when nothing else runs.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import shutil
import tempfile
import time
from pathlib import Path

from elemdist.checkpoint_writer import Writer
from elemdist.train import Run
from tests.bench.rounds import Rates, parser, report
from tests.bench.training import made_shards, open_run, read_options

AT_ONCE, BEHIND, DONE = "ours, at once", "ours, in the background", "  until it is written"
DEEPSPEED = "DeepSpeed's save_checkpoint"
N, V = 64, 12


def measured(run: Run, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; all in turn."""
    session, found = run.session, {name: [] for name in (AT_ONCE, BEHIND, DONE, DEEPSPEED)}
    writers = {
        name: Writer(folder / name, run.ranks, 1, 0, background=name == BEHIND)
        for name in (AT_ONCE, BEHIND)
    }
    for number in range(rounds + 1):  # the first to warm up
        took = {}
        for name, writer in writers.items():
            start = time.perf_counter()
            problem = writer.save(session.engine, number, {}, session.facts, {})
            took[name] = time.perf_counter() - start
            problem = writer.finish() or problem
            assert problem is None, problem
            if name == BEHIND:
                took[DONE] = time.perf_counter() - start
        start = time.perf_counter()
        session.engine.save_checkpoint(str(folder / "deepspeed"), tag="one")
        took[DEEPSPEED] = time.perf_counter() - start
        shutil.rmtree(folder / "deepspeed")
        for name in found if number else ():
            found[name].append(took[name])
    return found


def main() -> None:
    chosen = read_options(parser(__doc__, 5), layers=12, width=768, zero=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = {
            "run-dir": folder / "run",
            "data.train": made_shards(folder, 0.2, N, V),
            "model.layers": chosen.layers,
            "model.width": chosen.width,
            "batch.global-samples": 2,
            "zero.stage": chosen.zero,
        }
        with open_run(*(f"--{key}={value}" for key, value in words.items())) as run:
            run.last = 1
            next(run.steps())  # so that there are moments
            table = Rates(
                f"a checkpoint of {run.session.parameters:,} parameters, ZeRO {chosen.zero}",
                "seconds",
                [(BEHIND, AT_ONCE, None), (AT_ONCE, DEEPSPEED, None), (BEHIND, DEEPSPEED, None)],
                less=True,
                rates=measured(run, folder, 2 if chosen.quick else chosen.rounds),
            )
    report([table], chosen.json)


if __name__ == "__main__":
    main()
