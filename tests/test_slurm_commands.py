"""SLURM's commands as sites have them: missing, slow, failing, with lines of their own before what
is asked for. Real ones run in tests/cluster."""

from __future__ import annotations

import pytest

from elemdist.attempts import Attempt
from elemdist.errors import UserError
from elemdist.slurm_ranks import addresses_of
from launcher import slurm
from launcher.local import count_gpus
from launcher.own_job import OwnJob, own_job
from launcher.places import InJob
from launcher.run_jobs import job_name, jobs_of, note_jobs
from launcher.settings import LaunchSettings
from launcher.supervise import is_local
from launcher.supervise import run as supervise

STEP = {"SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
NOISE = "echo 'site: maintenance | on \xff Monday' ; echo 'slurm: warning' >&2; "


@pytest.fixture
def command(tmp_path, monkeypatch):
    """command(name, script) puts one on the PATH, where no other is."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name: str, script: str, mode: int = 0o755) -> None:
        path = tmp_path / name
        path.write_bytes(b"#!/bin/sh\n" + script.encode("latin-1") + b"\n")
        path.chmod(mode)

    return put


def refusal(ask, *words: object) -> str:
    with pytest.raises(UserError) as caught:
        ask(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_any_of_them_there_is_no_slurm_here(command):
    for ask in (slurm.jobs, slurm.partitions, lambda: slurm.submit([], {})):
        assert "there is no SLURM here" in refusal(ask)


@pytest.mark.parametrize(
    ("missing", "there", "ask"),
    [
        ("sbatch", "squeue", lambda: slurm.submit([], {})),
        ("squeue", "sbatch", slurm.jobs),
        ("sinfo", "sbatch", slurm.partitions),
        ("scontrol", "srun", lambda: own_job({"SLURM_JOB_ID": "71"})),
    ],
)
def test_one_that_is_missing_is_named(missing, there, ask, command):
    command(there, "exit 0")
    told = refusal(ask)
    assert f"{missing} is not on the PATH here, though {there} is" in told


def test_one_that_may_not_be_run_says_so(command):
    command("squeue", "exit 0", mode=0o644)
    assert "squeue cannot be run: Permission denied" in refusal(slurm.jobs)


def test_a_slow_one_and_one_without_a_controller_do_not_answer(command, monkeypatch):
    monkeypatch.setattr(slurm, "TIMEOUT_S", 0.2)
    command("squeue", "exec /bin/sleep 30")
    with pytest.raises(slurm.Unreachable, match=r"squeue took 0.2 s"):
        slurm.jobs()
    command("sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(slurm.Unreachable, match="sinfo reaches no SLURM"):
        slurm.partitions()
    command("sbatch", "echo 'sbatch: error: QOS is over its limit' >&2; exit 1")
    assert refusal(lambda: slurm.submit([], {})) == "sbatch: QOS is over its limit"


def test_one_that_is_ended_with_the_job_is_asked_once_more(command, tmp_path):
    """SLURM's signal reaches all that runs in a job."""
    first = f"[ -e '{tmp_path}/asked' ] || {{ : > '{tmp_path}/asked'; kill -TERM $$; }}; "
    command("squeue", f"{first} echo '71|a-run|RUNNING|None|n1|1:00|now'")
    assert [job.id for job in slurm.jobs()] == ["71"]
    (tmp_path / "asked").unlink()
    command("scontrol", f"{first} echo 'NodeName=n1 Arch=x86_64 NodeAddr=10.0.0.1 Port=1'")
    assert addresses_of("n1") == {"n1": "10.0.0.1"}


@pytest.mark.parametrize("printed", ["71", "71;theirs"])
def test_the_number_of_a_job_stands_after_what_a_site_prints(printed, command):
    command("sbatch", f"{NOISE} echo '{printed}'")
    assert slurm.submit([], {}) == "71"
    command("sbatch", NOISE)
    assert "sbatch does not say the number of the job, but: maintenance" in refusal(
        lambda: slurm.submit([], {})
    )


def test_other_lines_are_neither_jobs_nor_partitions(command):
    command("squeue", f"{NOISE} echo '71|a-run|RUNNING|None|n1|1:00|now'")
    assert [job.id for job in slurm.jobs()] == ["71"]
    command("sinfo", f"{NOISE} for p in 'main*' high 'main*'; do echo \"partition=$p\"; done")
    assert slurm.partitions() == ["main*", "high"]


LINE = (
    "JobId={0} {1}JobName=a run UserId=me(7) JobState={2} Requeue=1 Restarts={3} NodeList=n[1-2]"
    " BatchHost=n1 NumNodes=2 NumCPUs=16 NumTasks=4 CPUs/Task=4 TRES=cpu=16,node=2 JOB_GRES=gpu:6"
    " Nodes=n1 CPU_IDs=0-7 Mem=0 GRES=gpu:a100:2(IDX:0-1),gpu:h100:2(IDX:2-3) Nodes=n2 CPU_IDs=0-7"
    " Mem=0 GRES=gpu:2(IDX:0-1) Command=/slurm/train.sbatch t.yaml"
)
INHERITED = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "0", "SLURM_RESTART_COUNT": "5"}


