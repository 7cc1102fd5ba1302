"""`elemdist launch` without SLURM: what it refuses, what --dry-run prints, and runs that it sees
through on this machine, with `status`, `logs`, `cancel` and `resume`. On a SLURM: tests/cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from elemdist.attempts import Attempt, numbers
from elemdist.errors import UserError
from elemdist.stop import read_end
from elemdist.units import counted
from launcher.launch import run as launch
from launcher.local import count_gpus
from launcher.progress import newest_step
from launcher.settings import CLUSTERS, read
from tests.conftest import (
    ELEMDIST,
    REPOSITORY,
    TINY,
    elemdist,
    expect_user_error,
    metrics,
    wait_until,
)
from tests.test_elastic import same_run

STEPS = 300
LOCAL = [
    "--local", *TINY, "--steps", str(STEPS), "--checkpoint-every", "10", "--eval-every", "0",
    "--ranks-per-node", "2", "--retry.pause-s", "0.1",
]  # fmt: skip


def start(data: Path, run: Path, log: Path, *more: str) -> subprocess.Popen[bytes]:
    words = [ELEMDIST, "launch", *LOCAL, "--data.train", data / "train", "--run-dir", run, *more]
    with open(log, "ab") as file:
        return subprocess.Popen(
            list(map(str, words)), stdout=file, stderr=file, cwd=REPOSITORY, env=os.environ
        )


def ranks_of(run: Path) -> list[int]:
    """The processes that train a run."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(run).encode() in words and any(word.endswith(b"/train.py") for word in words[:4]):
            found.append(int(entry))
    return sorted(found)


