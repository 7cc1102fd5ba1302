"""The attempts of a run, one after the other, until it is done or there is no point in another.

A supervisor starts the ranks, has them save when the time is up, tells why they ended, and begins
again, goes back into the queue, or gives up: see decide.py. What it did stands in RUN/attempts.
"""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from elemdist.attempts import Attempt
from elemdist.errors import EXIT_LOST, EXIT_STOPPED, EXIT_USER_ERROR, UserError
from elemdist.plain_text import printable
from elemdist.stop import read_end
from launcher import slurm
from launcher.decide import TIME_LIMIT, End, Next, decide
from launcher.history import ends_of, note_lost
from launcher.judge import judge
from launcher.own_job import patiently
from launcher.places import DEAD, Here, InJob
from launcher.preflight import RUN_FOLDER, preflight, summary
from launcher.progress import added, newest_step
from launcher.settings import LaunchSettings

SIGNALS = {
    signal.SIGUSR2: TIME_LIMIT,
    signal.SIGTERM: "SIGTERM: the job is preempted, requeued or cancelled",
    signal.SIGINT: "Ctrl-C",
    signal.SIGQUIT: "SIGQUIT",
}
POLL_S = 0.2
LOOK_S, LOOK_LOST_S = 30.0, 5.0  # between two looks at the nodes; when a rank was lost
KILLED_S = 90.0  # for SLURM to end a job whose ranks it has asked to stop
SETTLE_S = 20.0  # for SLURM to notice that a node is gone when a rank is


def say(line: str) -> None:
    """A line with the time, for the log of the job."""
    print(f"elemdist: {time.strftime('%H:%M:%S')} {printable(line)}", flush=True)


