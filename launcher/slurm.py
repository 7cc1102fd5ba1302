"""SLURM as seen through its commands. Their text is read, not their JSON, whose shape changes from
release to release."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from elemdist.errors import UserError, nearest
from elemdist.rank_variables import without_ranks
from elemdist.slurm_ranks import run_twice

TIMEOUT_S = 60
# Of a job that holds nodes, waits for some, or will be put back into the queue.
ALIVE = frozenset(
    {
        "PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD",
        "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "STOPPED", "RESIZING", "SPECIAL_EXIT",
    }
)  # fmt: skip
# In what its commands say when the controller is down, starting anew, or too busy.
SIGNS_OF_SILENCE = (
    "configuration source", "Unable to contact", "Socket timed out", "Connection refused",
    "Zero Bytes were transmitted", "in standby mode",
)  # fmt: skip
FIELDS = "%i|%j|%T|%r|%N|%L|%S"  # as of Job
COMMANDS = ("sbatch", "squeue", "scontrol", "sinfo", "scancel", "srun")
# What a job hands on to all that is begun in it, or what a shell says to SLURM's commands; and of
# that, what says how to reach SLURM at all.
OF_A_JOB = re.compile(
    r"(SLURM|SLURMD|SRUN|SBATCH|SALLOC|SQUEUE|SCANCEL|SINFO|SCONTROL|SACCT)_"
    r"|ELEMDIST_(ATTEMPT|JOB|LAUNCHE[DR]|SETUP|STAGE)$"
)
DEVICES = re.compile(
    r"(CUDA|HIP|ROCR|NVIDIA)_VISIBLE_DEVICES$|(ZE_AFFINITY_MASK|GPU_DEVICE_ORDINAL)$"
)
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


class Unreachable(UserError):  # noqa: N818  # it may only be starting anew
    """SLURM's controller does not answer."""


@dataclass(frozen=True)
class Job:
    """A job in SLURM's queue.

    Attributes:
        id: its number; A_t of a task of an array.
        state: PENDING, RUNNING and so on. reason: why it waits, or (none).
        nodes: those that it has, in SLURM's short form. time_left, starts: as SLURM writes them.
    """

    id: str
    name: str
    state: str
    reason: str
    nodes: str
    time_left: str
    starts: str


def clean_environment(local: bool = False) -> dict[str, str]:
    """Return the environment without what a surrounding job, or a launcher of ranks, would hand on
    to a job submitted from it, or have a command do otherwise. `local`: for processes of this
    machine, or of this job, to which the devices of this process are open."""
    return {
        name: value
        for name, value in without_ranks(os.environ).items()
        if name in KEPT or not (OF_A_JOB.match(name) or (DEVICES.match(name) and not local))
    }


def not_handed_on() -> list[str]:
    """Return the variables of this shell that ask something of a job, and that none is submitted
    with."""
    return sorted(name for name in os.environ if name.startswith("SBATCH_") or DEVICES.match(name))


def call(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of SLURM, `more` in its environment. Raises UserError where there is none,
    Unreachable where SLURM does not answer."""
    environment = clean_environment() | more
    try:
        options = {"timeout": TIMEOUT_S, "env": environment, "stdin": subprocess.DEVNULL}
        done = run_twice(words, **options)
    except OSError as error:
        raise UserError(absent(words[0], error)) from None
    except subprocess.TimeoutExpired:
        raise Unreachable(
            f"SLURM does not answer: {words[0]} took {TIMEOUT_S} s; try again"
        ) from None
    said = done.stderr + done.stdout
    if done.returncode and any(sign in said for sign in SIGNS_OF_SILENCE):
        raise Unreachable(
            f"{words[0]} reaches no SLURM from here; go to a login node of the cluster, see to"
            " SLURM_CONF, or add --local to run on this machine"
        )
    return done


def absent(command: str, error: OSError) -> str:
    """Return why a command of SLURM cannot be run."""
    if not isinstance(error, FileNotFoundError):
        return f"{command} cannot be run: {error.strerror}"
    others = [name for name in COMMANDS if name != command and shutil.which(name)]
    if others:
        return (
            f"{command} is not on the PATH here, though {others[0]} is; add the folder of SLURM's"
            " commands to the PATH (in a container: mount it), or add --local"
        )
    return (
        f"there is no SLURM here ({command} is not installed); go to a login node of the"
        " cluster, or add --local to run on this machine"
    )


def ask(*words: str, **more: str) -> str:
    """What a command of SLURM prints. Raises UserError where it fails."""
    done = call(*words, **more)
    if done.returncode:
        raise UserError(f"{words[0]}: {one_line(done.stderr) or 'failed'}")
    return done.stdout


def one_line(text: str) -> str:
    """SLURM's message without its frame."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(line for line in lines if line)


def jobs(name: str | None = None) -> list[Job]:
    """The jobs of this user in the queue, all or those of a name. Raises UserError."""
    words = ["squeue", "--noheader", "--me", "--array", f"--format={FIELDS}"]
    words += [f"--name={name}"] if name is not None else []
    found = []
    for line in ask(*words).splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) == len(FIELDS.split("|")):  # a name of somebody else's may have a |
            found.append(Job(*parts))
    return [job for job in found if job.state in ALIVE]


