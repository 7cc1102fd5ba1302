"""A rank of a small job over gloo with something wrong in it: for tests/test_launcher.py,
test_stop.py and test_watchdog.py. Started by the launcher, or with its environment.

    python tests/faulty_ranks.py FOLDER FAULT VICTIM

Every rank has the handlers and the watchdog of training and sums a number with the others again and
again. FOLDER gets pid-RANK when all have met, and saved-RANK from a rank that stopped on request.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
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

STALL_S = 3.0


def collectives(numbers: torch.Tensor) -> dict[str, Callable[[], object]]:
    half = numbers[: len(numbers) // dist.get_world_size()].clone()
    return {
        "all_reduce": lambda: dist.all_reduce(numbers),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(half, numbers),
        "broadcast": lambda: dist.broadcast(numbers, 0),
        "barrier": dist.barrier,
        "objects": lambda: dist.all_gather_object([None] * dist.get_world_size(), 1),
    }


def do_harm(fault: str) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "hang":
        time.sleep(600)
    if fault == "hold":  # the interpreter's lock, too
        ctypes.PyDLL(None).sleep(600)
    if fault == "raise":
        raise ValueError("a bug of this rank")
    if fault == "usr1":
        os.kill(os.getpid(), signal.SIGUSR1)


def work(folder: Path, fault: str, victim: int, request: StopRequest, dog: Watchdog) -> int:
    """Sums until a stop request or the fault; the exit code."""
    rank, operation = dist.get_rank(), "all_reduce"
    if fault in collectives(torch.zeros(2)):
        operation, fault = fault, "kill"
    operate = collectives(torch.zeros(1 << 12))[operation]
    for step in range(1_000_000):
        operate()
        dog.beat(f"step {step}")
        if step == 20:
            (folder / f"pid-{rank}").write_text(str(os.getpid()))
            if rank == victim:
                do_harm(fault)
        asked = torch.tensor(float(request.reason is not None))
        dist.all_reduce(asked)
        if asked:
            if fault != "slow" or rank != victim:
                time.sleep(0.5 if fault == "saves" else 0)
            else:
                time.sleep(600)
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

    stall_s = 0.0 if fault == "unwatched" else STALL_S
    fault = "freeze" if fault == "unwatched" else fault
    with StopRequest() as request, Watchdog(folder, rank, stall_s, note) as dog:
        try:
            return work(folder, fault, victim, request, dog)
        except RuntimeError as error:
            if not lost_contact(error):
                raise
            print(f"rank {rank}: lost contact", file=sys.stderr, flush=True)
            return EXIT_LOST


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    sys.stderr.flush()
    os._exit(code)
