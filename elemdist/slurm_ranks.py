"""The place of a rank that ``srun`` has started, in the variables that torch.distributed reads.

srun -N2 --ntasks-per-node=2 elemdist train RECIPE.yaml --run-dir RUN

SLURM owns every rank: no agent, no ssh, no rendezvous service stands between. The variables of a
step are handed on, also to a job that one of its tasks submits, so they count only where this
process belongs to that very step: SLURM's daemon of the step is among its ancestors.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import subprocess
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from elemdist.errors import UserError
from elemdist.ports import PORTS
from elemdist.rank_variables import words_of

SCONTROL_S = 60
RANKS_OF = "ELEMDIST_JOB"  # in the environment of ranks that a job's supervisor starts: its number
NOT_IN_IT = "the variables of a step of srun are not taken, as this process is not in it"


def says_step(environment: Mapping[str, str]) -> bool:
    """Return whether the variables are those of one of several tasks of srun without ranks yet."""
    # A batch script has the other variables, too, but is in no step; a shell of srun is one task.
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    return "RANK" not in environment and "SLURM_STEP_ID" in environment and tasks != "1"


def in_step(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is one of several tasks of srun that have no ranks yet."""
    if not says_step(environment):
        return False
    if environment.get(RANKS_OF) == environment.get("SLURM_JOB_ID"):
        return True  # a container may show it no process but its own
    ours = step_of_process(os.getpid())
    stated = f"{environment.get('SLURM_JOB_ID')}.{environment['SLURM_STEP_ID']}"
    return ours is None or ours == stated


def speaks_for_all() -> bool:
    """Return whether this process says what all ranks would say: rank 0, or no rank yet."""
    task = os.environ.get("SLURM_PROCID", "0") if in_step() else "0"
    return os.environ.get("RANK", task) == "0"


def step_of_process(process: int) -> str | None:
    """Return JOB.STEP of the step that a process runs in, as 71.0 or 71.batch; empty: in none. None
    on a machine that hides the processes of other users."""
    while process > 1:
        title = " ".join(words_of(process))
        if match := re.match(r"slurmstepd: \[(\d+)(?:\+\d+)?\.(\w+)\]", title):
            return f"{match[1]}.{match[2]}"
        try:
            status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        except OSError:
            return None
        parent = re.search(r"^PPid:\s*(\d+)", status, re.MULTILINE)
        process = int(parent[1]) if parent else 0
    return ""


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
        environment["MASTER_ADDR"] = first_address(nodes)
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
    """Return the names in SLURM's short form, as ``n[1-3,07-09],m5``. Raises UserError."""
    item = r"(?:[\w.-]|\[[\d,-]+\])+"
    if not re.fullmatch(f"{item}(?:,{item})*", nodes):
        raise UserError(f"SLURM names the nodes '{nodes}', which are none")
    found: list[str] = []
    for name in re.findall(item, nodes):
        parts = [
            numbers_of(part[1:-1]) if part.startswith("[") else [part]
            for part in re.findall(r"\[[^\]]*\]|[^\[\]]+", name)
        ]
        found += map("".join, itertools.product(*parts))
    return found


def numbers_of(text: str) -> list[str]:
    """Return the numbers of ``1-3,07-09``: 1, 2, 3, 07, 08, 09. Raises UserError."""
    found: list[str] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise UserError(f"SLURM names nodes by '[{text}]', which is no list of numbers")
        last = int(match[2] or match[1])
        found += [f"{number:0{len(match[1])}}" for number in range(int(match[1]), last + 1)]
    return found


def run_twice(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command, once more where a signal ended it: when a job ends, SLURM asks all of its
    processes to. Raises as subprocess.run does."""
    options |= {"capture_output": True, "text": True, "errors": "replace"}
    done = subprocess.run(words, **options)
    return done if done.returncode >= 0 else subprocess.run(words, **options)


def addresses_of(nodes: str) -> dict[str, str]:
    """Where each of these nodes is reached: its address in SLURM's configuration, which may differ
    from its name. `nodes` in SLURM's short form. Raises UserError."""
    words = ["scontrol", "show", "node", nodes, "--oneliner"]
    try:
        done = run_twice(words, timeout=SCONTROL_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"scontrol cannot be run to find {nodes}: {error}") from None
    found = dict(re.findall(r"^NodeName=(\S+).*?\bNodeAddr=(\S+)", done.stdout, re.MULTILINE))
    missing = [name for name in host_names(nodes) if name not in found]
    if done.returncode or missing:
        told = " ".join(done.stderr.split())
        raise UserError(f"scontrol does not tell where {','.join(missing) or nodes} is: {told}")
    return found


def first_address(nodes: str) -> str:
    """Return where the first of these nodes is reached: what scontrol says, else its name, where
    that is known to the network. Raises UserError."""
    names = host_names(nodes)
    try:
        return addresses_of(names[0])[names[0]]
    except UserError as error:
        why = error
    try:
        address = str(socket.getaddrinfo(names[0], None, proto=socket.IPPROTO_TCP)[0][4][0])
        if len(names) == 1 or not address.startswith(("127.", "::1")):
            return names[0]
        name_says = f"its name says {address}, which only itself can reach"
    except OSError:
        name_says = "its name is not known to the network"
    raise UserError(
        f"nobody says where {names[0]} is: {why}, and {name_says}; set MASTER_ADDR and start"
        " elemdist/train.py by its path"
    )


def port_of(job: int, step: int) -> int:
    """A port that each step of each job has for itself, as far as there are so many."""
    return PORTS[(job * 101 + step) % len(PORTS)]
