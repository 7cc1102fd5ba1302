"""Where the ranks of an attempt run: on the nodes of a job, through srun, or on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import psutil

from elemdist.attempts import VARIABLE, Attempt
from elemdist.errors import UserError
from elemdist.slurm_ranks import RANKS_OF, addresses_of, port_of, tasks_per_node
from elemdist.stop import die_with_parent
from elemdist.units import counted
from launcher import slurm
from launcher.own_job import OwnJob
from launcher.run_jobs import job_name, note_jobs, noted_jobs
from launcher.settings import LaunchSettings
from launcher.steps import (
    Process,
    end_srun,
    in_container,
    start_srun,
    step_environment,
    variables,
)
from launcher.submission import sbatch_words, variables_of

TRAIN = Path(__file__).resolve().parent.parent / "elemdist" / "train.py"
# Words in the state of a node that no rank should be started on; a * behind it means that the node
# does not answer.
UNFIT = ("DOWN", "FAIL", "DRAIN", "POWER", "UNKNOWN", "MAINT", "*")
DEAD = ("DOWN",)  # SLURM has given it up; one that is drained may finish what runs on it


class Here:
    """This machine: `elemdist train` starts the ranks."""

    job = name = ""

    def __init__(self, settings: LaunchSettings, run_dir: Path, recipe: Path) -> None:
        self.settings, self.run_dir, self.recipe = settings, run_dir, recipe

    def nodes(self) -> list[str]:
        """The nodes that there are: this machine."""
        return [os.uname().nodename]

    def bad_nodes(self, words: Sequence[str] = UNFIT) -> dict[str, str]:
        """Node -> its state, of those that SLURM says one of these words of."""
        return {}

    def words(self, attempt: Attempt, nodes: list[str]) -> list[str]:
        """The command line that starts the ranks of an attempt on these nodes."""
        ranks = str(self.settings.world_size)
        here = [sys.executable, "-u", "-m", "elemdist", "train", str(self.recipe)]
        return [*here, "--run-dir", str(self.run_dir), "--resume", "--ranks", ranks]

    def start(self, attempt: Attempt, nodes: list[str]) -> Process:
        """Starts the ranks on these nodes."""
        environment = slurm.clean_environment(local=True) | {VARIABLE: str(attempt.number)}
        with open(attempt.folder / "rank-00000.log", "ab") as log:
            return subprocess.Popen(
                self.words(attempt, nodes),
                env=environment | variables(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )

    def answer(self, nodes: list[str], patience_s: float) -> bool:
        """Whether all of these nodes run a command."""
        return True

    def end_now(self, process: Process) -> None:
        """Ends the ranks without a checkpoint."""
        # All by name: those that only lose their starter are asked to save.
        ranks = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.kill()

    def enough_nodes(self, bad: set[str]) -> bool:
        """Whether another attempt has nodes enough."""
        return True

    def back_into_queue(self, without: Sequence[str] = ()) -> None:
        """Has somebody else go on with the run, later, and on other nodes than these."""

    def finish(self) -> None:
        """The run needs no more jobs."""


class InJob(Here):
    """The nodes of the SLURM job that this process is the batch script of."""

    def __init__(self, settings: LaunchSettings, run_dir: Path, recipe: Path, job: OwnJob) -> None:
        super().__init__(settings, run_dir, recipe)
        self.own = job
        self.job, self.number, self.name, self.all_nodes = job.id, job.number, job.name, job.nodes

    def nodes(self) -> list[str]:
        """As Here.nodes: those of the job."""
        return self.all_nodes

    @cached_property
    def addresses(self) -> dict[str, str]:
        """Where each node is reached."""
        return addresses_of(",".join(self.all_nodes))

    def bad_nodes(self, words: Sequence[str] = UNFIT) -> dict[str, str]:
        """As Here.bad_nodes, by what SLURM says of them."""
        found = {}
        listed = slurm.ask("sinfo", "-h", "-N", "-n", ",".join(self.all_nodes), "-o", "%N %T")
        for line in listed.splitlines():
            name, _, state = line.partition(" ")
            if any(word in state.upper() for word in words):
                found[name] = state.strip()
        return found

    def words(self, attempt: Attempt, nodes: list[str]) -> list[str]:
        """As Here.words: srun in front of the ranks."""
        settings = self.settings
        ranks = [sys.executable, "-u", str(TRAIN), str(self.recipe)]
        ranks += ["--run-dir", str(self.run_dir), "--resume"]
        return [
            *self.step_words(nodes, settings.per_node),
            f"--output={attempt.folder}/rank-%5t.log",
            *in_container(settings, self.run_dir, ranks),
        ]

    def step_words(self, nodes: list[str], per_node: int) -> list[str]:
        """srun of so many tasks on each of these nodes; what it would otherwise take from the
        surrounding job, by rules that change from release to release, is said."""
        settings = self.settings
        words = [
            "srun", f"--nodes={len(nodes)}", f"--ntasks={len(nodes) * per_node}",
            f"--ntasks-per-node={per_node}", f"--nodelist={','.join(nodes)}",
            "--kill-on-bad-exit=1", "--mpi=none", "--export=ALL", "--cpu-bind=none",
            "--overlap",  # a step that had a node which died holds its CPUs for long
        ]  # fmt: skip
        if self.own.is_mixed:
            words.append("--het-group=0")
        if settings.slurm.cpus_per_rank:
            words.append(f"--cpus-per-task={settings.slurm.cpus_per_rank}")
        if settings.asks_for_gpus:
            words.append(f"--gpus-per-node={settings.gpus_per_node}")
        return words

    def environment(self, attempt: Attempt, nodes: list[str]) -> dict[str, str]:
        """What the ranks are told beside srun's own variables."""
        return {
            VARIABLE: str(attempt.number),
            RANKS_OF: str(self.number),
            "MASTER_ADDR": self.addresses[nodes[0]],
            "MASTER_PORT": str(port_of(self.number, attempt.number)),
            "ELEMDIST_HOME": str(TRAIN.parent.parent),
            **variables(self.settings),
        }

    def start(self, attempt: Attempt, nodes: list[str]) -> Process:
        """As Here.start."""
        return start_srun(
            self.words(attempt, nodes), step_environment() | self.environment(attempt, nodes)
        )

    def answer(self, nodes: list[str], patience_s: float) -> bool:
        """As Here.answer, by a step that does nothing."""
        process = start_srun([*self.step_words(nodes, 1), "--quiet", "true"], step_environment())
        try:
            return process.wait(patience_s) == 0
        except subprocess.TimeoutExpired:
            end_srun(process)
            return False

    def end_now(self, process: Process) -> None:
        """As Here.end_now."""
        end_srun(process)

    def others(self) -> list[slurm.Job]:
        """The further links of the chain, which wait for this job to end: those that this run was
        launched as. Jobs submitted by hand, and the tasks of an array, are runs of their own."""
        if self.own.task or self.name != job_name(self.run_dir):
            return []
        ours = noted_jobs(self.run_dir)
        found = slurm.jobs(name=self.name)
        return [job for job in found if job.id != self.job and job.id in ours]

    def enough_nodes(self, bad: set[str]) -> bool:
        """As Here.enough_nodes."""
        return len(set(self.all_nodes) - bad) >= self.settings.nodes

    def back_into_queue(self, without: Sequence[str] = ()) -> None:
        """As Here.back_into_queue."""
        others = self.others()
        for job in others if without else []:
            names = f"ExcNodeList={self.excluded(without)}"
            slurm.call("scontrol", "update", f"JobId={job.id}", names)
        if others:
            return
        if not (without and self.name == job_name(self.run_dir) and self.submit_again(without)):
            done = slurm.call("scontrol", "requeue", self.job)
            if done.returncode and "pending" not in done.stderr:  # where an admin has done so
                raise UserError(
                    f"scontrol requeue: {slurm.one_line(done.stderr)}; submit the run again: it"
                    " goes on at its newest checkpoint"
                )

    def excluded(self, without: Sequence[str]) -> str:
        """All nodes that the run is not to have."""
        return ",".join(filter(None, [self.settings.slurm.exclude, *without]))

    def submit_again(self, without: Sequence[str]) -> bool:
        """Submits the run as it was launched, to begin elsewhere when this job has ended: one that
        has begun cannot be told to. Whether there are other nodes enough."""
        chosen = replace(self.settings.slurm, exclude=self.excluded(without))
        words = sbatch_words(replace(self.settings, slurm=chosen), self.run_dir, self.name)
        try:
            folder = self.run_dir / "launch"
            number = slurm.submit(words, variables_of(folder, folder / "launch.yaml"))
        except slurm.Unreachable:
            raise
        except UserError as error:
            print(f"elemdist: no job without {', '.join(without)}: {error}", flush=True)
            return False
        note_jobs(self.run_dir, [number])
        return True

    def finish(self) -> None:
        """As Here.finish: jobs of the chain that still wait go."""
        waiting = [job.id for job in self.others() if job.state == "PENDING"]
        if waiting:
            slurm.call("scancel", *waiting)


def place_of(settings: LaunchSettings, run_dir: Path, recipe: Path, job: OwnJob | None) -> Here:
    """Where the ranks run; `job`: the surrounding one. Raises UserError where that is not what the
    settings say."""
    if settings.local or job is None:
        return Here(settings, run_dir, recipe)
    place = InJob(settings, run_dir, recipe, job)
    if len(place.all_nodes) < settings.nodes:
        raise UserError(
            f"nodes: the job has {len(place.all_nodes)}, the run asks for {settings.nodes}; submit"
            f" it with --nodes={settings.nodes + settings.spare_nodes}"
        )
    try:
        cpus = min(tasks_per_node(os.environ["SLURM_JOB_CPUS_PER_NODE"]))
    except (KeyError, ValueError):
        return place
    if cpus < settings.per_node:
        raise UserError(
            f"ranks_per_node: a node has {counted(cpus, 'CPU')} for"
            f" {counted(settings.per_node, 'rank')}; submit the job with"
            f" --ntasks-per-node={settings.per_node}"
        )
    return place
