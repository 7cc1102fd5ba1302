"""``elemdist status``: how runs stand, out of their folders.

SLURM is asked only whether a job waits or runs: it needs no accounting, and answers when SLURM has
forgotten the job.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from elemdist.artefacts import MissingError
from elemdist.attempts import Attempt, numbers
from elemdist.commandline import parse
from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.json_text import json_text
from elemdist.plain_text import printable
from elemdist.stop import read_end
from elemdist.units import amount, duration
from elemdist.yaml_text import Scalar, read_yaml
from launcher import slurm
from launcher.decide import End
from launcher.progress import last_figures, newest_step
from launcher.run_jobs import jobs_of, last_jobs


@dataclass
class StatusSettings:
    """Which runs"""

    runs: list[str] = field(default_factory=list)
    """Run folders, or folders of run folders."""
    json: bool = False
    """Print a JSON object for each run."""


@dataclass
class Status:
    """How a run stands.

    Attributes:
        state: waits, runs, done, stopped, failed, ended (nobody has said how), or unclear (it ran
            when it was last heard of, and SLURM cannot be asked).
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


def run(argv: list[str], description: str | None) -> int:
    """``elemdist status``; the exit code."""
    settings = parse(StatusSettings, argv, "elemdist status", "runs", description)
    queue = queue_now()
    found = [status_of(run, queue) for run in run_folders(settings.runs or ["runs"])]
    if settings.json:
        for one in found:
            print(json_text(asdict(one)))
        return 0
    print("\n".join(table(found)) if found else "no runs here; name their folder")
    return 0


def run_folders(places: list[str]) -> list[Path]:
    """The run folders that are named, or lie in a folder that is. Raises UserError."""
    found: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            what = "is a file" if place.exists() else "no such folder"
            raise UserError(f"{place}: {what}; name a run folder, or one that holds some")
        if is_run(place):
            found.append(place)
        else:
            found += [path for path in sorted(place.iterdir()) if is_run(path)]
    return found


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return any((path / name).exists() for name in ("launch", "end.json", "settings.yaml"))


def queue_now() -> list[slurm.Job] | None:
    """SLURM's, of this user; None where it cannot be asked: a run folder knows most."""
    try:
        return slurm.jobs()
    except UserError:
        return None


def status_of(run_dir: Path, queue: Sequence[slurm.Job] | None) -> Status:
    """Out of the run folder, and of queue_now()."""
    figures, end = last_figures(run_dir, say), read_end(run_dir)
    taken = numbers(run_dir)
    newest = Attempt(run_dir, taken[-1]) if taken else None
    ended = End.of(newest.read("end")) if newest else None
    state = end["state"] if end else "ended" if taken else "not begun"
    reason = ended.reason if ended else end["reason"] if end else ""
    reason = reason or (newest.asked_to_stop() or "" if newest else "")
    step = max(int(figures.get("step", 0)), end["step"] if end else 0)
    job = next(iter(jobs_of(run_dir, queue or [])), None)
    if job is not None and state != "done":
        state, reason = ("runs", "") if job.state == "RUNNING" else ("waits", job.reason)
    elif state == "running":
        if newest is not None and newest.alive():
            state, reason = "runs", ""
        elif queue is None and last_jobs(run_dir):
            state, reason = "unclear", "SLURM does not answer"
        else:
            state, reason = "ended", reason or "nobody could say why"
    steps = steps_of(run_dir)
    rate = figures.get("samples_per_s")
    left = None
    if state == "runs" and rate and rate > 0 and "samples" in figures and step > 0:
        left = (steps - step) * figures["samples"] / step / rate
    return Status(
        str(run_dir), state, step, steps, figures.get("loss"), figures.get("bytes_per_s"),
        newest_step(run_dir), left, reason, len(taken), job.id if job else "",
    )  # fmt: skip


def say(line: str) -> None:
    """Print a line about a file of a run that cannot be used."""
    print(f"elemdist status: {printable(line)}", file=sys.stderr)


def steps_of(run_dir: Path) -> int:
    """Return the steps that a run is to have; 0: not known. Reads that one setting, as checking all
    of them takes a hundred times as long."""
    for name in ("launch/recipe.yaml", "settings.yaml"):
        try:
            tree = read_yaml(run_dir / name)
        except MissingError:
            continue
        except UserError as error:
            say(f"{error}; its steps are not known")
            continue
        if not isinstance(tree, dict):
            continue
        steps = tree.get("steps", Scalar(str(TrainSettings.steps)))
        if isinstance(steps, Scalar) and re.fullmatch("[0-9]{1,18}", steps.text):
            return int(steps.text)
    return 0


def table(found: list[Status]) -> list[str]:
    """For reading: a line for each run, and one below it where there is a reason."""
    names = [printable(one.run) for one in found]
    width = max(map(len, names))
    head = f"{'run':{width}}  {'state':8} {'step':>15} {'loss':>8} {'speed':>10} {'saved':>8}"
    lines = [f"{head} {'ETA':>9} {'tries':>5}  job"]
    for name, one in zip(names, found, strict=True):
        loss = "" if one.loss is None else f"{one.loss:.4f}"
        speed = "" if one.bytes_per_s is None else amount(one.bytes_per_s) + "/s"
        left = "" if one.eta_s is None else duration(one.eta_s)
        lines.append(
            f"{name:{width}}  {printable(one.state):8} {f'{one.step}/{one.steps}':>15} {loss:>8}"
            f" {speed:>10} {one.checkpoint:>8} {left:>9} {one.attempts:>5}"
            f"  {printable(one.job)}".rstrip()
        )
        if one.reason and one.state != "done":
            lines.append(f"{'':{width}}  {printable(one.reason)}")
    return lines
