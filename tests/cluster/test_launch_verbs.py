"""Around the runs of test_launch.py: sweeps, `doctor --job`, and what a cluster cannot run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

from elemdist.attempts import Attempt, numbers
from elemdist.ports import free_port
from elemdist.slurm_ranks import host_names
from elemdist.stop import read_end
from launcher.progress import newest_step
from tests.cluster.cluster import NODES, Cluster
from tests.cluster.launched import ONE_EACH, Run, wait_for_figures
from tests.conftest import REPOSITORY, TINY, expect_user_error, wait_until

ONE = ["--nodes", "1", "--ranks-per-node", "1", "--preflight", "quick", "--eval-every", "0"]


def everything_ended(cluster: Cluster) -> None:
    cluster.ask("scancel", "--user=root")
    cluster.wait_until_empty(120)
    for node in NODES:
        wait_until(lambda node=node: not cluster.processes(node), f"the processes of {node}", 60)
        assert cluster.shared_memory(node) == []


# The longest one comes first: the last tests decide how long a cluster waits for the others.
def test_a_job_that_ends_while_it_saves_before_its_time_limit_comes_back_unless_cancelled(
    cluster, packed, tmp_path
):
    one = Run(cluster, packed, tmp_path / "run", tmp_path)
    one.launch(*ONE, "--slurm.time", "2:00", "--slurm.save-s", "60")
    one.wait_for_figures(1)
    with one.standing_still():
        over = f"JOB {one.job()} ON n1 CANCELLED AT"
        wait_until(lambda: over in one.log(), "the time limit", 240)
    assert "DUE TO TIME LIMIT" in one.log()
    wait_until(lambda: "back into the queue" in one.log(), "the requeue", 60, one.log)
    wait_until(lambda: numbers(one.run) == [1, 2], "another attempt", 120, one.log)
    wait_until(lambda: one.ranks("n1"), "its rank", 60, one.log)
    with one.standing_still():
        cluster.ask("scancel", "--batch", "--signal=USR2", one.job())
        stopped = Attempt(one.run, 2).folder / "stop"
        wait_until(stopped.exists, "the signal before the time limit", 60)
        cluster.ask("scancel", one.job())
    cluster.wait_until_empty(60)
    assert "stopped: the job was cancelled (scancel); " in one.log()
    ends = [Attempt(one.run, number).read("end")["asked"] for number in numbers(one.run)]
    assert ends == ["the time limit of the job"] * 2
    everything_ended(cluster)


def test_a_sweep_is_an_array_whose_runs_end_each_for_itself(cluster, packed, tmp_path):
    sweep, runs = tmp_path / "sweep.yaml", tmp_path / "the runs"
    sweep.write_text("- {seed: 1}\n- {seed: 2, steps: 100000}\n- {seed: 3, data: {train: /none}}\n")
    words = [*TINY, *ONE, "--data.train", packed / "train", "--steps", "3", "--run-dir", runs]
    launch = ["elemdist", "launch", *words, "--sweep", sweep]
    expect_user_error(cluster.command(*launch), "no shard folder /none")
    sweep.write_text("- {seed: 1}\n- {seed: 2, steps: 100000}\n- {seed: 3, steps: 4}\n")
    done = cluster.command(*launch)
    assert done.returncode == 0, done.stderr
    first, second, third = (runs / f"00{n}-seed={n + 1}" for n in range(3))
    second, third = runs / "001-seed=2,steps=100000", runs / "002-seed=3,steps=4"
    wait_until(lambda: newest_ends(first, third), "the short ones", 180)
    wait_for_figures(second, 120)
    again = cluster.ask(*launch)
    assert again.count("nothing to do") == 2
    assert f"{second}: in the queue already as job " in again
    out = cluster.ask("elemdist", "cancel", runs)
    assert out.startswith(f"{second}: stopped after step "), out
    states = [line.split()[2] for line in cluster.ask("elemdist", "status", runs).splitlines()[1:]]
    assert [state for state in states if state in ("done", "stopped")] == [
        "done",
        "stopped",
        "done",
    ]
    assert newest_step(second) == read_end(second)["step"]
    assert [numbers(run) for run in (first, second, third)] == [[1], [1], [1]]
    sweep.write_text("- {seed: 1}\n- {seed: 2, steps: 5}\n")
    done = cluster.ask(*launch)  # other settings: another run
    wait_until(lambda: newest_ends(runs / "001-seed=2,steps=5"), "the new one", 180)
    everything_ended(cluster)


def newest_ends(*runs: Path) -> bool:
    ends = [read_end(run) for run in runs]
    return all(end is not None and end["state"] == "done" for end in ends)


def test_doctor_in_a_job_tells_of_every_node(cluster, tmp_path):
    log = tmp_path / "log"
    cluster.ask(
        "sbatch", "--wait", "--nodes=3", f"--output={log}", "--wrap",
        f"elemdist doctor --job --run-dir '{tmp_path}'",
    )  # fmt: skip
    for names in ("n[1-3],m5", "a[08-10]", "c-d.e,b[2,4-5]"):
        assert host_names(names) == cluster.ask("scontrol", "show", "hostnames", names).split()
    lines = [line for line in log.read_text().splitlines() if not line.startswith("srun: ")]
    assert [line.split(":")[0] for line in lines] == list(NODES), lines
    for line in lines:
        assert line.endswith(", fit"), line
        assert "GB of memory free" in line
        assert "all-reduce" in line
    everything_ended(cluster)


def test_gpus_are_asked_for_by_node_and_each_rank_sees_all_of_its_node(cluster, packed, tmp_path):
    """The devices are none, so the ranks compute on the CPU, and the preflight finds no driver."""
    run = tmp_path / "run"
    words = [*TINY, "--data.train", packed / "train", "--steps", "100000", "--run-dir", run]
    words += ["--device", "auto", "--nodes", "2", "--gpus-per-node", "2", "--eval-every", "0"]
    words += ["--checkpoint-every", "0"]
    cluster.ask("elemdist", "launch", *words, "--preflight", "none")
    wait_for_figures(run, 180)
    assert cluster.ask("squeue", "-h", "-o", "%b") == "gres:gpu:2"
    for node in ("n1", "n2"):
        found = map(environment_of, cluster.processes(node))
        ranks = [one for one in found if "ELEMDIST_ATTEMPT" in one and "SLURM_LOCALID" in one]
        assert {one["SLURM_LOCALID"] for one in ranks} == {"0", "1"}
        assert {one["CUDA_VISIBLE_DEVICES"] for one in ranks} == {"0,1"}
    out = cluster.ask("elemdist", "cancel", run, "--now")
    assert "checkpoint of step 0" in out
    assert "elemdist cancel" in cluster.ask("elemdist", "status", run)
    cluster.ask(
        "elemdist", "launch", *words, "--run-dir", tmp_path / "other", "--preflight", "quick"
    )
    cluster.wait_until_empty(120)
    reason = "n1: the driver shows 0 GPUs instead of 2"
    assert reason in cluster.ask("elemdist", "logs", tmp_path / "other", "--job")
    everything_ended(cluster)


def environment_of(process: int) -> dict[str, str]:
    try:
        data = Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in data.decode("utf-8", "replace").split("\0"))
    return {name: value for name, _, value in pairs}


def test_a_job_that_may_not_be_requeued_ends_at_once_with_its_checkpoint(cluster, packed, tmp_path):
    run = tmp_path / "run"
    words = [*TINY, *ONE, "--data.train", packed / "train", "--steps", "100000", "--run-dir", run]
    cluster.ask("elemdist", "launch", *words, "--slurm.options", '["--no-requeue"]')
    wait_for_figures(run, 120)
    # As SLURM does before the time limit.
    cluster.ask(
        "scancel", "--batch", "--signal=USR2", (run / "launch" / "jobs").read_text().strip()
    )
    cluster.wait_until_empty(60)
    log = cluster.ask("elemdist", "logs", run, "--job")
    assert re.search("error: scontrol requeue: .*; submit the run again", log), log
    assert "trying again" not in log
    end = read_end(run)
    assert end["state"] == "stopped"
    assert end["step"] == newest_step(run) > 0
    everything_ended(cluster)


@contextmanager
def mounted_on_n2(cluster: Cluster, place: str | Path, *words: str | Path) -> Iterator[None]:
    """`mount WORDS PLACE`, seen by that node alone."""
    cluster.on_node("n2", "mount", *words, place)
    try:
        yield
    finally:
        cluster.on_node("n2", "umount", place)


def launched(cluster: Cluster, packed: Path, run: Path, *more: str) -> str:
    """The log of the jobs of a run on two nodes, when it is done."""
    words = [*TINY, "--data.train", packed / "train", "--steps", "3", "--run-dir", run]
    words += ["--nodes", "2", "--ranks-per-node", "1", "--eval-every", "0", *more]
    words += ["--retry.pause-s", "1"]
    cluster.ask("elemdist", "launch", *words)
    wait_until(lambda: newest_ends(run), "its end", 180)
    log = cluster.ask("elemdist", "logs", run, "--job")
    everything_ended(cluster)
    return log


def test_a_bad_node_is_named_and_replaced_by_the_spare(cluster, packed, tmp_path):
    """It has another version of a package than the others."""
    metadata = tmp_path / "METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
    theirs = str(distribution("numpy").locate_file(f"numpy-{version('numpy')}.dist-info/METADATA"))
    with mounted_on_n2(cluster, theirs, "--bind", metadata):
        more = ["--spare-nodes", "1", "--preflight", "quick"]
        log = launched(cluster, packed, tmp_path / "run", *more)
    assert "preflight: n2 is not fit: its numpy is 0.1, that of others" in log
    assert "attempt 1 on n1, n3" in log


def test_a_node_on_which_a_sum_hangs_is_found_out(cluster, packed, tmp_path):
    """All that add up with it hang, too."""
    check, broken = REPOSITORY / "launcher" / "node_check.py", tmp_path / "node_check.py"
    broken.write_text(check.read_text().replace("dist.all_reduce(tensor)", "time.sleep(600)"))
    assert broken.read_text() != check.read_text()
    with mounted_on_n2(cluster, check, "--bind", broken):
        more = ["--spare-nodes", "1", "--preflight-s", "15"]
        log = launched(cluster, packed, tmp_path / "run", *more)
    assert "preflight: n2 is not fit: the sum over all nodes failed: it hangs" in log
    assert "n1 is not fit" not in log
    assert "attempt 1 on n1, n3" in log


def test_a_job_that_is_requeued_while_its_nodes_are_checked_blames_none_of_them(
    cluster, packed, tmp_path
):
    one = Run(cluster, packed, tmp_path / "run", tmp_path)
    check, slow = REPOSITORY / "launcher" / "node_check.py", tmp_path / "node_check.py"
    slow.write_text(check.read_text().replace("dist.all_reduce(tensor)", "time.sleep(600)"))
    with mounted_on_n2(cluster, check, "--bind", slow):
        one.launch(*ONE_EACH)
        wait_until((Attempt(one.run, 1).folder / "preflight").exists, "the checks", 60, one.log)
        cluster.ask("scontrol", "requeue", one.job())
        wait_until(lambda: one.kinds() == ["stopped"], "the end of the attempt", 60, one.log)
    one.wait_for_figures(1)
    assert "attempt 2 on n1, n2" in one.log()
    assert "is not fit" not in one.log()
    assert len((one.run / "launch" / "jobs").read_text().split()) == 1, "and no other job"
    everything_ended(cluster)


def test_a_bad_node_without_a_spare_is_not_asked_for_again(cluster, packed, tmp_path):
    """Its file system for the run cannot be written."""
    run = tmp_path / "run"
    run.mkdir()
    with mounted_on_n2(cluster, run, "-t", "tmpfs", "-o", "ro", "tmpfs"):
        launched(cluster, packed, run, "--preflight", "quick")
    first = Attempt(run, 1).read("end")
    assert first["kind"] == "node"
    assert "n2: the run folder cannot be written: [Errno 30] " in first["reason"]
    assert Attempt(run, 2).read("nodes")["nodes"] == ["n1", "n3"]
    assert first["job"] != Attempt(run, 2).read("begin")["job"], "a job of its own, without n2"


def test_a_disk_that_is_full_for_all_nodes_is_given_up_at_once(cluster, packed):
    run = cluster.small / "full"  # too small for the test of writing
    words = [*TINY, "--data.train", packed / "train", "--steps", "3", "--run-dir", run]
    more = ["--nodes", "2", "--ranks-per-node", "1", "--preflight", "quick"]
    cluster.ask("elemdist", "launch", *words, *more)
    cluster.wait_until_empty(60)
    assert numbers(run) == [1]
    log = cluster.ask("elemdist", "logs", run, "--job")
    assert "given up: no node is fit: the run folder cannot be written: " in log
    assert "No space left on device" in cluster.ask("elemdist", "status", run)


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--slurm.partition", "mian"], ["the cluster has no 'mian'; did you mean 'main'?"]),
        (["--nodes", "3", "--spare-nodes", "1"], ["4 are asked for", "can have 3"]),
        (["--slurm.time", "2-0"], ["more than the limit of partition main, 1-00:00:00", "--links"]),
        (["--ranks-per-node", "9"], ["1 node with 9 ranks each", "configuration is not avail"]),
        (["--slurm.options", '["--no-such-option"]'], ["sbatch: ", "no-such-option"]),
        (["--links", "2", "--sweep", "configs/tiny.yaml"], ["links: "]),
    ],
)
def test_what_the_cluster_cannot_run_is_one_line(words, messages, cluster, packed, tmp_path):
    run = [*TINY, *ONE, "--data.train", packed / "train", "--run-dir", tmp_path / "run"]
    expect_user_error(cluster.command("elemdist", "launch", *run, *words), *messages)
    assert not cluster.ask("squeue", "-h")


def test_a_cluster_that_does_not_answer_is_one_line(cluster, packed, tmp_path):
    other = tmp_path / "slurm.conf"
    port = f"SlurmctldPort={free_port()}"
    other.write_text(re.sub(r"SlurmctldPort=\d+", port, cluster.configuration.read_text()))
    run = [*TINY, *ONE, "--data.train", packed / "train", "--run-dir", tmp_path / "run"]
    done = cluster.command("elemdist", "launch", *run, SLURM_CONF=str(other))
    expect_user_error(done, "reaches no SLURM from here", "SLURM_CONF", "--local")
