"""What a shell, a job or a launcher hands on to a command never makes it do something else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from elemdist.errors import UserError
from elemdist.rank_variables import check_ranks, forget_ranks, take_mpi_ranks, without_ranks
from launcher import slurm
from launcher.local import rank_environment
from launcher.steps import step_environment
from tests.conftest import REPOSITORY, TINY, elemdist, metrics

RANKS = {
    "RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2", "ROLE_RANK": "3", "ROLE_WORLD_SIZE": "8", "ROLE_NAME": "default",
    "NODE_RANK": "1", "CROSS_RANK": "1", "CROSS_SIZE": "2", "MASTER_ADDR": "203.0.113.7",
    "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True",
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMI_RANK": "1", "PMI_SIZE": "2", "PMIX_RANK": "1", "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2", "MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2",
    "ACCELERATE_USE_DEEPSPEED": "true",
}  # fmt: skip
STEP = {
    "SLURM_STEP_ID": "0", "SLURM_STEPID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NODEID": "0", "SLURM_GTIDS": "0,1",
    "SLURM_SRUN_COMM_HOST": "10.0.0.1", "SLURM_TASK_PID": "1",
}  # fmt: skip
JOB = {
    "SLURM_JOB_ID": "71", "SLURM_JOBID": "71", "SLURM_ARRAY_JOB_ID": "70", "SLURM_NTASKS": "4",
    "SLURM_ARRAY_TASK_ID": "0", "SLURM_RESTART_COUNT": "2", "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_GPUS_PER_NODE": "4", "SLURM_MEM_PER_CPU": "100", "SLURM_MEM_PER_NODE": "100",
    "SLURM_CPUS_PER_TASK": "64", "SLURM_CPU_BIND": "map_cpu:99", "SLURM_HINT": "nomultithread",
    "SLURM_HET_SIZE": "2", "SLURM_EXPORT_ENV": "NONE", "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2", "SLURM_DISTRIBUTION": "cyclic", "SLURM_EXCLUSIVE": "1",
    "SRUN_CPUS_PER_TASK": "64", "SALLOC_ACCOUNT": "theirs", "SQUEUE_FORMAT": "%i", "SINFO_FORMAT":
    "%n", "SCANCEL_STATE": "PENDING", "SLURM_TIME_FORMAT": "relative", "SACCT_FORMAT": "jobid",
    "SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "none", "SBATCH_EXPORT": "NONE",
    "SBATCH_MEM_PER_CPU": "100T", "ELEMDIST_ATTEMPT": "9", "ELEMDIST_LAUNCHED": "/a/launch.yaml",
}  # fmt: skip
DEVICES = {
    "CUDA_VISIBLE_DEVICES": "7", "HIP_VISIBLE_DEVICES": "7", "ROCR_VISIBLE_DEVICES": "7",
    "ZE_AFFINITY_MASK": "7", "GPU_DEVICE_ORDINAL": "7", "NVIDIA_VISIBLE_DEVICES": "void",
}  # fmt: skip
USERS = {
    "NCCL_DEBUG": "WARN", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "3", "MPI_HOME": "/mpi",
    "PATH": "/usr/bin", "SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "x", "RANKING": "1",
}  # fmt: skip


@pytest.fixture
def polluted(monkeypatch):
    """The environment is that of a rank of torchrun in a step of a task of somebody's job."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in (USERS | RANKS | STEP | JOB | DEVICES).items():
        monkeypatch.setenv(name, value)


def known(environment: dict[str, str]) -> dict[str, str]:
    """Those of the variables of this test."""
    return {name: value for name, value in environment.items() if not name.startswith("PYTEST")}


def test_a_submission_takes_nothing_with_it_but_what_is_the_users(polluted):
    assert known(slurm.clean_environment()) == USERS
    assert known(slurm.clean_environment(local=True)) == USERS | DEVICES
    assert slurm.not_handed_on() == sorted(
        DEVICES.keys() | {name for name in JOB if name.startswith("SBATCH_")}
    )


def test_a_step_knows_its_job_and_nothing_that_shapes_it(polluted):
    found = known(step_environment())
    ours = {"SLURM_JOB_ID": "71", "SLURM_JOBID": "71", "SLURM_JOB_NODELIST": "n[1-2]"}
    assert found == USERS | DEVICES | ours


def test_ranks_of_this_machine_are_those_of_their_launcher(polluted):
    found = rank_environment(1, 2, 12345)
    ours = {name: found[name] for name in found if name in RANKS or name in STEP}
    assert ours == {
        "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "12345",
    }  # fmt: skip
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["CUDA_VISIBLE_DEVICES"] == "7", "which GPUs are its own is for who starts it"