def show(kind: str, name: str, begin: str = "") -> dict[str, str]:
    """``scontrol show KIND NAME`` as key -> text, of the first that begins so; empty where there is
    none. What stands several times, as the GRES of groups of nodes, is joined by spaces. Raises
    UserError."""
    done = call("scontrol", "--details", "--oneliner", "show", kind, name)
    if done.returncode or "not found" in done.stdout + done.stderr:
        return {}
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        if "=" in line and line.startswith(begin):
            for key, text in re.findall(r"(\S+?)=(.*?)(?=\s+\S+=|\s*$)", line):
                found[key] = f"{found[key]} {text}" if key in found else text
            break
    return found


def was_cancelled(job: str, begun: int) -> bool:
    """Whether this job, whose batch script asks and was sent SIGTERM, ends for good, as scancel has
    it, rather than by preemption, at its time limit or to be requeued. `begun`: how often it had
    been requeued when the script began. Raises UserError.

    SLURM does not say so in one word: its state is COMPLETING in all four cases. One that is
    preempted has the time of it, one that is requeued has been counted as begun anew.
    """
    facts = show("job", job, "JobId=")
    return (
        facts.get("JobState") in ("COMPLETING", "CANCELLED")
        and facts.get("PreemptTime", "None") == "None"
        and facts.get("Reason") != "TimeLimit"
        and facts.get("Restarts", "0") == str(begun)
    )


def partitions() -> list[str]:
    """The names of all partitions, * behind the default one. Raises UserError."""
    lines = ask("sinfo", "-h", "-o", "partition=%P").splitlines()  # and what else is printed
    names = [line.strip().removeprefix("partition=") for line in lines if "partition=" in line]
    return list(dict.fromkeys(names))


def check_partition(name: str | None, nodes: int, limit_s: int) -> None:
    """Whether a partition can run so many nodes for so long.

    Raises:
        UserError: it does not exist, is down, has fewer nodes or a shorter limit.
    """
    from launcher.settings import seconds

    found = partitions()
    known = [one.rstrip("*") for one in found]
    name = name or next((one.rstrip("*") for one in found if one.endswith("*")), None)
    if name is None:
        raise UserError(f"slurm.partition: the cluster has no default; name one of {listed(known)}")
    if name not in known:
        raise UserError(
            f"slurm.partition: the cluster has no '{name}'{nearest(name, known)}; known:"
            f" {listed(known)}"
        )
    about = show("partition", name, "PartitionName=")
    if about.get("State", "UP") != "UP":
        raise UserError(f"slurm.partition: {name} is {about['State']}; take another one")
    total = int(about.get("TotalNodes", nodes))
    most = about.get("MaxNodes", "UNLIMITED")
    total = min(total, int(most)) if most.isdigit() else total
    if nodes > total:
        raise UserError(
            f"nodes: {nodes} are asked for, spare ones included, but a job in partition {name} can"
            f" have {total}; take fewer nodes, or another partition"
        )
    longest = about.get("MaxTime", "UNLIMITED")
    if longest != "UNLIMITED" and limit_s > seconds(longest):
        raise UserError(
            f"slurm.time: {limit_s} s is more than the limit of partition {name}, {longest}; ask"
            " for less time, and add --links for a run that takes longer"
        )


def check_request(words: Sequence[str], asked: str) -> None:
    """Whether any nodes could run a job with these arguments of sbatch, for which `asked` is
    said in words. What only has to wait for nodes is not refused.

    Raises:
        UserError: there are no such nodes, account, quality of service and so on.
    """
    done = call("sbatch", "--test-only", *words)
    reason = one_line(done.stderr).removeprefix("allocation failure: ")
    if done.returncode and ("configuration" in reason or "nvalid" in reason):
        raise UserError(f"SLURM would never run this job, {asked}: {reason}")


def listed(names: Sequence[str]) -> str:
    """Names in order, for a message."""
    return ", ".join(sorted(names)) or "none"


def submit(words: Sequence[str], variables: dict[str, str]) -> str:
    """Submits, with these variables for the script; the job's number. Raises UserError with what
    sbatch said."""
    printed = ask("sbatch", "--parsable", *words, **variables)
    # NUMBER or NUMBER;CLUSTER, after whatever a site's own sbatch prints.
    if not (numbers := re.findall(r"^(\d+)(?:;.*)?$", printed, re.MULTILINE)):
        raise UserError(f"sbatch does not say the number of the job, but: {one_line(printed)}")
    return str(numbers[-1])
