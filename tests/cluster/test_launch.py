"""Runs that finish, on a real SLURM: two nodes with two ranks each, ZeRO 3, real shards.

In each scenario something ends the run early. It must come to its end all the same, by itself or by
the one command that the scenario is about, with the losses of an undisturbed run, and leave nothing
behind on any node.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from elemdist.attempts import Attempt
from elemdist.stop import read_end
from launcher.progress import newest_step
from tests.cluster.cluster import Cluster
from tests.cluster.launched import LONG_S, ONE_EACH, RUN, STEPS, SURROUNDED, Run, nothing_is_left
from tests.conftest import wait_until
from tests.forked import train
from tests.shard_sets import flip
from tests.test_attempts import tree
from tests.test_elastic import same_run


@pytest.fixture(scope="module")
def undisturbed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder / "log", 2, "--run-dir", folder / "run", "--data.train", packed / "train", *RUN)
    return folder / "run"


@pytest.fixture
def run(cluster: Cluster, packed: Path, tmp_path: Path, undisturbed: Path) -> Iterator[Run]:
    one = Run(cluster, packed, tmp_path / "a run's $folder", undisturbed)
    yield one
    cluster.ask("scancel", "--user=root")
    cluster.wait_until_empty(120)
    nothing_is_left(one)


def test_a_plain_job_that_is_launched_four_times(run):
    out = run.launch(**SURROUNDED)
    assert f"begins as job {run.job()}" in out
    assert "not taken from this shell: CUDA_VISIBLE_DEVICES, " in out
    assert "in the queue already" in run.launch()
    run.wait_for_step(10)
    with run.standing_still():  # else it may be done by then
        assert "in the queue already as job" in run.launch()
    run.finish(1)
    out = run.verb("status", run.run)
    assert re.search(rf"done +{STEPS}/{STEPS}", out)
    assert f"step {STEPS}/{STEPS}" in run.verb("logs", run.run, "--lines", "3")
    assert "attempt 1 on n1, n2, from step 0" in run.verb("logs", run.run, "--job")
    assert "nothing to do" in run.launch()


def test_a_plain_sbatch_of_the_script_in_a_task_of_an_array(run, cluster, tmp_path):
    """It inherits all variables of that task, with which it has nothing to do; nor has another
    job by hand, which has its name, with it."""
    log, number = tmp_path / "job.log", tmp_path / "number"
    by_hand = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=2", "slurm/train.sbatch"]
    other = cluster.ask(*by_hand[:2], "--begin=now+1hour", *by_hand[2:], *run.words[:-1], tmp_path)
    inner = shlex.join([*by_hand[:2], f"--output={log}", *by_hand[2:], *run.words])
    inner = f"SLURM_RESTART_COUNT=3 {inner} > '{number}.part' && mv '{number}.part' '{number}'"
    outer = cluster.ask(
        "sbatch", "--parsable", "--array=0-0", "--requeue", "--output=/dev/null",
        "--gpus-per-node=2", "--wrap", f"srun --ntasks=1 sh -c {shlex.quote(inner)}; sleep 1000",
    )  # fmt: skip
    wait_until(number.exists, "the job in the task", 60)
    job = number.read_text().strip()
    run.wait_for_figures(5)
    with run.standing_still():
        # As SLURM does before the time limit.
        cluster.ask("scancel", "--batch", "--signal=USR2", job)
        wait_until((Attempt(run.run, 1).folder / "stop").exists, "the signal", 60)
    wait_until(lambda: f"{job} PENDING" in run.in_queue(), "the requeue", 120, log.read_text)
    assert re.search(f"waits .* {job}$", run.verb("status", run.run), re.MULTILINE)
    finished = lambda: (read_end(run.run) or {}).get("state") == "done"  # noqa: E731
    wait_until(finished, "its end", LONG_S, log.read_text)
    wait_until(lambda: job not in run.in_queue().split(), "the end of the job", 60)
    assert Attempt(run.run, 1).read("begin")["ranks"] == 4, "all that the job has, no GPUs"
    assert [Attempt(run.run, n).read("begin")["job"] for n in (1, 2)] == [job, job]
    same_run(run.run, run.undisturbed, STEPS)
    facts = cluster.ask("scontrol", "show", "job", f"{outer}_0", "--oneliner")
    assert "JobState=RUNNING" in facts
    assert "Restarts=0" in facts
    assert f"{other} PENDING" in run.in_queue()


def test_a_rank_is_killed(run):
    run.launch()
    run.wait_for_figures(25)
    with run.failing("a rank is killed"):
        os.kill(run.ranks("n2")[0], signal.SIGKILL)
    run.finish(2, "lost rank")


def test_a_rank_is_killed_while_the_controller_is_down(run, cluster):
    run.launch(*ONE_EACH)
    run.wait_for_figures(25)
    with run.failing("a rank is killed, and SLURM's controller is down"):
        run.failed_s = time.monotonic()
        cluster.kill_controller()
        os.kill(run.ranks("n2")[0], signal.SIGKILL)
        wait_until(lambda: "trying again: " in run.log(), "its retries", 120, run.log)
        cluster.start_controller()
    run.finish(2, "lost rank")


def test_the_time_limit_comes_in_the_middle_and_the_next_link_goes_on(run):
    run.launch(*ONE_EACH, "--links", "2", "--slurm.time", "3:00", "--slurm.save-s", "60")
    run.wait_for_step(20)
    stopped = Attempt(run.run, 1).folder / "stop"
    with run.failing("the time limit, with another link"), run.standing_still():
        wait_until(stopped.exists, "the signal before the time limit", 180)
    run.finish(2, "stopped")
    end = Attempt(run.run, 1).read("end")
    assert end["asked"] == "the time limit of the job"
    assert end["after"] == end["step"] >= 20, "and nothing was lost"


def test_a_hang(run):
    run.launch("--guard.stall-s", "15")
    run.wait_for_figures(25)
    with run.failing("a rank hangs (`guard.stall_s` 15)"):
        os.kill(run.ranks("n2")[1], signal.SIGSTOP)
    run.finish(2, "hang")
    assert (run.run / "stacks" / "rank-00000.txt").exists()


def test_both_ways_to_cancel_a_damaged_checkpoint_and_resume_on_one_node_and_on_three(run):
    run.launch()
    run.wait_for_figures(15)  # so that there is one before
    run.verb("cancel", run.run)
    assert read_end(run.run)["state"] == "stopped"
    newest = newest_step(run.run)
    assert run.kinds() == ["stopped"]
    (file,) = run.run.glob(f"checkpoints/step-{newest:08d}/state/rank-00002*")
    flip(file, 1000)
    run.verb("resume", run.run, "--nodes", "1")
    run.wait_for_figures(newest + 5)
    assert "taking the one before" in run.log()
    run.cluster.ask("scancel", run.job())
    wait_until(lambda: not run.in_queue(), "the end of the job, which does not come back", 60)
    assert "stopped: the job was cancelled (scancel); stopped by SIGTERM" in run.log()
    assert read_end(run.run)["state"] == "stopped"
    run.verb("resume", run.run, "--nodes", "3", "--ranks-per-node", "1")
    run.finish(3, "stopped", "stopped")


def test_two_runs_at_once_one_requeued_by_an_admin_one_by_its_time_limit(
    run, cluster, packed, tmp_path, undisturbed
):
    """On shared nodes; each stands still while it is the other's turn, else it would be done."""
    other = Run(cluster, packed, tmp_path / "other", undisturbed)
    run.launch(*ONE_EACH)
    other.launch(*ONE_EACH, "--slurm.time", "3:00", "--slurm.save-s", "60")
    run.wait_for_step(10)
    with run.standing_still():
        other.wait_for_step(10)
    with other.failing("the time limit, without another link (*)"), other.standing_still():
        with run.failing("requeued by an admin (*)"):
            cluster.ask("scontrol", "requeue", run.job())
        wait_until((Attempt(other.run, 1).folder / "stop").exists, "the signal", 180)
    run.finish(2, "stopped")
    other.finish(2, "stopped")