def test_a_job_is_what_its_own_number_says(command):
    """Not what it has inherited from the task of an array in which it was submitted."""
    command("scontrol", f"{NOISE} echo '{LINE.format(71, '', 'RUNNING', 1)}'")
    job = own_job(INHERITED | {"SLURM_JOB_ID": "71", "SLURM_GPUS_PER_NODE": "8"})
    assert (job.number, job.id, job.task, job.name) == (71, "71", "", "a run")
    assert (job.nodes, job.tasks, job.cpus, job.gpus) == (["n1", "n2"], 2, 4, 2)
    assert (job.restarts, job.is_mixed) == (1, False)


def test_the_last_task_of_an_array_whose_number_is_that_of_all_is_that_task(command):
    tasks = [
        LINE.format(number, f"ArrayJobId=70 ArrayTaskId={task} ", "RUNNING", 0)
        for number, task in ((71, 3), (70, 4))
    ]
    command("scontrol", "\n".join(f"echo '{line}'" for line in tasks))
    assert own_job(INHERITED | {"SLURM_JOB_ID": "70"}).id == "70_4"
    assert own_job(INHERITED | {"SLURM_JOB_ID": "71"}).id == "70_3"


def test_the_first_part_of_a_heterogeneous_job_is_the_job(command):
    parts = [
        LINE.format(number, f"HetJobId=70 HetJobOffset={number - 70} ", "RUNNING", 0)
        for number in (70, 71)
    ]
    command("scontrol", "\n".join(f"echo '{line}'" for line in parts))
    job = own_job({"SLURM_JOB_ID": "70"})
    assert (job.id, job.is_mixed) == ("70", True)


@pytest.mark.parametrize(
    ("number", "script"),
    [
        ("71", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"),
        ("71", f"echo '{LINE.format(71, '', 'COMPLETED', 0)}'"),
        ("71", f"echo '{LINE.format(72, '', 'RUNNING', 0)}'"),
        ("none", "exit 1"),
    ],
)
def test_a_number_of_another_time_is_no_job(number, script, command):
    command("scontrol", script)
    told = refusal(lambda: own_job({"SLURM_JOB_ID": number}))
    assert f"SLURM_JOB_ID={number} is no job that runs" in told
    assert "--local" in told


def queued(number: str, name: str) -> slurm.Job:
    return slurm.Job(number, name, "PENDING", "None", "", "1:00", "N/A")


def test_a_number_of_a_run_is_its_job_only_under_its_name(tmp_path):
    run = tmp_path / "run"
    attempt = Attempt.begin(run, {"job": "71", "name": "elemdist-train"})
    same, other = queued("71", "elemdist-train"), queued("71", "theirs")
    assert jobs_of(run, [same, queued("72", "elemdist-train")]) == [same]
    assert jobs_of(run, [other]) == [], "the cluster has begun to count anew"
    (run / "launch").mkdir()
    note_jobs(run, ["80_3"])
    task = queued("80_3", job_name(tmp_path))
    assert jobs_of(run, [task, other]) == [task]
    named = queued("90", job_name(run))
    assert jobs_of(run, [task, named]) == [named]
    assert attempt.number == 1


@pytest.mark.parametrize(
    ("name", "task", "numbers", "expected"),
    [
        ("the run's", "", ["71", "72", "73"], ["72", "73"]),
        ("the run's", "", [], []),
        ("elemdist-train", "", ["71", "72", "73"], []),
        ("the run's", "3", ["71", "72", "73"], []),
    ],
)
def test_the_other_links_of_a_chain_are_those_that_the_run_was_launched_as(
    name, task, numbers, expected, tmp_path, command
):
    """Jobs by hand have one name, and to cancel or to wait for others' would be wrong."""
    run = tmp_path / "run"
    (run / "launch").mkdir(parents=True)
    note_jobs(run, numbers)
    name = job_name(run) if name == "the run's" else name
    lines = [f"echo '{number}|{name}|PENDING|None|||'" for number in (71, 72, 73, 74)]
    command("squeue", "; ".join(lines))
    job = OwnJob(71, "71", task, name, ["n1"], tasks=1, cpus=1, gpus=0, restarts=0)
    place = InJob(LaunchSettings(), run, run, job)
    assert [job.id for job in place.others()] == expected
    command("scancel", f"echo \"$@\" >> '{tmp_path}/cancelled'")
    place.finish()
    cancelled = tmp_path / "cancelled"
    assert (cancelled.read_text().split() if cancelled.exists() else []) == expected


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, 4), ("", 0), ("0,1", 2), ("7", 1), ("-1", 0), ("0,-1,1", 1), ("GPU-a,MIG-b", 2)],
)
def test_the_gpus_that_are_seen(visible, expected, monkeypatch):
    monkeypatch.setattr("launcher.local.all_gpus", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus() == expected


def test_supervisors_that_srun_has_started_side_by_side_are_refused(monkeypatch, tmp_path):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("elemdist.slurm_ranks.step_of_process", lambda _: "71.0")
    told = refusal(supervise, ["--run-dir", str(tmp_path / "run")], None)
    assert "srun has started several of this" in told
    assert "sbatch" in told


def test_a_shell_with_the_number_of_some_job_is_in_none(monkeypatch, tmp_path, command):
    """Nor does it wait for its controller, as a job does."""
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    monkeypatch.setattr("launcher.supervise.step_of_process", lambda _: "")
    command("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    told = refusal(supervise, ["--run-dir", str(tmp_path / "run")], None)
    assert "scontrol reaches no SLURM from here" in told
    assert is_local(["--local", "--run-dir", "x"])
    assert is_local(["--help"])
    assert not is_local(["/runs/tasks/%a.yaml"])
