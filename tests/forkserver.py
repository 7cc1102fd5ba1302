"""The process that forked ranks of all tests come from: it has imported what they need, once.

Python has one such process for everything that forks in this way. It takes what it is to import
when it starts, and here and nowhere else that is said for ranks: one that data_prep started in this
process has imported little, so that every rank would import torch and DeepSpeed for itself.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from elemdist.ports import free_port
from launcher.local import rank_environment

CONTEXT = multiprocessing.get_context("forkserver")
IMPORTS = [
    "tests.forked_rank", "tests.checkpoint_ranks", "tests.sequence_ranks", "tests.freeze",
]  # fmt: skip


@cache
def begin() -> None:
    """Ends the process that others have started; the next rank starts ours."""
    forkserver._forkserver._stop()
    CONTEXT.set_forkserver_preload(IMPORTS)


def rank_process(target: Callable[..., Any], *args: Any) -> ForkServerProcess:
    """A process that will call target(*args), not started yet."""
    begin()
    return CONTEXT.Process(target=target, args=args)


def run_ranks(
    function: Callable[..., None], ranks: int, folder: Path, *arguments: Any, timeout_s: float = 300
) -> None:
    """Calls function(*arguments) in the ranks of one machine, to their ends; rank R prints to
    FOLDER/rank-R.txt. A rank that fails, or that does not end in time, fails the test."""
    port, logs = free_port(), [folder / f"rank-{rank}.txt" for rank in range(ranks)]
    processes = [
        rank_process(_rank, function, rank_environment(rank, ranks, port), str(log), arguments)
        for rank, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    said = "\n".join(log.read_text()[-3000:] for log in logs if log.exists())
    assert not late, f"not within {timeout_s} s:\n{said}"
    assert [process.exitcode for process in processes] == [0] * ranks, said


def _rank(
    function: Callable[..., None], environment: dict[str, str], log: str, arguments: tuple[Any, ...]
) -> None:
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    function(*arguments)
