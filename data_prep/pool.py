"""The work items of a run on one or several processes: results in order, progress, a clean end."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, TypeVar

from data_prep.progress import Progress
from data_prep.settings import ShardSettings
from elemdist.errors import UserError
from elemdist.temporary import tmpdir_problem

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task, ShardSettings, Callable[[int], None]], Result]

KILLED = (
    "a process was killed at its work, most likely for want of memory: "
    "use fewer processes, or smaller shard_mb and item_mb"
)


class StoppedError(Exception):
    """Another process failed, so this one need not go on."""


class WorkerError(Exception):
    """The traceback of a bug in another process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


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
    resource_tracker.ensure_running()  # it would end without_interrupts() by its own start
    with without_interrupts():
        forkserver.ensure_running()
    pool = Pool(work, tasks, settings, progress)
    try:
        pool.start(context, processes)
        return pool.results()
    finally:
        pool.end()


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back for as long as it lasts. What is started in it never gets any, and prints
    nothing of its own: this process alone answers, and takes its processes with it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Pool:
    """Processes that get one task after the other through a pipe each.

    Nothing else is shared, so that nothing with a name, as a semaphore, stays where all are killed.
    """

    def __init__(
        self,
        work: Work[Task, Result],
        tasks: Sequence[Task],
        settings: ShardSettings,
        progress: Progress,
    ) -> None:
        self.work, self.tasks, self.settings, self.progress = work, tasks, settings, progress
        self.left = iter(range(len(tasks)))
        self.found: dict[int, Any] = {}
        self.done = 0
        self.workers: dict[Connection, ForkServerProcess] = {}

    def start(self, context: Any, processes: int) -> None:
        """Start the processes, and give each its first task."""
        for _ in range(processes):
            ours, theirs = context.Pipe()
            worker = context.Process(target=serve, args=(theirs, self.work, self.settings))
            worker.start()
            theirs.close()
            self.workers[ours] = worker
            self.give(ours)

    def give(self, pipe: Connection) -> None:
        """Give a process the next task, if there is one."""
        number = next(self.left, None)
        if number is not None:
            with suppress(BrokenPipeError):  # it is dead, which its pipe says when it is read
                pipe.send((number, self.tasks[number]))

    def results(self) -> list[Any]:
        """Return what the tasks give, in their order. Raises what one of them raised."""
        while len(self.found) < len(self.tasks):
            for pipe in wait(list(self.workers)):
                assert isinstance(pipe, Connection)
                try:
                    number, kind, value = pipe.recv()
                except (EOFError, ConnectionResetError):
                    raise UserError(KILLED) from None
                if kind == "error":
                    error, text = value
                    raise error from WorkerError(text)
                if kind == "result":
                    self.found[number] = value
                    self.give(pipe)
                else:
                    self.done += value
            self.progress.at(self.done)
        return [self.found[number] for number in range(len(self.tasks))]

    def end(self) -> None:
        """End the processes; one at work notices it at its next report."""
        for pipe in self.workers:
            pipe.close()
        for worker in self.workers.values():
            worker.join()


def serve(pipe: Connection, work: Work[Any, Any], settings: ShardSettings) -> None:
    """Be a process of a pool, until its pipe is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):  # the pipe is closed
        while True:
            number, task = pipe.recv()

            def report(more: int, number: int = number) -> None:
                if pipe.poll():  # nothing is sent while it works: it is closed
                    raise StoppedError
                pipe.send((number, "progress", more))

            try:
                answer = (number, "result", work(task, settings, report))
            except StoppedError:
                return
            except BaseException as error:
                answer = (number, "error", (sendable(error), traceback.format_exc()))
            pipe.send(answer)


def sendable(error: BaseException) -> BaseException:
    """Return an error as it can be sent: itself, or else a bare one with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # its class cannot be made again of its arguments
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
