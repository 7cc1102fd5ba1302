"""What the benchmarks of whole runs share: made shards, and a run of this one process on them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.shard import ShardSettings
from data_prep.shard import run as shard
from elemdist.commandline import parse
from elemdist.communication import Meter
from elemdist.config import TrainSettings
from elemdist.engine import join_ranks
from elemdist.start_up import Session
from elemdist.stop import StopRequest
from elemdist.train import Run
from elemdist.watchdog import Watchdog
from tests.bench.rounds import made_text


def read_options(options: argparse.ArgumentParser, **defaults: int) -> argparse.Namespace:
    """What was chosen, with those numbers of a run that have defaults; with --quick a tiny model.
    torch takes --threads when the run is opened."""
    for name, default in defaults.items():
        options.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options.add_argument("--threads", type=int, help="of torch; default: all cores")
    chosen = options.parse_args()
    if chosen.threads:
        os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    if chosen.quick:
        chosen.layers, chosen.width = 1, 96
    return chosen


def made_shards(folder: Path, megabytes: float, n: int, v: int) -> Path:
    """Packed shards of made-up prose."""
    made_text(folder / "text.txt", megabytes)
    out = folder / "shards"
    words = ["--out", str(out), "--n", str(n), "--v", str(v), "--packing", "packed"]
    words += ["--processes", "1", "--input.document", "line"]
    shard(parse(ShardSettings, [str(folder / "text.txt"), *words], "elemdist shard", "inputs"))
    return out


@contextmanager
def open_run(*words: str) -> Iterator[Run]:
    """A run with the arguments of `elemdist train`, on this process alone, ready to train."""
    settings = parse(TrainSettings, list(words), "elemdist train")
    settings.check()
    ranks = join_ranks(settings)
    watchdog = Watchdog(settings.run_dir or "", ranks.rank, settings.guard.stall_s)
    with StopRequest() as stop, watchdog, Meter(ranks.device) as meter:
        yield Run(settings, ranks, Session(settings, ranks, stop, watchdog, meter))
