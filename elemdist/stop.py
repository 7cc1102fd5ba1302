"""How a run ends before its last step: on request, by a lost rank, and what the run folder says.

RUN/end.json    state (running, done, stopped or failed), step, reason, exit code, attempt
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

from elemdist.artefacts import optional_json
from elemdist.atomic import write_atomically
from elemdist.attempts import Attempt
from elemdist.compile_check import compile_failure
from elemdist.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_LOST,
    EXIT_USER_ERROR,
    AgreedError,
    EarlyEnd,
    UserError,
)
from elemdist.json_text import json_text
from elemdist.json_types import Step
from elemdist.os_errors import is_of_the_machine, line_of

State = Literal["running", "done", "stopped", "failed"]
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGQUIT)
PR_SET_PDEATHSIG = 1  # of prctl, see its manual


class StopRequest:
    """A stop asked for by a signal or by the attempt's stop file, as a flag for the loop; as a
    context, in the main thread.

    SIGTERM, SIGUSR1 and the first SIGINT only set the flag; the second SIGINT, or a SIGQUIT, raises
    KeyboardInterrupt at once. The handlers that were there before come back at the end.

    Attributes:
        reason: why to stop, None as long as nobody has asked.
        attempt: whose folder look() looks into; None: into none.
        superseded: another attempt has begun.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.attempt: Attempt | None = None
        self.superseded = False
        self._interrupted = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            # None: a handler of C's, which Python could not put back.
            if signal.getsignal(number) is not None:
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._old:
            signal.signal(*self._old.popitem())

    def look(self) -> None:
        """Looks, at most every half second, for a stop file and for another attempt."""
        if self.attempt is not None:
            asked, superseded = self.attempt.looked_at()
            self.reason = self.reason or asked
            self.superseded = self.superseded or superseded

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGQUIT or (number == signal.SIGINT and self._interrupted):
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or number == signal.SIGINT
        self.reason = self.reason or signal.Signals(number).name


def write_end(
    run_dir: str | Path, state: State, step: int, reason: str = "", code: int = 0, attempt: int = 0
) -> None:
    """Says in the run folder how the run stands, or ended, after `step` steps, with which exit code
    and in which attempt; rank 0 calls it. "running" at the start, so that a run that could not say
    more shows."""
    found = {"state": state, "step": step, "reason": reason, "code": code, "attempt": attempt}
    write_atomically(Path(run_dir) / "end.json", json_text(found) + "\n")


@dataclass
class EndFacts:
    """end.json"""

    state: State
    step: Step
    reason: str
    code: int
    attempt: Step = 0


def read_end(run_dir: str | Path) -> dict[str, Any] | None:
    """Return what write_end wrote: state, step, reason, code, attempt. None where there is none, or
    none that can be used, which a line on standard error says."""
    found = optional_json(Path(run_dir) / "end.json", EndFacts)
    return found and {"attempt": 0} | found


# What gloo and NCCL write where the other side is gone or silent; both raise a bare RuntimeError.
GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "monitoredBarrier",
    "Application timeout caused pair closure",
)
# NCCL's errors that are this rank's own.
OWN = ("ncclInvalid", "ncclUnhandledCudaError")


def lost_contact(error: BaseException) -> bool:
    """Whether an error of a collective means that another rank, or the way to it, is gone."""
    import torch.distributed as dist

    text = str(error)
    if isinstance(error, dist.DistBackendError):
        return not any(word in text for word in OWN)
    if isinstance(error, (dist.DistNetworkError, dist.DistStoreError)):
        return "EADDRINUSE" not in text
    if type(error) is RuntimeError and any(words in text for words in GONE):
        return True
    # DeepSpeed's and our own code may raise something else because of it.
    return error.__cause__ is not None and lost_contact(error.__cause__)


def how_it_ended(error: BaseException) -> tuple[int, str, bool]:
    """Of what ended this rank: (exit code, line for the user, whether it ended all ranks alike)."""
    if isinstance(error, UserError):
        return EXIT_USER_ERROR, f"error: {error}", isinstance(error, AgreedError)
    if isinstance(error, EarlyEnd):
        return error.code, str(error), True
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted", False
    if lost_contact(error):
        # gloo begins with a place in its source code, in brackets.
        reason = str(error).strip().partition("\n")[0].rpartition("] ")[2]
        reason = reason.partition(". This is typically")[0]  # and ends with advice
        told = f"lost contact with another rank, whose own message tells why ({reason})"
        return EXIT_LOST, f"{told}; the same command with --resume goes on", False
    if isinstance(error, OSError) and is_of_the_machine(error):
        return EXIT_USER_ERROR, f"error: {line_of(error)}", False
    if (line := compile_failure(error)) is not None:
        return EXIT_USER_ERROR, f"error: {line}", False
    traceback.print_exception(error)
    return EXIT_BUG, f"{type(error).__name__}, see the lines above", False


def die_with_parent(parent: int) -> None:
    """In a child that was just made: have the kernel ask it to stop when its parent dies, even by
    SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(EXIT_LOST)


def end_process(code: int) -> NoReturn:
    """Ends this rank with an exit code, without the interpreter's own end.

    A process group stays referenced by DeepSpeed after it is destroyed, and gloo's threads with it;
    one that wakes up while the interpreter is taken down aborts the process, whatever it had done.
    """
    with suppress(OSError):  # a full disk, a pipe whose reader has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
