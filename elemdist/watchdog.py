"""The watchdog: a rank that makes no progress says where it stands, and ends.

A rank that hangs leaves the others waiting in their next collective, so all watchdogs bark at
about the same time, and the stacks of all ranks together tell what happened.

    RUN/stacks/rank-00000.txt    the stacks of every thread of a rank
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from elemdist.attempts import Attempt
from elemdist.errors import EXIT_LOST, EXIT_STALLED

SETTLE_S = 5.0  # for the other ranks to print, too, before the end of this one cuts them off
FEW_STEPS = 5  # before there is a median to speak of
STALL_FLOOR_S = 300.0  # a step is not late before this, however short the others are
ORPHAN_S = 60.0  # without progress, when the launcher is gone and nobody else would end this rank
ORPHAN_PAUSE_S = 600.0  # the same in a pause
# The same once another attempt has begun: gloo may leave a rank waiting for ever for one whose
# connection has ended. Asked every few seconds, as the folder may be on a shared file system.
SUPERSEDED_S, ASK_S = 20.0, 5.0
STDERR = 2  # where the interpreter writes whatever sys.stderr is
LAUNCHER = "ELEMDIST_LAUNCHER"  # in the environment: the process that started this one


class Watchdog:
    """A thread that ends this process when no beat has come for `stall_s` seconds.

    Use as a context. Exit code EXIT_STALLED; EXIT_LOST when the launcher is gone or another attempt
    has begun. Where a library blocks the whole interpreter, this thread included, Python's own dump
    ends the process with code 1 a little later.

    Attributes:
        attempt: of this rank; None as long as it has none.
    """

    def __init__(
        self,
        run_dir: str | Path,
        rank: int,
        stall_s: float,
        on_stall: Callable[[str, int], None] | None = None,
        stall_steps: float = 0.0,
    ) -> None:
        """`stall_s` 0: never for lack of progress. `stall_steps`: the same in medians of the time
        that a step takes, where that is less, but not before STALL_FLOOR_S; 0: not. `on_stall` gets
        the line and the exit code, to write them down; it is called in the watchdog's thread, last.
        """
        self.file = Path(run_dir) / "stacks" / f"rank-{rank:05d}.txt"
        self.rank, self.stall_s, self.on_stall = rank, stall_s, on_stall
        self.stall_steps = stall_steps
        self.attempt: Attempt | None = None
        self._asked_s = 0.0
        self._step_began_s: float | None = None
        self._steps_s: deque[float] = deque(maxlen=100)
        self._last = (time.monotonic(), "the start")
        self._pauses = 0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._launcher = int(os.environ.get(LAUNCHER, "0"))
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.beat("the start")
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def beat(self, what: str) -> None:
        """Progress was made; `what` was done, or begins. From any thread."""
        self._last = (time.monotonic(), what)

    def begin_step(self) -> None:
        """A training step begins; so the one before it has ended, unless there was a pause."""
        self.beat("the start of a step")
        now = self._last[0]
        if self._step_began_s is not None:
            self._steps_s.append(now - self._step_began_s)
        self._step_began_s = now

    @contextlib.contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """No watching in here, for work that is known to take long without a beat, or to wait for
        such work on another rank."""
        with self._lock:
            self._pauses += 1
        self._step_began_s = None
        self.beat(what)
        try:
            yield
        finally:
            self.beat(f"the end of {what}")
            with self._lock:
                self._pauses -= 1

    def _orphaned(self) -> bool:
        return self._launcher > 0 and os.getppid() != self._launcher

    def _patience_s(self) -> float:
        if self._orphaned():
            return ORPHAN_PAUSE_S if self._pauses else ORPHAN_S
        if not self.stall_s or self._pauses:
            return math.inf
        if not self.stall_steps or len(self._steps_s) < FEW_STEPS:
            return self.stall_s
        late_s = self.stall_steps * statistics.median(list(self._steps_s))
        return min(self.stall_s, max(STALL_FLOOR_S, late_s))

    def _watch(self) -> None:
        pause_s = min(1.0, self.stall_s / 10) if self.stall_s else 1.0
        while not self._end.wait(pause_s):
            if self.stall_s:
                # For a library that holds the interpreter's lock: then this thread stands, too.
                patience_s = self.stall_s + SETTLE_S + pause_s
                faulthandler.dump_traceback_later(patience_s, exit=True, file=STDERR)
            last_s, what = self._last
            silent_s = time.monotonic() - last_s
            superseded = silent_s > SUPERSEDED_S and self._superseded()
            if superseded or silent_s > self._patience_s():
                self._bark(silent_s, what, superseded)

    def _superseded(self) -> bool:
        """Whether another attempt has begun, as far as it is time to ask."""
        now = time.monotonic()
        if self.attempt is None or now - self._asked_s < ASK_S:
            return False
        self._asked_s = now
        return self.attempt.superseded()

    def _bark(self, silent_s: float, what: str, superseded: bool) -> None:
        """Prints, writes, unless the folder is another attempt's by now, and ends the process."""
        orphan = self._orphaned()
        code = EXIT_LOST if orphan or superseded else EXIT_STALLED
        # A disk or a terminal that hangs must not hold up the end.
        faulthandler.dump_traceback_later(5 * SETTLE_S, exit=True, file=STDERR)
        backstop = threading.Timer(4 * SETTLE_S, os._exit, [code])
        backstop.daemon = True
        backstop.start()
        line = f"rank {self.rank}: no progress for {silent_s:.0f} s; the last was {what}"
        if superseded:
            line += "; another attempt of its run has begun"
        elif orphan:
            line += "; the process that started it is gone"
        place = "" if superseded else f", also in {self.file}"
        print(
            f"elemdist train: {line}. The stacks of its threads{place}:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=STDERR)
        if not superseded:
            self._write(line)
        if self.on_stall is not None:
            with contextlib.suppress(Exception):
                self.on_stall(line, code)
        time.sleep(SETTLE_S)
        os._exit(code)

    def _write(self, line: str) -> None:
        """The line and the stacks, into the file."""
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "w", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                faulthandler.dump_traceback(file=file)
