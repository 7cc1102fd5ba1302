"""What a user asks of runs: ``elemdist status``, ``logs``, ``cancel`` and ``resume``.

All of them read the run folder, so they need no accounting, and answer when SLURM has forgotten
the job; SLURM is asked only whether a job waits or runs.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from elemdist.attempts import Attempt, numbers
from elemdist.commandline import parse
from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.stop import read_end
from elemdist.units import amount, duration
from launcher import slurm
from launcher.decide import CANCELLED, End
from launcher.launch import job_name, launch
from launcher.progress import last_figures, newest_step, tail
from launcher.settings import read

FOLLOW_S = 0.5


@dataclass
class StatusSettings:
    """Which runs"""

    runs: list[str] = field(default_factory=list)
    """Run folders, or folders of run folders."""
    json: bool = False
    """Print a JSON object for each run."""


@dataclass
class LogsSettings:
    """Which log"""

    run: str | None = None
    """Run folder."""
    rank: int = 0
    """Rank whose log is shown."""
    attempt: int = 0
    """Attempt; 0: the newest."""
    job: bool = False
    """The log of the jobs, not of a rank: what was begun, why it ended, what came next."""
    lines: int = 50
    """The last so many lines; 0: all."""
    follow: bool = False
    """Go on showing what is added, and the logs of later attempts, until the run has ended."""


@dataclass
class CancelSettings:
    """Which run"""

    run: str | None = None
    """Run folder."""
    now: bool = False
    """End it at once, without a last checkpoint."""
    wait: bool = True
    """Wait until it has ended."""


@dataclass
class Status:
    """How a run stands.

    Attributes:
        state: waits, runs, done, stopped, failed, or ended (nobody has said how).
        step, steps: done, of all. checkpoint: step of the newest. eta_s: seconds to the end, where
            it runs. reason: why it ended last, or why it waits. attempts: there were so many.
    """

    run: str
    state: str
    step: int
    steps: int
    loss: float | None
    bytes_per_s: float | None
    checkpoint: int
    eta_s: float | None
    reason: str
    attempts: int
    job: str


def status(argv: list[str], description: str | None) -> int:
    """``elemdist status``; the exit code."""
    settings = parse(StatusSettings, argv, "elemdist status", "runs", description)
    found = [status_of(run) for run in run_folders(settings.runs or ["runs"])]
    if settings.json:
        for one in found:
            print(json.dumps(asdict(one)))
        return 0
    print("\n".join(table(found)) if found else "no runs here; name their folder")
    return 0


def run_folders(places: list[str]) -> list[Path]:
    """The run folders that are named, or lie in a folder that is. Raises UserError."""
    found: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            raise UserError(f"{place}: no such folder; name a run folder, or one that holds some")
        if is_run(place):
            found.append(place)
        else:
            found += [path for path in sorted(place.iterdir()) if is_run(path)]
    return found


def is_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("launch", "end.json", "settings.yaml"))


def the_run(name: str | None, verb: str) -> Path:
    """Raises UserError unless it is a run folder."""
    if not name or not is_run(Path(name)):
        raise UserError(f"{name or 'no run'}: no run folder; elemdist {verb} RUN")
    return Path(name)


def status_of(run_dir: Path) -> Status:
    """Out of the run folder, and of SLURM's queue where there is one."""
    figures, end = last_figures(run_dir), read_end(run_dir)
    taken = numbers(run_dir)
    newest = Attempt(run_dir, taken[-1]) if taken else None
    ended = End.of(newest.read("end")) if newest else None
    state = end["state"] if end else "ended" if taken else "not begun"
    reason = ended.reason if ended else end["reason"] if end else ""
    step = max(int(figures.get("step", 0)), end["step"] if end else 0)
    job = None
    with suppress(UserError):  # the folder knows most
        job = next(iter(jobs_of(run_dir)), None)
    if job is not None and state != "done":
        state, reason = ("runs", "") if job.state == "RUNNING" else ("waits", job.reason)
    elif state == "running":
        alive = newest is not None and newest.alive()
        state = "runs" if alive else "ended"
        reason = "" if alive else reason or "nobody could say why"
    steps = steps_of(run_dir)
    rate = figures.get("samples_per_s")
    left = None
    if state == "runs" and rate and figures.get("samples") and step:
        left = (steps - step) * figures["samples"] / step / rate
    return Status(
        str(run_dir), state, step, steps, figures.get("loss"), figures.get("bytes_per_s"),
        newest_step(run_dir), left, reason, len(taken), job.id if job else "",
    )  # fmt: skip


def steps_of(run_dir: Path) -> int:
    for name in ("launch/recipe.yaml", "settings.yaml"):
        if (run_dir / name).is_file():
            try:
                return parse(TrainSettings, [str(run_dir / name)], "elemdist status").steps
            except UserError:
                continue
    return 0


