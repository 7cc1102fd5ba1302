"""``elemdist logs``, ``cancel`` and ``resume``: what a user does with runs that were begun."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from elemdist.attempts import Attempt, numbers
from elemdist.commandline import parse
from elemdist.errors import UserError
from elemdist.json_types import CountOrNone
from elemdist.plain_text import printable, shell_word
from launcher import slurm
from launcher.decide import CANCELLED
from launcher.launch import launch
from launcher.progress import added, last_lines
from launcher.run_jobs import jobs_of
from launcher.settings import read
from launcher.status import is_run, queue_now, run_folders, status_of

FOLLOW_S = 0.5
QUEUE_S = 3.0  # SLURM is not asked more often
ALIVE = ("runs", "waits", "unclear")
ENDED = ("done", "stopped", "failed", "ended", "not begun")


@dataclass
class LogsSettings:
    """Which log"""

    run: str | None = None
    """Run folder."""
    rank: CountOrNone = 0
    """Rank whose log is shown."""
    attempt: CountOrNone = 0
    """Attempt; 0: the newest."""
    job: bool = False
    """The log of the jobs, not of a rank: what was begun, why it ended, what came next."""
    lines: CountOrNone = 50
    """The last so many lines; 0: all."""
    follow: bool = False
    """Go on showing what is added, and the logs of later attempts, until the run has ended."""


@dataclass
class CancelSettings:
    """Which runs"""

    runs: list[str] = field(default_factory=list)
    """Run folders, or folders of run folders, as of a sweep."""
    now: bool = False
    """End them at once, without a last checkpoint."""
    wait: bool = True
    """Wait until they have ended."""


def the_run(name: str | None, verb: str) -> Path:
    """Raises UserError unless it is a run folder."""
    if not name:
        raise UserError(f"no run is named: elemdist {verb} RUN")
    if not is_run(Path(name)):
        raise UserError(f"{name}: no run folder; elemdist status FOLDER tells which there are")
    return Path(name)


def logs(argv: list[str], description: str | None) -> int:
    """``elemdist logs``; the exit code."""
    settings = parse(LogsSettings, argv, "elemdist logs", "run", description)
    run_dir = the_run(settings.run, "logs")
    path = log_of(run_dir, settings)
    if path is None or not path.exists():
        there = ", ".join(map(str, numbers(run_dir))) or "none"
        ranks = len(list(path.parent.glob("rank-*.log"))) if path is not None else 0
        has = f"that attempt has {ranks}, the first of rank 0"
        told = has if ranks else f"its attempts are {there}"
        if path is not None and path.parent.is_dir() and not ranks:
            told = "that attempt kept none: its one rank printed on its terminal"
        raise UserError(f"{run_dir}: no such log; {told}")
    print(shown("\n".join(last_lines(path, settings.lines))))
    if settings.follow:
        follow(run_dir, settings, path)
    return 0


def log_of(run_dir: Path, settings: LogsSettings) -> Path | None:
    """The file that is asked for; None: there is none yet."""
    if settings.job:
        found = sorted((run_dir / "launch").glob("job-*.log"), key=os.path.getmtime)
        return found[-1] if found else None
    newest = Attempt.newest(run_dir)
    if newest is None:
        return None
    number = settings.attempt or newest.number
    return Attempt(run_dir, number).folder / f"rank-{settings.rank:05d}.log"


def follow(run_dir: Path, settings: LogsSettings, path: Path) -> None:
    """Shows what is added to a log, and goes on to that of the next attempt."""
    place, asked_s = path.stat().st_size, 0.0
    while True:
        text, place = added(path, place)
        print(shown(text), end="", flush=True)
        newer = log_of(run_dir, settings)
        if not text and newer is not None and newer != path:
            path, place = newer, 0
            print(f"== {printable(str(path))}", flush=True)
        elif not text and time.monotonic() > asked_s + QUEUE_S:
            asked_s = time.monotonic()
            if status_of(run_dir, queue_now()).state in ENDED:
                return
        time.sleep(FOLLOW_S)


def shown(text: str) -> str:
    """Return a log's text as it is printed: on a terminal its control characters are escaped, as
    they come from whatever a rank has printed, or read."""
    return printable(text, keep="\n\t") if sys.stdout.isatty() else text


def cancel(argv: list[str], description: str | None) -> int:
    """``elemdist cancel``; the exit code."""
    settings = parse(CancelSettings, argv, "elemdist cancel", "runs", description)
    if not settings.runs:
        raise UserError("no run is named: elemdist cancel RUN")
    queue = queue_now()
    found = {run: status_of(run, queue) for run in run_folders(settings.runs)}
    alive = [run for run, one in found.items() if one.state in ALIVE]
    if not alive:
        states = [f"{one.run}: {one.state} after step {one.step}" for one in found.values()]
        raise UserError(f"nothing runs here: {'; '.join(states or settings.runs)}")
    for run in alive:
        ask_to_end(run, settings.now)
    for run in alive:
        while (told := status_of(run, queue_now())).state in ALIVE and settings.wait:
            time.sleep(QUEUE_S)
        saved = f"checkpoint of step {told.checkpoint}"
        print(f"{printable(str(run))}: {told.state} after step {told.step}, {saved}")
    return 0


def ask_to_end(run: Path, now: bool) -> None:
    """Has a run end, and takes its jobs that wait out of the queue. Raises UserError."""
    newest, jobs = Attempt.newest(run), jobs_of(run)
    if waiting := [job.id for job in jobs if job.state == "PENDING"]:
        slurm.call("scancel", *waiting)
    running = [job.id for job in jobs if job.state != "PENDING"]
    if now and running:
        # Ranks handle SIGTERM, which SLURM sends first even when it is asked to kill.
        slurm.call("scancel", "--signal=HUP", *running)
    if now and not running and newest is not None and newest.alive():
        interrupt(newest)
    elif newest is not None and (running or newest.alive()):
        # With --now nobody is left to save: it says why the attempt ended.
        newest.ask_to_stop(CANCELLED)
    if now and running:
        slurm.call("scancel", *running)


def interrupt(attempt: Attempt) -> None:
    """SIGQUIT for the process that began an attempt. Raises UserError where it began on another
    machine."""
    begun = attempt.read("begin")
    if begun.get("host") != socket.gethostname():
        raise UserError(f"--now: it runs on {begun.get('host', '?')}; say it there")
    # SIGINT twice would give the ranks time to save in between.
    with suppress(ProcessLookupError):
        os.kill(int(begun["pid"]), signal.SIGQUIT)


def resume(argv: list[str], description: str | None) -> int:
    """``elemdist resume``; the exit code."""
    if not argv or argv[0].startswith("-"):
        if argv:
            read(argv, "elemdist resume RUN", description)  # for --help
        raise UserError("no run is named: elemdist resume RUN [--nodes 3 ...]")
    run_dir = the_run(argv[0], "resume")
    recipe = run_dir / "launch" / "launch.yaml"
    if not recipe.exists():
        raise UserError(
            f"{run_dir} was not launched; run its command again with --resume, or elemdist launch"
            f" {shell_word(run_dir / 'settings.yaml')} --run-dir {shell_word(run_dir)}"
        )
    return launch(read([str(recipe), *argv[1:]], "elemdist resume", description))
