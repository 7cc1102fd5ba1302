"""Ranks of a small job over gloo with something wrong in it: for the tests of what ends a run.

    python tests/faulty_ranks.py FOLDER FAULT VICTIM     with the environment of the launcher

Every rank has the handlers and the watchdog of training and sums a number with the others again and
again. FOLDER gets pid-RANK when all have met, and saved-RANK from a rank that stopped on request.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import torch.distributed as dist

from elemdist import watchdog
from elemdist.errors import EXIT_LOST, EXIT_STOPPED
from elemdist.stop import StopRequest, lost_contact, write_end
from elemdist.watchdog import Watchdog

STALL_S = float(os.environ.get("STALL_S", "5"))


def do_harm(fault: str) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "hang":
        time.sleep(600)
    if fault == "hold":  # the lock of the interpreter, too
        ctypes.PyDLL(None).sleep(600)
    if fault == "raise":
        raise ValueError("a bug of this rank")
    if fault == "usr1":
        os.kill(os.getpid(), signal.SIGUSR1)


def work(folder: Path, fault: str, victim: int, request: StopRequest, dog: Watchdog) -> int:
    """Sums until a stop request or the fault; the exit code."""
    rank, numbers = dist.get_rank(), torch.zeros(1000)
    for step in range(1_000_000):
        dist.all_reduce(numbers)
        dog.beat(f"step {step}")
        if step == 20:
            (folder / f"pid-{rank}").write_text(str(os.getpid()))
            if rank == victim:
                do_harm(fault)
        asked = torch.tensor(float(request.reason is not None))
        dist.all_reduce(asked)
        if asked:
            with dog.paused("saving"):
                time.sleep(600 if (fault, victim) == ("slow", rank) else 0.3)
            (folder / f"saved-{rank}").write_text(str(request.reason))
            return EXIT_STOPPED
        time.sleep(0.005)
    return 0


def main(folder: Path, fault: str, victim: int) -> int:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    watchdog.SETTLE_S, watchdog.ORPHAN_S = 1.0, 2.0

    def note(line: str, code: int) -> None:
        if rank == 0:
            write_end(folder, "failed", 20, line, code)

    with StopRequest() as request, Watchdog(folder, rank, STALL_S, note) as dog:
        try:
            return work(folder, fault, victim, request, dog)
        except RuntimeError as error:
            if not lost_contact(error):
                raise
            print(f"rank {rank}: lost contact", file=sys.stderr, flush=True)
            return EXIT_LOST


def collectives(numbers: torch.Tensor) -> dict[str, Callable[[], object]]:
    ranks = dist.get_world_size()
    half = numbers[: len(numbers) // ranks].clone()
    return {
        "all_reduce": lambda: dist.all_reduce(numbers),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(half, numbers),
        "broadcast": lambda: dist.broadcast(numbers, 0),
        "barrier": dist.barrier,
        "objects": lambda: dist.all_gather_object([None] * ranks, 1),
    }


def lose(rank: int, port: str, operation: str, victim: int, number: int, timeout_s: float) -> None:
    """Two ranks communicate until one gets a signal; the other one exits with EXIT_LOST if what it
    then sees is a lost contact."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
    operate = collectives(torch.zeros(1 << 12))[operation]
    try:
        for step in range(1_000_000):
            operate()
            if (rank, step) == (victim, 5):
                os.kill(os.getpid(), number)
    except Exception as error:
        os._exit(EXIT_LOST if lost_contact(error) else 1)


if __name__ == "__main__":
    try:
        code = main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    except Exception:
        # As in training, not by an orderly end, in which gloo's threads can abort the process.
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)
