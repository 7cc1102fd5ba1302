"""A run that tests launch on a real SLURM: two nodes with two ranks each, ZeRO 3, real shards."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from elemdist.attempts import Attempt, numbers
from elemdist.slurm_ranks import port_of
from elemdist.stop import read_end
from launcher.progress import last_figures, newest_step, steps_done
from launcher.run_jobs import job_name
from tests.cluster.cluster import NODES, Cluster
from tests.cluster.recoveries import RECOVERIES
from tests.conftest import TINY, wait_until
from tests.test_elastic import same_run

STEPS, EVERY = 40, 10
LONG_S = 420
RUN = [
    *TINY, "--zero.stage", "3", "--steps", str(STEPS), "--checkpoint-every", str(EVERY),
    # Passes of the same samples on 2, 3 and 4 ranks, so that dropout is the same, too.
    "--eval-every", "0", "--keep-last", "3", "--batch.global-samples", "24",
    "--batch.micro-samples", "2",
]  # fmt: skip
NODES_2 = ["--nodes", "2", "--ranks-per-node", "2", "--retry.pause-s", "1"]
# What a shell within another job, or within ranks, may have.
SURROUNDED = {
    "SLURM_JOB_ID": "1", "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0", "RANK": "3",
    "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1", "LOCAL_RANK": "3",
    "SLURM_MEM_PER_NODE": "99999999", "SLURM_CPUS_PER_TASK": "64", "SLURM_NTASKS_PER_NODE": "7",
    "SLURM_GPUS_PER_NODE": "9", "SLURM_RESTART_COUNT": "3", "SBATCH_TIMELIMIT": "1",
    "SBATCH_MEM_PER_CPU": "100T", "SBATCH_PARTITION": "none", "SQUEUE_FORMAT": "%j",
    "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "203.0.113.7", "MASTER_PORT": "9",
    "TORCHELASTIC_USE_AGENT_STORE": "True", "OMPI_COMM_WORLD_SIZE": "4", "PMI_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1", "CUDA_VISIBLE_DEVICES": "7",
}  # fmt: skip
ONE_EACH = ["--ranks-per-node", "1"]  # where it is about nodes: half of the starts


def wait_for_figures(
    run: Path, seconds: float, step: int = 1, log: Callable[[], str] = str
) -> None:
    """Until metrics.jsonl, which may begin with events, tells of that step of training."""
    done = lambda: last_figures(run).get("step", 0) >= step  # noqa: E731
    wait_until(done, f"figures of step {step}", seconds, log)


class Run:
    """A run on the cluster."""

    def __init__(self, cluster: Cluster, data: Path, run: Path, undisturbed: Path) -> None:
        self.cluster, self.run, self.undisturbed = cluster, run, undisturbed
        self.words = [*RUN, "--data.train", str(data / "train"), "--run-dir", str(run)]

    def verb(self, verb: str, *words: str | Path, code: int = 0, **environment: str) -> str:
        """A command of elemdist; what it printed."""
        done = self.cluster.command("elemdist", verb, *words, timeout=120, **environment)
        assert done.returncode == code, f"{verb}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def launch(self, *more: str, **environment: str) -> str:
        return self.verb("launch", *self.words, *NODES_2, *more, **environment)

    def wait_for_step(self, step: int) -> None:
        """Until a checkpoint of that step, or of a later one, is there."""
        done = lambda: newest_step(self.run) >= step  # noqa: E731
        wait_until(lambda: done() or not self.in_queue(), f"step {step}", LONG_S, self.log)
        assert done(), self.log()

    def wait_for_figures(self, step: int) -> None:
        """Until that step is done, between two checkpoints."""
        wait_for_figures(self.run, LONG_S, step, self.log)

    def job(self) -> str:
        return (self.run / "launch" / "jobs").read_text().split()[-1]

    def ranks(self, node: str) -> list[int]:
        """The processes of the ranks on a node."""
        found = []
        for number in self.cluster.processes(node):
            with suppress(OSError):
                words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
                rank = any(word.endswith(b"elemdist/train.py") for word in words[:3])
                if rank and str(self.run).encode() in words:
                    found.append(number)
        return found

    def job_that_runs(self) -> str:
        return self.cluster.ask("squeue", "-h", "-t", "R", "-o", "%i", f"--name={self.name()}")

    def name(self) -> str:
        return job_name(self.run)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """All its ranks do nothing in here."""
        ranks = [rank for node in NODES for rank in self.ranks(node)]
        for rank in ranks:
            with suppress(ProcessLookupError):  # a fork of a rank may be gone already
                os.kill(rank, signal.SIGSTOP)
        try:
            yield
        finally:
            for rank in ranks:
                with suppress(ProcessLookupError):
                    os.kill(rank, signal.SIGCONT)

    def log(self) -> str:
        """All that the run's jobs and ranks have printed."""
        files = [*self.run.glob("launch/job-*.log"), *self.run.glob("attempts/*/rank-*.log")]
        return "\n".join(f"== {path}\n{path.read_text()}" for path in sorted(files))

    def finish(self, attempts: int, *kinds: str) -> None:
        """Waits for its end, which must be that of the undisturbed run, after so many attempts,
        which ended so."""

        def done() -> bool:
            end = read_end(self.run)
            return end is not None and end["state"] == "done" and end["step"] == STEPS

        wait_until(lambda: done() or not self.in_queue(), "the end of the run", LONG_S, self.log)
        assert done(), self.log()
        wait_until(lambda: not self.in_queue(), "the end of its jobs", 120)
        same_run(self.run, self.undisturbed, STEPS)
        assert len(numbers(self.run)) == attempts, self.log()
        assert [kind for kind in self.kinds() if kind != "done"] == list(kinds), self.log()

    @contextmanager
    def failing(self, what: str) -> Iterator[None]:
        """Something happens in here that ends an attempt; what it costs goes into the table."""
        attempt = numbers(self.run)[-1] + 1
        self.failed_s = 0.0  # when it happened; 0: at the end of the block
        yield
        since_s = self.failed_s or time.monotonic()
        begin = lambda: Attempt(self.run, attempt).read("begin")  # noqa: E731
        wait_until(begin, "another attempt", LONG_S, self.log)
        done, begun = last_figures(self.run)["step"], begin()
        wait_until(
            lambda: steps_done(self.run, begun["time_s"]) > begun["before"],
            "another step", LONG_S, self.log,
        )  # fmt: skip
        RECOVERIES.append((what, done - begun["before"], time.monotonic() - since_s))

    def in_queue(self) -> str:
        """The jobs in the queue; "unknown" from a controller that is too busy to answer."""
        done = self.cluster.command("squeue", "-h", "-o", "%i %T")
        return "unknown" if done.returncode else done.stdout.strip()

    def kinds(self) -> list[str]:
        ends = [Attempt(self.run, number).read("end") for number in numbers(self.run)]
        return [end.get("kind", "none") for end in ends]


def nothing_is_left(run: Run) -> None:
    """No process, no shared memory, no port."""
    for node in NODES:
        wait_until(
            lambda node=node: not run.cluster.processes(node), f"the processes of {node}", 60
        )
        assert run.cluster.shared_memory(node) == []
    for number in numbers(run.run):
        job = Attempt(run.run, number).read("begin").get("job")
        if job:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port_of(int(job), number))) != 0
