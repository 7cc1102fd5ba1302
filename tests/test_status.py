"""How a run stands, out of its folder alone: no SLURM answers here, whether there is one or not."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from elemdist import commandline
from elemdist.attempts import Attempt
from elemdist.config import TrainSettings
from elemdist.stop import write_end
from launcher.status import status_of, steps_of, table
from tests.conftest import ELEMDIST, REPOSITORY, elemdist, expect_user_error


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


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\u202e\u2028\nnext"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\u202e\u2028\nnext"


def test_what_a_run_folder_says_sends_nothing_to_the_terminal(run):
    name = run.with_name("run " + HOSTILE.replace("/", ""))
    run.rename(name)
    Attempt(name, 1).write("begin", {})
    write_end(name, "failed", 7, f"reason {HOSTILE}", 1, attempt=1)
    done = elemdist("status", name)
    assert done.returncode == 0, done.stderr
    _, line, reason = done.stdout.splitlines()
    assert line.startswith(f"{name.parent}/run {SHOWN}  failed ")
    assert reason.strip() == f"reason {SHOWN}"
    assert json.loads(elemdist("status", name, "--json").stdout)["reason"] == f"reason {HOSTILE}"
    expect_user_error(elemdist("logs", name), SHOWN)


def test_a_log_is_escaped_on_a_terminal_and_as_it_is_elsewhere(run):
    """A script(1) of our own: the command on a terminal, and what it shows."""
    text = f"step 1\tloss 2\n{HOSTILE} 日本\n"
    (Attempt(run, 1).folder / "rank-00000.log").write_text(text, newline="")
    piped = elemdist("logs", run)
    assert HOSTILE[:8] in piped.stdout
    seen = on_a_terminal("logs", run)
    assert seen.replace("\r\n", "\n") == f"step 1\tloss 2\n{SHOWN[:-6]}\nnext 日本\n"


def on_a_terminal(*words: object) -> str:
    ours, theirs = pty.openpty()
    with subprocess.Popen([ELEMDIST, *map(str, words)], stdout=theirs, cwd=REPOSITORY) as process:
        os.close(theirs)
        found = b""
        with contextlib.suppress(OSError):  # a terminal without its program
            while data := os.read(ours, 1 << 16):
                found += data
    os.close(ours)
    assert process.returncode == 0
    return found.decode()


def test_the_last_lines_of_a_long_log_are_those(run):
    lines = [f"{number} {'x' * 100}" for number in range(5000)]
    (Attempt(run, 1).folder / "rank-00000.log").write_text("\n".join(lines) + "\n")
    for count in (1, 50, 2000, 0):
        shown = elemdist("logs", run, "--lines", str(count)).stdout.splitlines()
        assert shown == lines[-count:]


METRICS = [
    b"", b"\n\n", b"\0" * 70_000, b"[" * 200_000, b'{"kind": "train", "step": 1e999}\n', b"\xff\n",
    b'{"kind": "train", "step": "x"}\n', b'{"kind": "train"}\n', b'{"kind": "tr',
    b'{"kind": "event", "step": 99, "time_s": 1}\n', b"x" * 200_000,
]  # fmt: skip


@pytest.mark.parametrize("line", METRICS, ids=range(len(METRICS)))
def test_metrics_of_any_kind_end_nothing(run, line):
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(line)
    found = status_of(run, None)
    assert (found.step, found.loss) in ((20, 2.5), (0, None))
    assert found.step == 20 or len(line) > 1 << 16


PASSED_OVER = {
    b"": "", b"\n\n": "", b'{"kind": "tr': "",
    b'{"kind": "train"}\n': "1 damaged line at its end",
    b"\xff\n[]\n": "2 damaged lines at its end",
    b'\0\0\0\n{"kind": "tr': "1 damaged line at its end",
}  # fmt: skip


@pytest.mark.parametrize("line", PASSED_OVER)
def test_damaged_lines_that_are_passed_over_are_counted(run, line, capsys):
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(line)
    assert status_of(run, None).step == 20
    words, said = PASSED_OVER[line], capsys.readouterr().err
    assert said == (f"elemdist status: {run}/metrics.jsonl: {words} passed over\n" if words else "")


@pytest.mark.parametrize("made", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)])
def test_metrics_that_cannot_be_read_are_said(run, made, capsys):
    (run / "metrics.jsonl").unlink()
    made(run / "metrics.jsonl")
    assert status_of(run, None).step == 0
    said = capsys.readouterr().err
    assert said.startswith(f"elemdist status: cannot read {run}/metrics.jsonl: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"x"', "[1]", "{}", "true"])
def test_what_is_no_number_is_not_shown(run, value):
    names = ("loss", "bytes_per_s", "samples", "samples_per_s")
    figures = ", ".join(f'"{name}": {value}' for name in names)
    (run / "metrics.jsonl").write_text(f'{{"kind": "train", "step": 30, {figures}}}\n')
    Attempt(run, 1).hold()
    found = status_of(run, None)
    assert (found.state, found.step, found.loss, found.bytes_per_s) == ("runs", 30, None, None)
    assert found.eta_s is None
    assert "nan" not in "".join(table([found]))


# Nine of nine of nine ...: 600 bytes that stand for half a billion values.
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("steps: 60\n", 60),
        ("{steps: 70, model: {layers: 2}}\n", 70),
        ("a: &a {steps: 5}\nmodel: *a\n", TrainSettings.steps),
        ('"steps": "80"\n', 80),
        ("model: {steps: 5}\n", TrainSettings.steps),
        ("steps: [1]\n", 0),
        ("steps: -5\n", 0),
        ("- steps\n", 0),
        ("steps: 1: 2\n", 0),
        (BOMB + "steps: 9\n", 0),
    ],
    ids=range(10),
)  # fmt: skip
def test_how_many_steps_there_are_is_read_and_nothing_else(run, text, steps):
    (run / "settings.yaml").write_text(text)
    assert steps_of(run) == steps


def test_many_runs_need_no_parser_of_all_settings(run, monkeypatch):
    built = []
    monkeypatch.setattr(commandline.Parser, "__init__", lambda *a, **k: built.append(1))
    text = (REPOSITORY / "configs" / "tiny.yaml").read_text()
    for number in range(20):
        other = run.with_name(f"other-{number}")
        shutil.copytree(run, other)
        (other / "settings.yaml").write_text(text)
        assert status_of(other, None).steps > 0
    assert built == []


def test_the_table_has_a_line_for_each_run_and_the_reason_below(run, tmp_path):
    done = elemdist("status", tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert re.search(r"run +unclear +20/0 +2\.5000 +4\.1 kB/s +10 +1$", lines[1]), lines[1]
    assert lines[2].strip() == "SLURM does not answer"


def test_a_run_without_logs_and_a_name_like_an_option_are_said(run, tmp_path):
    expect_user_error(elemdist("logs", run), "no such log; that attempt kept none")
    shutil.copytree(run, tmp_path / "-run a")
    made = elemdist("status", "-run a", cwd=tmp_path)
    expect_user_error(made, "unknown option -run a; the file: './-run a'")
    assert elemdist("status", "./-run a", cwd=tmp_path).returncode == 0