def test_the_one_thread_that_torchrun_sets_for_its_ranks_is_theirs():
    torchruns = {"TORCHELASTIC_RUN_ID": "x", "OMP_NUM_THREADS": "1"}
    assert without_ranks(torchruns) == {}
    assert without_ranks({"OMP_NUM_THREADS": "1"}) == {"OMP_NUM_THREADS": "1"}


def test_what_is_forgotten_is_said_where_it_matters():
    environment = USERS | RANKS | STEP
    assert forget_ranks(environment) == "RANK=3 and WORLD_SIZE=8 of the environment"
    assert environment == USERS | STEP
    assert forget_ranks({"RANK": "0", "WORLD_SIZE": "1"}) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"WORLD_SIZE": None}, "RANK=3 is set, but not WORLD_SIZE"),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "not MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "three"}, "RANK='three' of the environment is not a whole number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE='-1'"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK=''"),
        ({"WORLD_SIZE": "3"}, "RANK=3 is not below WORLD_SIZE=3"),
    ],
)
def test_ranks_that_are_not_whole_are_one_line(change, message):
    environment = {name: value for name, value in (RANKS | change).items() if value is not None}
    with pytest.raises(UserError) as caught:
        check_ranks(environment)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
         "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
        ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK",
         "MV2_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_RANK", "PMI_SIZE", "", ""),
    ],
)  # fmt: skip
def test_processes_of_mpi_become_ranks(names):
    environment = dict(zip(names, ("1", "2", "1", "2"), strict=True))
    take_mpi_ranks(environment)
    found = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    assert found == {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert environment["MASTER_ADDR"] == "127.0.0.1"
    if names[3]:
        environment |= {names[1]: "4"}
        del environment["MASTER_ADDR"]
        with pytest.raises(UserError, match="several machines: set MASTER_ADDR"):
            take_mpi_ranks(environment)


@pytest.mark.parametrize(
    ("name", "is_rank"),
    [("torchrun", True), ("mpirun", True), ("orted", True), ("accelerate", True), ("make", False)],
)
def test_who_starts_ranks_is_known_by_name(name, is_rank, tmp_path):
    starter = tmp_path / name
    starter.write_text("import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))\n")
    ask = "from elemdist.rank_variables import starter, in_mpi; print(starter(), in_mpi())"
    done = subprocess.run(
        [sys.executable, starter, sys.executable, "-c", ask], cwd=REPOSITORY, text=True,
        capture_output=True, env={"PATH": "", "OMPI_COMM_WORLD_SIZE": "2"},
    )  # fmt: skip
    expected = f"{name} {name in ('mpirun', 'orted')}" if is_rank else " False"
    assert done.stdout == expected + "\n", done.stderr


def test_no_verb_becomes_another_by_what_surrounds_it(labelled, tmp_path):
    """The ranks that RANK and srun's variables speak of would be waited for without an end."""
    surrounded = RANKS | STEP | JOB | {"SLURM_CONF": "/none"}
    words = [*TINY, "--objective", "classify", "--data.train", labelled / "train", "--steps", "3"]
    words += ["--checkpoint-every", "0"]
    told = {}
    for name, ranks, more in (("plain", 1, {}), ("one", 1, surrounded), ("two", 2, surrounded)):
        run = tmp_path / name
        done = elemdist(
            "train", *words, "--ranks", str(ranks), "--run-dir", run, timeout=90,
            **more | {"OMP_NUM_THREADS": "2"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told[name] = [metrics(run)[step]["loss"] for step in (1, 2, 3)]
    assert told["one"] == told["plain"]
    assert told["two"] == pytest.approx(told["plain"], rel=1e-5)
    assert "RANK=3 and WORLD_SIZE=8 of the environment are not taken" in done.stderr
    assert "the variables of a step of srun are not taken" in done.stderr
    run, text = tmp_path / "plain", tmp_path / "text.txt"
    text.write_text("storm and frost\n")
    for words in (["eval", run, "--data", labelled / "val"], ["predict", run, text]):
        plain, other = elemdist(*words), elemdist(*words, timeout=60, **surrounded)
        assert (plain.returncode, other.returncode) == (0, 0), plain.stderr + other.stderr
        assert plain.stdout == other.stdout
    done = elemdist("export", run, "--out", tmp_path / "export", timeout=60, **surrounded)
    assert done.returncode == 0, done.stderr
