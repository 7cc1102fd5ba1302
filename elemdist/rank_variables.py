"""The variables that make a process a rank, and whether they are meant for this very process.

A shell, a job and a launcher hand their variables on to all that is begun in them. So the verbs
take none of RANK, WORLD_SIZE and so on unless what has started this process starts ranks: torchrun,
deepspeed, accelerate, MPI. elemdist/train.py by path, which is what such programs run, takes them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from elemdist.errors import RankError
from elemdist.ports import PORTS

NAMES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_|NODE_|CROSS_)?RANK|(LOCAL_|GROUP_|ROLE_)?WORLD_SIZE|CROSS_SIZE|ROLE_NAME"
    r"|MASTER_(ADDR|PORT)|(TORCHELASTIC|OMPI|PMI|PMIX|MV2|PALS|FLUX_TASK|HYDRA)_\w+"
    r"|MPI_LOCAL\w+|ACCELERATE_\w+"
)
# What a task of srun knows of its step.
STEP_NAMES = re.compile(r"SLURM_(STEP\w*|PROCID|LOCALID|NODEID|GTIDS|SRUN_\w+|TASK_PID)")
TORCH_STARTERS = frozenset(
    {
        "torchrun", "torch.distributed.run", "torch.distributed.launch", "accelerate",
        "accelerate.commands.launch", "deepspeed.launcher.launch",
    }
)  # fmt: skip
MPI_STARTERS = frozenset(
    {
        "mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun", "orted", "prted", "prte",
        "hydra_pmi_proxy", "hydra_bstrap_proxy", "pmi_proxy", "mpirun_rsh", "mpispawn",
    }
)  # fmt: skip
# RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as Open MPI, MPICH, Intel and MVAPICH say them.
MPI_NAMES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE",
     "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)  # fmt: skip


def words_of(process: int) -> list[str]:
    """Return the command line of a process; empty where it cannot be seen."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def starter(process: int = 0) -> str:
    """Return the program that starts ranks and has started this process; empty: none has."""
    words = words_of(process or os.getppid())[:6]
    names = {os.path.basename(word) for word in words}
    return next(iter(sorted(names & (TORCH_STARTERS | MPI_STARTERS))), "")


def without_ranks(environment: Mapping[str, str], step: bool = True) -> dict[str, str]:
    """Return the environment without what would make a process a rank; `step`: nor a task of srun.

    OMP_NUM_THREADS is the user's, and stays, but for the 1 that torchrun sets for its own ranks."""
    torchruns = "TORCHELASTIC_RUN_ID" in environment and environment.get("OMP_NUM_THREADS") == "1"
    return {
        name: value
        for name, value in environment.items()
        if not NAMES.fullmatch(name)
        and not (step and STEP_NAMES.fullmatch(name))
        and not (torchruns and name == "OMP_NUM_THREADS")
    }


def forget_ranks(environment: MutableMapping[str, str] = os.environ) -> str:
    """Take the variables of ranks out of this process's environment, for a verb that is none;
    return what is worth a word, or nothing."""
    rank, size = environment.get("RANK", "?"), environment.get("WORLD_SIZE", "1")
    kept = without_ranks(environment, step=False)
    for name in [name for name in environment if name not in kept]:
        del environment[name]
    return "" if size == "1" else f"RANK={rank} and WORLD_SIZE={size} of the environment"


def in_mpi(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether mpirun has started this process as one of several without ranks yet."""
    if "RANK" in environment or starter() not in MPI_STARTERS:
        return False
    return any(environment.get(size, "1") != "1" for _, size, _, _ in MPI_NAMES)


def take_mpi_ranks(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK and so on from what MPI says. On one machine its processes meet at a port that
    follows from the process they share; on several, MASTER_ADDR and MASTER_PORT must be set.

    Raises:
        RankError: MPI does not say enough.
    """
    for names in MPI_NAMES:
        if environment.get(names[1], "1") != "1" and names[0] in environment:
            rank, size = environment[names[0]], environment[names[1]]
            local, here = environment.get(names[2], rank), environment.get(names[3], size)
            break
    else:
        raise RankError("mpirun has started this process, but its variables do not say its rank")
    if here != size and not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        raise RankError(
            f"mpirun has started {size} ranks on several machines: set MASTER_ADDR and MASTER_PORT"
            " for all of them (mpirun -x MASTER_ADDR=... -x MASTER_PORT=... elemdist/train.py)"
        )
    environment.setdefault("MASTER_ADDR", "127.0.0.1")
    environment.setdefault("MASTER_PORT", str(PORTS[os.getppid() % len(PORTS)]))
    environment.update(RANK=rank, WORLD_SIZE=size, LOCAL_RANK=local, LOCAL_WORLD_SIZE=here)


def check_ranks(environment: Mapping[str, str] = os.environ) -> None:
    """Raise RankError unless RANK and what belongs to it are whole and fit each other."""
    found = {"LOCAL_RANK": "0"} | dict(environment)
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in found]
    if missing:
        raise RankError(
            f"RANK={found['RANK']} is set, but not {', '.join(missing)}; start ranks by `elemdist"
            " train --ranks N` or torchrun, or unset RANK"
        )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not re.fullmatch(r"\d{1,9}", found[name]):
            raise RankError(f"{name}={found[name]!r} of the environment is not a whole number")
    if int(found["RANK"]) >= int(found["WORLD_SIZE"]):
        raise RankError(
            f"RANK={found['RANK']} is not below WORLD_SIZE={found['WORLD_SIZE']}; start ranks by"
            " `elemdist train --ranks N` or torchrun, or unset RANK"
        )