def test_preemption_by_a_higher_partition(run, cluster):
    run.launch(*ONE_EACH)
    run.wait_for_step(20)
    high = ["-p", "high", "-N", "3", "--exclusive", "--output=/dev/null", "--wrap", "sleep 3"]
    with run.failing("preempted (*)"):
        cluster.ask("sbatch", *high)
    run.finish(2, "stopped")
    end = Attempt(run.run, 1).read("end")
    assert end["after"] == end["step"] >= 20, "and nothing was lost"


def test_a_node_dies_and_returns(run, cluster):
    run.launch(*ONE_EACH)
    run.wait_for_figures(25)
    with run.failing("a node dies, and returns (*)"):
        run.failed_s = time.monotonic()
        cluster.kill_node("n2")
        down = lambda: "n2 down" in cluster.ask("sinfo", "-N", "-h", "-o", "%N %T")  # noqa: E731
        wait_until(down, "its loss", 90)
        wait_until(lambda: run.kinds() != ["none"], "the end of the attempt", 60, run.log)
        cluster.start_node("n2")
        # SLURM, which could not tell n2 to end the job, tries again after 45 s, and would end the
        # one that has begun anew: therefore it holds jobs for 120 s, unless told, as here.
        wait_until(lambda: f"{run.job()} PENDING" in run.in_queue(), "the requeue", 60)
        cluster.ask("scontrol", "update", f"JobId={run.job()}", "StartTime=now+60")
    run.finish(2, "node")


def test_a_spare_node_takes_the_place_of_one_that_died(run, cluster):
    run.launch(*ONE_EACH, "--spare-nodes", "1")
    run.wait_for_figures(25)
    try:
        with run.failing("a node dies, with a spare"):
            cluster.kill_node("n2")
        run.finish(2, "node")
        assert Attempt(run.run, 2).read("nodes")["nodes"] == ["n1", "n3"]
    finally:
        cluster.start_node("n2")
        cluster.wait_for_idle_nodes()


def test_a_disk_that_is_full_while_saving(run, cluster, packed, undisturbed):
    one = Run(cluster, packed, cluster.small / "run", undisturbed)
    one.launch(*ONE_EACH, "--preflight", "none")  # for which it is too small
    one.wait_for_step(10)
    filler = cluster.small / "filler"
    with suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    wait_until(lambda: "not written" in one.log(), "a checkpoint that fails", LONG_S)
    filler.unlink()
    one.finish(1)


def test_a_zombie_writer_is_refused(run, cluster):
    """SLURM loses the node of rank 0, whose ranks stand still, and the run goes on elsewhere. Then
    they wake up."""
    run.launch(*ONE_EACH)
    run.wait_for_figures(25)
    sleepers = run.ranks("n1")
    for number in sleepers:
        os.kill(number, signal.SIGSTOP)
    try:
        with run.failing("the node of the batch script dies (*)"):
            cluster.kill_node("n1", but=sleepers)
        run.finish(2, "node")
        before = tree(run.run)
        wake(sleepers)
        wait_until(lambda: not cluster.processes("n1"), "the end of the zombies", 120)
        assert tree(run.run) == before
    finally:
        wake(sleepers)
        cluster.start_node("n1")
        cluster.wait_for_idle_nodes()


def wake(processes: list[int]) -> None:
    for number in processes:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGCONT)
