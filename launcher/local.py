"""The ranks of one machine: start them, pass a stop request on, and never leave one behind.

``elemdist train --ranks 2`` stands on this; torchrun and deepspeed do the same work their way.
Each rank has a session of its own, so that Ctrl-C reaches the launcher alone, which makes one
request of it; a rank whose launcher is gone gets SIGTERM from the kernel, and its watchdog ends it
where that does not help.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from elemdist.errors import (
    EXIT_DIVERGED,
    EXIT_INTERRUPTED,
    EXIT_LOST,
    EXIT_NOT_SAVED,
    EXIT_STALLED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
)
from elemdist.ports import free_port
from elemdist.rank_variables import without_ranks
from elemdist.stop import die_with_parent
from elemdist.watchdog import LAUNCHER

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
STOP_GRACE_S = 600.0  # from a stop request, for the ranks to save, until they are killed
AGAIN_S = 1.0  # signals closer together are one request: some senders signal twice
SETTLE_S = 3.0  # after a rank failed, for the others to end by themselves and say why
GRACE_S = 10.0  # from asking them to end until they are killed
# The rank has said all there is to say.
SPOKEN = (EXIT_USER_ERROR, EXIT_DIVERGED, EXIT_NOT_SAVED, EXIT_INTERRUPTED)

Process = subprocess.Popen[bytes]


def all_gpus() -> int:
    """NVIDIA GPUs of this machine."""
    return sum(re.fullmatch(r"nvidia\d+", name) is not None for name in os.listdir("/dev"))


def count_gpus() -> int:
    """NVIDIA GPUs that a process started here would see, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return all_gpus()
    # CUDA takes those before the first that is none, as -1.
    named = itertools.takewhile(lambda word: re.match(r"\w", word.strip()), visible.split(","))
    return min(all_gpus(), len(list(named)))


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torch.distributed reads, and the cores shared out fairly; nothing of what a launcher or
    a job that this runs in has for ranks of its own."""
    environment = without_ranks(os.environ)
    environment.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        **{LAUNCHER: str(os.getpid())},
    )
    cores = len(os.sched_getaffinity(0))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    return environment


def start_rank(words: Sequence[str], environment: dict[str, str]) -> Process:
    """Starts a rank in a session of its own, which SIGTERM reaches when this process is gone."""
    return subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )


def kill(process: Process) -> None:
    """Ends a rank and what it has started, without asking."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_stopped(process: Process) -> bool:
    """Whether a SIGSTOP holds it, so that it can neither end nor say anything."""
    with contextlib.suppress(OSError):
        return "\nState:\tT" in Path(f"/proc/{process.pid}/status").read_text()
    return False


def end(processes: Sequence[Process], grace_s: float) -> None:
    """Asks every process that still runs to end, and kills what has not after a grace."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + grace_s
    for process in running:
        if not is_stopped(process):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        kill(process)


def say(line: str) -> None:
    """A line of the launcher's, on standard error."""
    print(f"elemdist train: {line}", file=sys.stderr, flush=True)


