"""The work items of a run on one or several processes: results in order, progress, a clean end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from data_prep.progress import Progress
from data_prep.settings import ShardSettings
from elemdist.errors import UserError
from elemdist.temporary import tmpdir_problem

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task, ShardSettings, Callable[[int], None]], Result]

POLL_S = 0.2


class StoppedError(Exception):
    """Another process failed, so this one need not go on."""


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    work: Work[Task, Result],
    tasks: Sequence[Task],
    settings: ShardSettings,
    progress: Progress,
) -> list[Result]:
    """work(task, settings, progress) for every task; the results in the order of the tasks.

    When it returns or raises, no process is at work any more.

    Raises:
        UserError: what a task raised, or a process that was killed.
    """
    processes = min(settings.processes or cores(), len(tasks))
    if processes == 1:
        return [work(task, settings, progress.add) for task in tasks]
    if (problem := tmpdir_problem()) is not None:
        raise UserError(f"{problem}: export TMPDIR=/tmp, or add --processes 1")
    # A plain fork would copy threads and locks of this process. The server is forked from instead:
    # it has loaded what takes long, the compiler and its functions, once for all processes.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.work", "data_prep.pack"])
    done, stop = context.Value("q", 0), context.Event()
    with ProcessPoolExecutor(processes, context, _start, (done, stop)) as pool:
        try:
            futures = [pool.submit(_run, work, task, settings) for task in tasks]
            waiting = set(futures)
            while waiting:
                finished, waiting = wait(waiting, POLL_S, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                progress.at(done.value)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise UserError(
                "a process was killed at its work, most likely for want of memory: "
                "use fewer processes, or smaller shard_mb and item_mb"
            ) from error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


_done: Any = None
_stop: Any = None


def _start(done: Any, stop: Any) -> None:
    """Prepares a process: the parent alone answers to Ctrl-C, and takes its processes with it."""
    global _done, _stop
    _done, _stop = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(work: Work[Task, Result], task: Task, settings: ShardSettings) -> Result:
    return work(task, settings, _report)


def _report(more: int) -> None:
    if _stop.is_set():
        raise StoppedError
    with _done.get_lock():
        _done.value += more