def jobs_of(run_dir: Path) -> list[slurm.Job]:
    """The jobs of a run that are in the queue, those that run first. Raises UserError where SLURM
    does not answer."""
    newest = Attempt.newest(run_dir)
    last = str(newest.read("begin").get("job", "")) if newest else ""
    if not last and not (run_dir / "launch" / "jobs").exists():
        return []  # it never was SLURM's
    found = slurm.jobs(name=job_name(run_dir))
    if not found and last:  # a plain sbatch has a name of its own
        found = slurm.jobs(numbers=[last])
    return sorted(found, key=lambda job: job.state != "RUNNING")


def table(found: list[Status]) -> list[str]:
    """For reading: a line for each run, and one below it where there is a reason."""
    width = max(len(one.run) for one in found)
    head = f"{'run':{width}}  {'state':8} {'step':>15} {'loss':>8} {'speed':>10} {'saved':>8}"
    lines = [f"{head} {'ETA':>9} {'tries':>5}  job"]
    for one in found:
        loss = "" if one.loss is None else f"{one.loss:.4f}"
        speed = "" if one.bytes_per_s is None else amount(one.bytes_per_s) + "/s"
        left = "" if one.eta_s is None else duration(one.eta_s)
        lines.append(
            f"{one.run:{width}}  {one.state:8} {f'{one.step}/{one.steps}':>15} {loss:>8}"
            f" {speed:>10} {one.checkpoint:>8} {left:>9} {one.attempts:>5}  {one.job}".rstrip()
        )
        if one.reason and one.state != "done":
            lines.append(f"{'':{width}}  {one.reason}")
    return lines


def logs(argv: list[str], description: str | None) -> int:
    """``elemdist logs``; the exit code."""
    settings = parse(LogsSettings, argv, "elemdist logs", "run", description)
    run_dir = the_run(settings.run, "logs")
    path = log_of(run_dir, settings)
    if path is None or not path.exists():
        there = ", ".join(map(str, numbers(run_dir))) or "none"
        raise UserError(f"{run_dir}: no such log; its attempts are {there}")
    lines = tail(path, 1 << 40)
    print("\n".join(lines[-settings.lines :]))
    if settings.follow:
        follow(run_dir, settings, path)
    return 0


def log_of(run_dir: Path, settings: LogsSettings) -> Path | None:
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
    place = path.stat().st_size
    while True:
        try:
            with open(path, "rb") as file:
                file.seek(place)
                data = file.read()
        except FileNotFoundError:
            data = b""
        place += len(data)
        print(data.decode("utf-8", "replace"), end="", flush=True)
        newer = log_of(run_dir, settings)
        if not data and newer is not None and newer != path:
            path, place = newer, 0
            print(f"== {path}", flush=True)
        elif not data and status_of(run_dir).state in ("done", "stopped", "failed", "ended"):
            return
        time.sleep(FOLLOW_S)


def cancel(argv: list[str], description: str | None) -> int:
    """``elemdist cancel``; the exit code."""
    settings = parse(CancelSettings, argv, "elemdist cancel", "run", description)
    run_dir = the_run(settings.run, "cancel")
    found = status_of(run_dir)
    if found.state not in ("runs", "waits"):
        raise UserError(f"{run_dir} does not run: {found.state} after step {found.step}")
    newest = Attempt.newest(run_dir)
    jobs = jobs_of(run_dir)
    waiting = [job.id for job in jobs if job.state == "PENDING"]
    running = [job.id for job in jobs if job.state != "PENDING"]
    if settings.now and not jobs:
        raise UserError(f"--now: {run_dir} has no job of SLURM; press Ctrl-C twice where it runs")
    if waiting:
        slurm.call("scancel", *waiting)
    if found.state == "runs" and newest is not None:
        newest.ask_to_stop(CANCELLED)
        if settings.now:
            slurm.call("scancel", "--signal=KILL", "--full", *running)
            slurm.call("scancel", *running)
    if settings.wait:
        while status_of(run_dir).state in ("runs", "waits"):
            time.sleep(FOLLOW_S)
    told = status_of(run_dir)
    print(f"{run_dir}: {told.state} after step {told.step}, checkpoint of step {told.checkpoint}")
    return 0


def resume(argv: list[str], description: str | None) -> int:
    """``elemdist resume``; the exit code."""
    if not argv or argv[0].startswith("-"):
        read(argv or ["--help"], "elemdist resume", description)
        raise UserError("name a run folder: elemdist resume RUN [--nodes 3 ...]")
    run_dir = the_run(argv[0], "resume")
    recipe = run_dir / "launch" / "launch.yaml"
    if not recipe.exists():
        raise UserError(
            f"{run_dir} was not launched; run its command again with --resume, or elemdist launch"
            f" {run_dir}/settings.yaml --run-dir {run_dir}"
        )
    return launch(read([str(recipe), *argv[1:]], "elemdist resume", description))