class Job:
    """The ranks of one start.

    Attributes:
        processes: of the ranks, in order.
        received: signals that are not passed on yet.
        asked: the signal of the stop request, None without one.
        forced: they were asked a second time.
    """

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self.received: list[int] = []
        self.asked: int | None = None
        self.asked_at = math.inf
        self.forced = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: keeps the signal for the loop."""
        self.received.append(number)

    def pass_on(self) -> None:
        """Makes a stop request of what was received, or the end at once of a second one.

        The ranks get SIGTERM, whatever came: without a handler yet, it ends them quietly."""
        if not self.received:
            return
        number, now = self.received[0], time.monotonic()
        self.received.clear()
        if self.asked is not None:
            self.forced = now > self.asked_at + AGAIN_S
            return
        self.asked, self.asked_at = number, now
        name = signal.Signals(number).name
        say(f"{name}: the ranks are asked to save and end; once more ends them at once")
        for process in self.processes:
            if process.poll() is None:
                process.terminate()

    def wait(self) -> list[int | None]:
        """Until all have ended, or those that have not must be made to; the codes by rank."""
        deadline = math.inf
        while True:
            self.pass_on()
            codes = [process.poll() for process in self.processes]
            if None not in codes or self.forced or time.monotonic() > deadline:
                return codes
            grace_s = math.inf
            if any(map(is_failure, codes)):
                grace_s = SETTLE_S
            elif self.asked is not None or EXIT_STOPPED in codes:
                grace_s = STOP_GRACE_S
            deadline = min(deadline, time.monotonic() + grace_s)
            time.sleep(0.05)

    def finish(self) -> int:
        """Waits, ends what is left and says why; the exit code of the whole."""
        codes = self.wait()
        left = [rank for rank, code in enumerate(codes) if code is None]
        stopped = [rank for rank in left if is_stopped(self.processes[rank])]
        failed = any(map(is_failure, codes))
        end([self.processes[rank] for rank in left], GRACE_S if failed and not self.forced else 0)
        for rank, process in enumerate(self.processes):
            # Of those that were made to end, these had a reason of their own.
            if codes[rank] is None and process.returncode in (EXIT_LOST, EXIT_STALLED):
                codes[rank] = process.returncode
            if is_failure(codes[rank]):
                kill(process)  # what it has left behind
        if self.asked is not None and (self.forced or ended_by_request(codes)):
            return 128 + self.asked
        if left and not failed:
            say(f"{named(left)} did not save within {STOP_GRACE_S:.0f} s and got killed")
            return EXIT_NOT_SAVED
        return explain(codes, stopped)


def is_failure(code: int | None) -> bool:
    """Whether a rank ended in another way than done or stopped on request; None: it still runs."""
    return code not in (None, 0, EXIT_STOPPED)


def ended_by_request(codes: Sequence[int | None]) -> bool:
    """Whether SIGTERM came before a rank had a handler for it, and nothing worse happened."""
    harmless = (None, 0, EXIT_STOPPED, EXIT_LOST, -signal.SIGTERM)
    return -signal.SIGTERM in codes and all(code in harmless for code in codes)


def named(ranks: Sequence[int]) -> str:
    """``rank 1``, or ``ranks 0, 1``."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def explain(codes: Sequence[int | None], stopped: Sequence[int]) -> int:
    """Says why the ranks ended, by the first cause, not by what followed from it; the exit code.

    `codes` by rank, None where the launcher ended it; `stopped`: those that a SIGSTOP held."""
    again = "run the same command with --resume"
    by_code = {
        code: [rank for rank, other in enumerate(codes) if other == code]
        for code in codes
        if code is not None and is_failure(code)
    }
    silent = [rank for rank, code in enumerate(codes) if code is None]
    ended = f"; {named(silent)} could not end and got killed" if silent else ""
    if stopped:
        ended = f"; {named(stopped)} stood still, held by SIGSTOP, and got killed"
    for code, ranks in by_code.items():
        if code < 0:
            name = signal.Signals(-code).name
            verb = "were" if len(ranks) > 1 else "was"
            say(
                f"{named(ranks)} {verb} killed by signal {-code} ({name}); the others were ended;"
                f" {again}"
            )
            return EXIT_LOST
    for code, ranks in by_code.items():
        if code not in (EXIT_LOST, EXIT_STALLED):
            if code not in SPOKEN:
                say(
                    f"{named(ranks)} ended with code {code}; the others were ended too. Its own"
                    " message stands above."
                )
            return code
    if EXIT_STALLED in by_code:
        say(f"{named(by_code[EXIT_STALLED])} made no progress, see above{ended}; {again}")
        return EXIT_STALLED
    if EXIT_LOST in by_code:
        say(f"{named(by_code[EXIT_LOST])} lost contact with another rank{ended}; {again}")
        return EXIT_LOST
    return EXIT_STOPPED if EXIT_STOPPED in codes else 0


def start_ranks(script: Path, arguments: Sequence[str], ranks: int) -> int:
    """Runs `script` once per rank and waits; the exit code, see elemdist/errors.py.

    The first SIGTERM, SIGINT, SIGHUP or SIGUSR1 is a stop request to all ranks, a second one ends
    them at once. When one rank fails the others are ended.
    """
    job, port = Job(), free_port()
    # What nohup or a shell has told us to ignore stays ignored.
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    old = {number: signal.signal(number, job.note) for number in heard}
    words = [sys.executable, "-u", str(script), *arguments]
    try:
        for rank in range(ranks):
            job.processes.append(start_rank(words, rank_environment(rank, ranks, port)))
        return job.finish()
    finally:
        for process in job.processes:
            if process.poll() is None:
                kill(process)
        for number, handler in old.items():
            signal.signal(number, handler)
