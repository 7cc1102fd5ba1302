"""Which jobs of SLURM are a run's.

They share a name that no other run has; the tasks of an array, which have the name of their sweep,
are known by their numbers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from elemdist.artefacts import read_text
from elemdist.attempts import Attempt
from elemdist.errors import UserError
from launcher import slurm


def job_name(run_dir: Path) -> str:
    """The same for every job of a run, and for no other run: SLURM starts one of them at a time."""
    digest = hashlib.blake2b(str(run_dir.resolve()).encode(), digest_size=4).hexdigest()
    return f"elemdist-{re.sub(r'[^A-Za-z0-9_.-]', '-', run_dir.name)[:40]}-{digest}"


def note_jobs(run_dir: Path, numbers: Sequence[str]) -> None:
    """Adds the numbers of jobs that were submitted to RUN/launch/jobs."""
    with open(run_dir / "launch" / "jobs", "a", encoding="utf-8") as file:
        file.write("".join(f"{number}\n" for number in numbers))


def noted_jobs(run_dir: Path) -> list[str]:
    """Return all numbers that note_jobs() has written down, the newest last."""
    try:
        return read_text(run_dir / "launch" / "jobs").split()
    except UserError:
        return []


def last_jobs(run_dir: Path) -> list[str]:
    """The job that was submitted last, and the one that the newest attempt ran in."""
    newest = Attempt.newest(run_dir)
    found = {str(newest.read("begin").get("job", ""))} if newest else set()
    return sorted((found | set(noted_jobs(run_dir)[-1:])) - {""})


def others_names(run_dir: Path) -> list[str]:
    """Return the name of a job that was submitted by hand, by which its number is still its own: a
    cluster that is set up anew begins to count anew."""
    newest = Attempt.newest(run_dir)
    begun = newest.read("begin") if newest else {}
    return [str(begun["name"])] if begun.get("name") else []


def jobs_of(run_dir: Path, queue: Sequence[slurm.Job] | None = None) -> list[slurm.Job]:
    """The jobs of a run that are in the queue, those that run first; `queue`: slurm.jobs(), where
    that was asked already. Raises UserError where SLURM does not answer."""
    last, name = last_jobs(run_dir), job_name(run_dir)
    if not last:
        return []  # it never was SLURM's
    if queue is None:
        queue = slurm.jobs()
    # A plain sbatch, and an array, have names of their own.
    found = [job for job in queue if job.name == name]
    if not found:
        names = {*others_names(run_dir), job_name(run_dir.parent)}  # the latter is that of a sweep
        found = [job for job in queue if job.id in last and job.name in names]
    return sorted(found, key=lambda job: job.state != "RUNNING")
