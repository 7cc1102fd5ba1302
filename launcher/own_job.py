"""The job that this process is the batch script of, as SLURM's controller knows it.

SLURM_JOB_ID is the script's own. Every other variable may be that of another job, in which this
one was submitted: its array's task, its restarts, its GPUs. So they are asked for by the number.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from elemdist.errors import UserError
from elemdist.slurm_ranks import host_names
from launcher import slurm

CONTROLLER_S, AGAIN_S = 900.0, 10.0  # for SLURM's controller to come back; between two tries

T = TypeVar("T")


@dataclass(frozen=True)
class OwnJob:
    """A job of SLURM, this process's own.

    Attributes:
        number: its own, which no other job or task has. id: what SLURM's commands call it, A_t of
            an array's task: the number of its last task means the whole array.
        task: its number in the array; empty: it is in none.
        tasks, gpus: of a node, what it has asked for; cpus: of one of these tasks.
        restarts: how often it was put back into the queue.
        is_mixed: it is heterogeneous, and these are the nodes of its first part.
    """

    number: int
    id: str
    task: str
    name: str
    nodes: list[str]
    tasks: int
    cpus: int
    gpus: int
    restarts: int
    is_mixed: bool = False


def number_here(environment: Mapping[str, str] = os.environ) -> str:
    """Return the number of the surrounding job; empty: there is none."""
    return environment.get("SLURM_JOB_ID", "")


def own_job(environment: Mapping[str, str] = os.environ) -> OwnJob:
    """Return the surrounding job. Raises UserError where SLURM knows none of this number that
    runs."""
    number = number_here(environment)
    facts = slurm.show("job", number, f"JobId={number} ") if number.isdigit() else {}
    if not re.match("RUNNING|COMPLETING", facts.get("JobState", "")):
        state = facts.get("JobState", "unknown to SLURM")
        raise UserError(
            f"SLURM_JOB_ID={number} is no job that runs ({state}); run this in a job, or unset"
            " SLURM_JOB_ID, or add --local to run on this machine"
        )
    array, task = facts.get("ArrayJobId", ""), facts.get("ArrayTaskId", "")
    nodes = host_names(facts["NodeList"])
    return OwnJob(
        number=int(number),
        id=f"{array}_{task}" if array and task else number,
        task=task if array else "",
        name=facts.get("JobName", ""),
        nodes=nodes,
        tasks=max(1, int(facts.get("NumTasks", "1")) // len(nodes)),
        cpus=int(facts.get("CPUs/Task", "1")) if facts.get("CPUs/Task", "1").isdigit() else 1,
        gpus=gpus_of(facts),
        restarts=int(facts.get("Restarts", "0")),
        is_mixed="HetJobId" in facts,
    )


def gpus_of(facts: dict[str, str]) -> int:
    """Return the GPUs that a job has on each of its nodes, at least; 0: SLURM counts none."""
    lists = facts.get("GRES", "").split()
    counts = [sum(map(int, re.findall(r"\bgpu(?::[^:,()]+)?:(\d+)", text))) for text in lists]
    return min(counts, default=0)


def patiently(ask: Callable[[], T], say: Callable[[str], None]) -> T:
    """Return what SLURM answers, as soon as its controller does: it may be down for minutes."""
    deadline = time.monotonic() + CONTROLLER_S
    while True:
        try:
            return ask()
        except slurm.Unreachable as error:
            if time.monotonic() > deadline:
                raise
            say(f"trying again: {error}")
            time.sleep(AGAIN_S)
