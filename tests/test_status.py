"""How a run stands, out of its folder alone: no SLURM answers here, whether there is one or not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from elemdist.attempts import Attempt
from elemdist.stop import write_end
from tests.conftest import elemdist, expect_user_error


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was training when it was last heard of."""
    run = tmp_path / "run"
    (run / "launch").mkdir(parents=True)
    Attempt.begin(run, {"job": "77"})
    figures = {"kind": "train", "step": 20, "loss": 2.5, "bytes_per_s": 4096.0}
    (run / "metrics.jsonl").write_text(json.dumps(figures) + "\n")
    (run / "checkpoints" / "step-00000010").mkdir(parents=True)
    write_end(run, "running", 0, attempt=1)
    return run


@pytest.fixture(autouse=True)
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm.conf").touch()  # a missing one would be waited for, for a minute
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))


def status(run: Path) -> dict:
    done = elemdist("status", run, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_state_of_a_job_is_unclear_where_slurm_cannot_be_asked(run):
    found = status(run)
    assert (found["state"], found["reason"]) == ("unclear", "SLURM does not answer")
    assert (found["step"], found["loss"], found["checkpoint"]) == (20, 2.5, 10)
    assert (found["attempts"], found["eta_s"]) == (1, None)


def test_what_is_seen_to_live_runs(run):
    Attempt(run, 1).hold()
    assert status(run)["state"] == "runs"


def test_without_a_job_a_run_that_is_not_seen_to_live_has_ended(run):
    Attempt(run, 1).write("begin", {})
    found = status(run)
    assert (found["state"], found["reason"]) == ("ended", "nobody could say why")


def test_an_end_that_was_told_needs_no_slurm(run):
    write_end(run, "stopped", 30, "elemdist cancel", 75, attempt=1)
    found = status(run)
    assert (found["state"], found["step"], found["reason"]) == ("stopped", 30, "elemdist cancel")


def test_a_job_cannot_be_cancelled_where_slurm_cannot_be_asked(run):
    done = elemdist("cancel", run)
    expect_user_error(done, "squeue")
    assert Attempt(run, 1).asked_to_stop() is None


def test_the_log_of_such_a_job_is_followed_until_somebody_says_that_it_has_ended(run):
    (Attempt(run, 1).folder / "rank-00000.log").write_text("step 20/60\n")
    write_end(run, "done", 60, attempt=1)
    done = elemdist("logs", run, "--follow", timeout=30)
    assert done.stdout == "step 20/60\n"


def test_the_table_has_a_line_for_each_run_and_the_reason_below(run, tmp_path):
    done = elemdist("status", tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert re.search(r"run +unclear +20/0 +2\.5000 +4\.1 kB/s +10 +1$", lines[1]), lines[1]
    assert lines[2].strip() == "SLURM does not answer"
