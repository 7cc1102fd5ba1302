"""The place of a rank that ``srun`` has started, in the variables that torch.distributed reads.

srun -N2 --ntasks-per-node=2 elemdist train RECIPE.yaml --run-dir RUN

SLURM owns every rank: no agent, no ssh, no rendezvous service stands between.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import MutableMapping

from elemdist.errors import UserError

PORTS = range(20_000, 32_000)  # below those that systems give to outgoing connections


def in_step(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether this process is one of several tasks of srun that have no ranks yet."""
    # A batch script has the other variables, too, but is in no step; a shell of srun is one task.
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    return "RANK" not in environment and "SLURM_STEP_ID" in environment and tasks != "1"


def take_ranks(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of this task
    where they are not set.

    Raises:
        UserError: SLURM does not say what it should.
    """
    try:
        node = int(environment["SLURM_NODEID"])
        here = tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[node]
        found = {
            "RANK": environment["SLURM_PROCID"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_WORLD_SIZE": str(here),
        }
        job, step = int(environment["SLURM_JOB_ID"]), int(environment["SLURM_STEP_ID"])
        nodes = environment["SLURM_STEP_NODELIST"]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"srun has started this process, but SLURM's variables do not say its rank ({error!r});"
            " set RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        ) from None
    environment.update(found)
    if "MASTER_ADDR" not in environment:
        environment["MASTER_ADDR"] = addresses_of(nodes)[host_names(nodes)[0]]
    environment.setdefault("MASTER_PORT", str(port_of(job, step)))


def tasks_per_node(text: str) -> list[int]:
    """Out of SLURM's short form: ``2(x3),1`` is [2, 2, 2, 1]. Raises ValueError."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"tasks per node: {text}")
        found += [int(match[1])] * int(match[2] or 1)
    return found


def host_names(nodes: str) -> list[str]:
    """The names in SLURM's short form, as ``n[1-3,7]``. Raises UserError."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"scontrol cannot be run to name the nodes {nodes}: {error}") from None
    if done.returncode or not done.stdout.split():
        raise UserError(f"scontrol does not know the nodes {nodes}: {done.stderr.strip()}")
    return done.stdout.split()


def addresses_of(nodes: str) -> dict[str, str]:
    """Where each of these nodes is reached: its address in SLURM's configuration, which may differ
    from its name. `nodes` in SLURM's short form. Raises UserError."""
    words = ["scontrol", "show", "node", nodes, "--oneliner"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"scontrol cannot be run to find {nodes}: {error}") from None
    found = re.findall(r"^NodeName=(\S+).*?\bNodeAddr=(\S+)", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise UserError(f"scontrol does not tell where {nodes} is: {done.stderr.strip()}")
    return dict(found)


def port_of(job: int, step: int) -> int:
    """A port that each step of each job has for itself, as far as there are so many."""
    return PORTS[(job * 101 + step) % len(PORTS)]