class Supervisor:
    """Begins attempts of a run until it is done or there is no point in another.

    Attributes:
        asked: why the ranks are asked to stop, None as long as they are not.
        forced: they were ended at once. ending: SLURM ends the job, whatever came before.
        bad: node -> why it is not to be used now. unfit: those that the preflight has found.
    """

    def __init__(self, settings: LaunchSettings, run_dir: Path, place: Here) -> None:
        self.settings, self.run_dir, self.place = settings, run_dir, place
        self.asked: str | None = None
        self.forced = self.ending = False
        self.last: Attempt | None = None
        self.signals: list[int] = []
        self.shown = 0  # bytes of the log of the ranks here
        self.bad: dict[str, str] = {}
        self.unfit: dict[str, str] = {}

    def run(self) -> int:
        """The exit code of the whole: 0 only where the run is done."""
        note_lost(self.run_dir)
        with self.listening():
            while True:
                end = self.attempt()
                action, why = decide(ends_of(self.run_dir), self.settings.retry)
                self.take_signals()
                if self.ending and action == "again":
                    action, end = "queue", dataclasses.replace(end, asked=self.asked)
                if self.settings.local and action == "queue":
                    action = "stopped"
                if self.ending and action == "queue" and self.is_cancelled():
                    action, why = "stopped", f"the job was cancelled (scancel); {why}"
                say(f"{SAID[action]}: {why}" if action != "done" else "the run is done")
                if action == "again" and self.place.enough_nodes(set(self.bad)):
                    self.pause()
                    continue
                if action == "again":
                    say("too few nodes of this job are left: back into the queue")
                    action = "queue"
                    end = dataclasses.replace(end, asked="too few nodes")
                return self.leave(action, end)

    def attempt(self) -> End:
        """One start of the ranks, to its end."""
        place, before = self.place, newest_step(self.run_dir)
        self.bad = self.unfit | patiently(place.bad_nodes, say)
        facts = {"job": place.job, "name": place.name, "ranks": self.settings.world_size}
        facts["before"] = before
        # A supervisor that was taken for dead, and wakes up, must not begin another.
        attempt = self.last = Attempt.begin(self.run_dir, facts, self.last)
        nodes = self.choose_nodes(attempt)
        self.take_signals()
        if (asked := attempt.asked_to_stop() or self.asked) is not None:  # before a rank ran
            attempt.ask_to_stop(asked)
            end = End(EXIT_STOPPED, "stopped", asked, before, before, before, asked)
            attempt.write("end", vars(end) | {"nodes": nodes, "job": place.job})
            return end
        if len(nodes) < self.settings.nodes:
            end = self.too_few(before)
            attempt.write("end", vars(end) | {"nodes": nodes, "job": place.job})
            return end
        attempt.write("nodes", {"nodes": nodes})
        say(f"attempt {attempt.number} on {', '.join(nodes)}, from step {before}")
        self.shown = 0
        process = place.start(attempt, nodes)
        code = self.wait(process, attempt, nodes)
        attempt.check()  # one that woke up has nothing to say any more
        end = judge(attempt, code, before, self.forced, partial(self.lost_nodes, nodes))
        attempt.write("end", vars(end) | {"nodes": nodes, "job": place.job})
        say(f"attempt {attempt.number} ended after step {end.step}: {end.reason}")
        return end

    def too_few(self, before: int) -> End:
        """What it means that too few nodes are fit: what is wrong with all of them is not theirs,
        as a full disk that they share."""
        reasons = set(self.unfit.values())
        if len(self.unfit) > 1 and all(reason.startswith(RUN_FOLDER) for reason in reasons):
            reason = f"no node is fit: {min(reasons)}"
            return End(EXIT_USER_ERROR, "mistake", reason, before, before, before)
        told = ", ".join(f"{node}: {why}" for node, why in self.bad.items())
        return End(EXIT_LOST, "node", f"too few nodes are fit: {told}", before, before, before)

    def choose_nodes(self, attempt: Attempt) -> list[str]:
        """Those of this attempt, of which every one is fit; fewer than needed where there are
        not so many."""
        while True:
            good = [node for node in self.place.nodes() if node not in self.bad]
            nodes = good[: self.settings.nodes]
            if len(nodes) < self.settings.nodes or not isinstance(self.place, InJob):
                return nodes
            if self.settings.preflight == "none":
                return nodes
            spares = good[self.settings.nodes :]
            wrong = preflight(self.place, attempt, nodes, spares)
            say(f"preflight: {summary(attempt.folder / 'preflight')}")
            self.take_signals()
            if not wrong or self.ending:  # SLURM ended the checks, and no node is to blame
                return nodes
            for node, why in wrong.items():
                say(f"preflight: {node} is not fit: {why}")
            self.unfit |= wrong
            self.bad |= wrong

    def wait(self, process: subprocess.Popen[bytes], attempt: Attempt, nodes: list[str]) -> int:
        """Until the ranks have ended; hands on the wish to stop. The exit code of their starter."""
        looked_s = time.monotonic()
        while (code := process.poll()) is None:
            self.take_signals(process)
            if self.asked is not None:
                attempt.ask_to_stop(self.asked)
            waited_s = time.monotonic() - looked_s
            if waited_s > LOOK_LOST_S and (waited_s > LOOK_S or self.has_failed(attempt)):
                looked_s = time.monotonic()
                self.bad = self.dead_nodes()
                if any(node in self.bad for node in nodes):
                    self.place.end_now(process)  # srun waits for a dead node for long
            self.show(attempt)
            time.sleep(POLL_S)
        self.show(attempt)
        return code

    def has_failed(self, attempt: Attempt) -> bool:
        """Whether rank 0 has said so already."""
        said = read_end(self.run_dir)
        return said is not None and said["attempt"] == attempt.number and said["state"] == "failed"

    def dead_nodes(self) -> dict[str, str]:
        """None where SLURM's controller does not answer."""
        try:
            return self.place.bad_nodes(DEAD)
        except UserError:
            return {}

    def take_signals(self, process: subprocess.Popen[bytes] | None = None) -> None:
        """Acts on the signals since the last call; a second SIGINT, or a SIGQUIT, ends `process`
        at once."""
        while self.signals:
            number = self.signals.pop(0)
            self.ending = self.ending or number == signal.SIGTERM
            again = number == signal.SIGINT and self.asked is not None
            if (again or number == signal.SIGQUIT) and process is not None:
                self.forced = True
                self.place.end_now(process)
            if self.asked is None:
                self.asked = SIGNALS[signal.Signals(number)]
                say(f"{self.asked}: the ranks are asked to save and end")

    def lost_nodes(self, nodes: list[str], suspicious: bool) -> dict[str, str]:
        """Those of the attempt that are gone; where a lost rank may come of it, SLURM needs time to
        notice, which there is not where SLURM itself ends the job."""
        self.take_signals()
        if suspicious and not self.ending and self.place.answer(nodes, SETTLE_S):
            suspicious = False  # as where a rank was killed for its memory
        deadline = time.monotonic() + (SETTLE_S if suspicious else 0)
        while True:
            self.take_signals()
            if self.ending:
                self.bad = self.dead_nodes()
            found = {node: state for node, state in self.bad.items() if node in nodes}
            if found or self.ending or time.monotonic() >= deadline:
                return found
            time.sleep(1.0)
            self.bad = self.dead_nodes()

    def leave(self, action: Next, end: End) -> int:
        """Ends this job as the action says."""
        if action == "queue":
            if end.asked is None:
                # The ranks were asked by SLURM itself, which is about to end this job and to
                # put it back into the queue.
                time.sleep(KILLED_S)
            patiently(lambda: self.place.back_into_queue(sorted(self.unfit)), say)
            return EXIT_STOPPED
        with suppress(UserError):  # links that begin all the same find it done
            self.place.finish()
        return end.code

    def is_cancelled(self) -> bool:
        """Whether the job, which SLURM ends, is not to come back."""
        place = self.place
        begun = place.own.restarts if isinstance(place, InJob) else 0
        return patiently(lambda: slurm.was_cancelled(place.job, begun), say)

    def show(self, attempt: Attempt) -> None:
        """Show what the ranks of this machine have printed since the last call."""
        if self.settings.local:
            text, self.shown = added(attempt.folder / "rank-00000.log", self.shown)
            print(text, end="", flush=True)

    def pause(self) -> None:
        """Waits before another try, until a signal comes."""
        deadline = time.monotonic() + self.settings.retry.pause_s
        while time.monotonic() < deadline and not self.signals:
            time.sleep(POLL_S)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The SIGNALS are noted, and come to act in wait()."""
        old = {number: signal.signal(number, self.note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: keeps the signal for the loop."""
        self.signals.append(number)


SAID: dict[Next, str] = {
    "done": "done",
    "stopped": "stopped",
    "again": "again",
    "queue": "back into the queue",
    "give up": "given up",
}