def test_a_rank_that_is_killed_costs_an_attempt_and_a_run_ends_as_it_would(packed, tmp_path):
    plain = elemdist(
        "train", *TINY, "--steps", str(STEPS), "--eval-every", "0", "--ranks", "2",
        "--data.train", packed / "train", "--run-dir", tmp_path / "plain",
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    run, log = tmp_path / "a run's folder", tmp_path / "log"
    process = start(packed, run, log)
    wait_until(lambda: newest_step(run) >= 20, "the run", 180, log.read_text)
    status = json.loads(elemdist("status", run, "--json").stdout)
    assert (status["state"], status["steps"], status["attempts"]) == ("runs", STEPS, 1)
    assert status["step"] >= 20
    os.kill(ranks_of(run)[-1], signal.SIGKILL)
    assert process.wait(300) == 0, log.read_text()
    shown = log.read_text()
    assert f"follows, and stays in {run}/attempts" in shown
    for number in (1, 2):
        part = shown.partition(f"attempt {number} on ")[2].partition(f"attempt {number} ended")[0]
        kept = Attempt(run, number).folder / "rank-00000.log"
        assert kept.read_text() in part, "all that the ranks printed, as it came"
    same_run(run, tmp_path / "plain", STEPS)
    end = Attempt(run, 1).read("end")
    assert (numbers(run), end["kind"]) == ([1, 2], "lost rank")
    assert end["step"] >= end["after"] >= 20
    table = elemdist("status", tmp_path).stdout
    assert re.search(rf"done +{STEPS}/{STEPS} .* {STEPS} +2\n", table), table
    assert f"step {STEPS}/{STEPS}" in elemdist("logs", run, "--lines", "3").stdout
    assert "step 1/" in elemdist("logs", run, "--attempt", "1", "--lines", "0").stdout
    expect_user_error(elemdist("logs", run, "--attempt", "7"), "no such log; its attempts are 1, 2")
    again = elemdist("launch", *LOCAL, "--data.train", packed / "train", "--run-dir", run)
    assert "nothing to do" in again.stdout


def test_cancel_saves_and_now_does_not_and_resume_goes_on(packed, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(packed, run, log, "--checkpoint-every", "0")
    wait_until(lambda: numbers(run) and "step 20/" in rank_log(run), "the run", 180, log.read_text)
    out = elemdist("cancel", run)
    assert process.wait(60) == 75, log.read_text()
    saved = newest_step(run)
    assert saved >= 20
    assert f"stopped after step {saved}, checkpoint of step {saved}" in out.stdout
    assert "elemdist cancel" in log.read_text()
    process = subprocess.Popen([ELEMDIST, "resume", run], cwd=REPOSITORY)
    wait_until(
        lambda: len(numbers(run)) > 1 and f"step {saved + 20}/" in rank_log(run),
        "the run",
        180,
        log.read_text,
    )
    assert elemdist("cancel", run, "--now").returncode == 0
    assert process.wait(60) == 130
    assert newest_step(run) == saved
    assert ranks_of(run) == []
    expect_user_error(elemdist("cancel", run), "nothing runs here")
    done = elemdist("resume", run, "--steps", str(saved + 5), "--ranks-per-node", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(metrics(run)) == list(range(1, saved + 6))


def rank_log(run: Path) -> str:
    newest = Attempt.newest(run)
    path = newest.folder / "rank-00000.log" if newest else run
    return path.read_text() if path.is_file() else ""


def test_a_mistake_is_not_tried_again(packed, tmp_path):
    data = tmp_path / "data"
    subprocess.run(["cp", "-r", packed / "train", data], check=True)
    next(data.glob("shard.*.mds")).unlink()
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*LOCAL, "--data.train", str(data), "--run-dir", str(run)]
    done = elemdist("launch", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert numbers(run) == [1], "one attempt"
    assert "given up" in done.stdout
    assert "missing" in done.stdout
    status = json.loads(elemdist("status", run, "--json").stdout)
    assert "missing" in status["reason"], status
    assert not log.exists()


def test_a_sweep_is_a_run_for_each_entry(packed, tmp_path):
    sweep, runs = tmp_path / "sweep.yaml", tmp_path / "runs"
    sweep.write_text("- {seed: 1}\n- {optim: {lr: 1.0e-3}, steps: 4}\n")
    words = [*LOCAL, "--data.train", packed / "train", "--run-dir", runs, "--steps", "3"]
    done = elemdist("launch", *words, "--sweep", sweep, "--ranks-per-node", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = runs / "000-seed=1", runs / "001-lr=0.001,steps=4"
    assert sorted(runs.iterdir()) == [first, second]
    assert [read_end(run)["step"] for run in (first, second)] == [3, 4]
    assert yaml.safe_load((second / "settings.yaml").read_text())["optim"]["lr"] == 1e-3
    lines = elemdist("status", runs).stdout.splitlines()
    assert [line.split()[1:3] for line in lines[1:]] == [["done", "3/3"], ["done", "4/4"]]


def refusal(*words: str | Path) -> str:
    """Why `elemdist launch` refuses; in this process, which has imported torch."""
    with pytest.raises(UserError) as caught:
        launch([str(word) for word in words], None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1", "expected a list"),
        ("[]", "expected a list"),
        ("- {sede: 1}", "entry 0: unknown key 'sede'; did you mean 'seed'"),
        ("- {seed: 1}\n- {steps: many}", "entry 1: "),
        ("- {nodes: 2}", "entry 0: nodes is the same for all runs of a sweep"),
        ("- {slurm: {time: '1:00'}}", "entry 0: slurm.time is the same for all"),
        ("- {seed: 1", "not valid YAML"),
    ],
)
def test_mistakes_in_a_sweep(text, message, packed, tmp_path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(text)
    words = ["--data.train", packed / "train", "--run-dir", tmp_path / "runs", "--device", "cpu"]
    assert message in refusal(*words, "--sweep", sweep)
    assert not (tmp_path / "runs").exists()


LARGE = ["--model.width", "8192", "--model.layers", "96", "--model.heads", "64"]


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ([], ["there is no SLURM here", "add --local"]),
        (["--slurm.time", "4:00"], ["slurm.time: 4:00 is not longer than the 300 s"]),
        (["--run-dir", "/proc/none", "--local"], ["cannot write into /proc/none", "--run-dir"]),
        (["--device", "auto", *LARGE], ["a GPU has 80", "elemdist plan"]),
        (["--batch.global-samples", "1", "--nodes", "2"], ["batch"]),
        (["--nodes", "2", "--sequence-parallel", "2", "--model.heads", "3"], ["heads"]),
        (["--cluster", "nowhere"], ["cluster: there is no", "known: example"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_submitted(
    words, messages, packed, tmp_path, monkeypatch
):
    path = tmp_path / "path"
    path.mkdir()  # without sbatch
    run = ["--data.train", packed / "train", "--run-dir", tmp_path / "run", *TINY]
    monkeypatch.setenv("PATH", str(path))
    told = refusal(*run, *words)
    for message in messages:
        assert message in told
    assert not (tmp_path / "run").exists()


def test_a_refusal_is_told_in_one_line_with_exit_code_2(packed, tmp_path):
    run = ["--data.train", packed / "train", "--run-dir", tmp_path / "run", *TINY]
    expect_user_error(elemdist("launch", *run, PATH=str(tmp_path)), "there is no SLURM here")


def test_the_example_of_a_cluster_is_right_in_what_it_leaves_out_too(tmp_path):
    text = (CLUSTERS / "example.yaml").read_text()
    whole = re.sub(r"^( *)# (\w+: )", r"\1\2", text, flags=re.MULTILINE)
    path = tmp_path / "ours.yaml"
    path.write_text(whole)
    settings = read(["--cluster", str(path), "--run-dir", "base"], "elemdist launch")
    settings.check_launch()
    assert whole != text
    assert settings.slurm.container == "apptainer"
    assert settings.data.train == "/shared/shards/train"
    assert str(settings.run_folder()) == "/shared/runs/base"
    settings.run_dir = "/elsewhere/base"
    assert str(settings.run_folder()) == "/elsewhere/base"


def test_here_there_are_as_many_ranks_as_gpus_and_no_job(packed, tmp_path):
    words = ["--data.train", packed / "train", "--run-dir", tmp_path / "run", *TINY, "--dry-run"]
    words += ["--device", "auto", "--cluster", "example", "--batch.global-samples", "64"]
    done = elemdist("launch", *words, "--local")
    assert done.returncode == 0, done.stderr
    gpus = count_gpus()
    assert f" x {counted(max(1, gpus), 'rank')} x " in done.stdout
    assert " of 24:00:00" not in done.stdout
    assert "slurm" not in done.stdout.partition("# here:")[2]


def test_a_dry_run_prints_all_and_writes_nothing(packed, tmp_path):
    run = tmp_path / "a run"
    words = ["--data.train", packed / "train", "--run-dir", run, *TINY, "--cluster", "example"]
    more = ["--nodes", "2", "--spare-nodes", "1", "--links", "2", "--dry-run", "--device", "auto"]
    done = elemdist("launch", *words, *more, PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not run.exists()
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("env ")]
    for part in (
        "--nodes=3 --ntasks-per-node=8 --time=24:00:00 --signal=B:USR2@300", "--no-kill",
        "--gpus-per-node=8", "--partition=gpu", "--cpus-per-task=12", "--dependency=singleton",
        "slurm/train.sbatch", f"'{run}/launch/launch.yaml'",
    ):  # fmt: skip
        assert part in line, line
    assert "# submitted, 2 times:" in done.stdout
    assert "the cluster would refuse it, or is not here: there is no SLURM here" in done.stdout
    text = done.stdout.partition("for the ranks\n")[2].partition("\n# ")[0]
    assert yaml.safe_load(text)["data"]["train"] == str(packed / "train")
    assert re.search(r"time: \d+:\d\d at 40% of the peak \(--mfu\): 1 job", done.stdout)
