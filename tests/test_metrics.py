"""Metrics: the lines, TensorBoard, Weights & Biases, and disks that are full."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from elemdist import metrics_file
from elemdist.communication import Count, Traffic
from elemdist.errors import UserError
from elemdist.metrics import Reporter, peak_memory_bytes, progress_line, step_figures
from elemdist.metrics_file import drop_after
from tests.conftest import NO_BYTECODE, REPOSITORY, run_command

FIGURES = {"loss": 2.5, "grad_norm": math.nan, "lr": 1e-3, "bits_per_byte/wiki": 1.5, "note": "x"}


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def scalars(run: Path, tag: str) -> dict[int, float]:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    steps = [event.step for event in board.Scalars(tag)]
    assert len(steps) == len(set(steps)), "a step is shown twice"
    return {event.step: event.value for event in board.Scalars(tag)}


def test_a_line_holds_kind_step_time_and_figures(tmp_path):
    reporter = Reporter(tmp_path, 0)
    reporter.write("train", 1, FIGURES)
    reporter.write("eval", 1, {"loss": 2.0})
    reporter.event(1, "checkpoint", path="step-00000001", seconds=math.inf)
    reporter.close()
    train, held_out, event = lines(tmp_path)
    assert train == {
        **FIGURES, "kind": "train", "step": 1, "time_s": train["time_s"], "grad_norm": None,
    }  # fmt: skip
    assert 0 <= train["time_s"] <= held_out["time_s"] <= event["time_s"] < 10
    assert (event["kind"], event["event"], event["step"]) == ("event", "checkpoint", 1)
    assert event["seconds"] is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert scalars(tmp_path, "train/loss") == {1: 2.5}
    assert scalars(tmp_path, "train/bits_per_byte/wiki") == {1: 1.5}
    assert math.isnan(scalars(tmp_path, "train/grad_norm")[1])
    assert scalars(tmp_path, "eval/loss") == {1: 2.0}


def test_a_resumed_run_drops_later_steps_and_goes_on_in_time(tmp_path):
    reporter = Reporter(tmp_path, 0)
    for step in (1, 2, 3, 4):
        time.sleep(0.02)
        reporter.write("train", step, {"loss": float(step)})
    reporter.close()
    spent = lines(tmp_path)[1]["time_s"]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5, "ti')  # killed within a line
    again = Reporter(tmp_path, 2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    again.write("train", 3, {"loss": 30.0})
    again.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert spent <= lines(tmp_path)[2]["time_s"] < spent + 5
    assert scalars(tmp_path, "train/loss") == {1: 1.0, 2: 2.0, 3: 30.0}


def test_a_rollback_drops_later_steps_and_time_goes_on(tmp_path):
    reporter = Reporter(tmp_path, 0)
    for step in (1, 2, 3):
        reporter.write("train", step, {"loss": float(step)})
    before = lines(tmp_path)[2]["time_s"]
    reporter.rewind(1)
    reporter.event(1, "rolled back", from_step=3)
    reporter.write("train", 2, {"loss": 20.0})
    reporter.close()
    assert [(line["kind"], line["step"]) for line in lines(tmp_path)] == [
        ("train", 1), ("event", 1), ("train", 2),
    ]  # fmt: skip
    assert lines(tmp_path)[2]["time_s"] >= before
    assert scalars(tmp_path, "train/loss") == {1: 1.0, 2: 20.0}


def test_lines_of_someone_else_are_no_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    mine = b'{"kind": "train", "step": 1, "time_s": 7.5}\n'
    foreign = [
        b"", b"[1, 2]", b"3", b'"step"', b"null", b"{}", b'{"step": "1", "time_s": 1}',
        b'{"step": 1}', b'{"step": true, "time_s": 1}', b'{"step": 1, "time_s": NaN}',
        b'{"step": 1, "time_s": null}', b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000,
    ]  # fmt: skip
    path.write_bytes(mine + b"\n".join(foreign) + b"\n" + mine + b"\xff")
    assert drop_after(path, 1) == (7.5, 14)
    assert path.read_bytes() == mine * 2
    before = path.stat().st_ino
    assert drop_after(path, 1) == (7.5, 0)
    assert path.stat().st_ino == before  # nothing to drop, nothing written
    assert drop_after(path, 0) == (0.0, 0)
    assert path.read_bytes() == b""
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl: it is a folder"):
        Reporter(tmp_path, 1)


@functools.cache
def stream(count: int) -> bytes:
    """Lines of training, and in them the event of a checkpoint that was saved five steps later."""
    lines = []
    for step in range(1, count + 1):
        lines.append({"kind": "train", "step": step, "time_s": step / 2, "loss": 1.0})
        lines.append({"kind": "event", "step": step - 5, "time_s": step / 2, "event": "checkpoint"})
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.mark.parametrize("end", [b"", b'{"kind": "tr', b"\0" * 5000, b"x" * (3 << 20), b"\n\n"])
@pytest.mark.parametrize("step", [0, 1, 900, 9_995, 10_000, 30_000])
def test_a_long_file_is_cut_at_its_end(tmp_path, step, end):
    """Events of earlier steps that stand beyond it stay; what is before is not read, and not
    written."""
    path, text = tmp_path / "metrics.jsonl", stream(10_000)
    path.write_bytes(text + end)
    inode = path.stat().st_ino
    time_s, foreign = drop_after(path, step)
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    every = [json.loads(line) for line in text.splitlines()]
    assert records == [record for record in every if record["step"] <= step]
    assert time_s == (records[-1]["time_s"] if records else 0.0)
    assert foreign == bool(end.strip())
    assert path.stat().st_ino == inode


def test_only_the_end_of_a_long_file_is_read(tmp_path, monkeypatch):
    path, blocks = tmp_path / "metrics.jsonl", []
    path.write_bytes(stream(20_000))
    whole = metrics_file.blocks_from_end
    monkeypatch.setattr(
        metrics_file, "blocks_from_end", lambda file: (blocks.append(1) or x for x in whole(file))
    )
    assert drop_after(path, 19_000) == (9_502.5, 0)
    assert (len(blocks), path.stat().st_size > 2 << 20) == (1, True)


def test_a_line_of_metrics_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics.jsonl: it is a pipe"):
        Reporter(tmp_path, 0)
    with pytest.raises(UserError, match=r"metrics.jsonl: it is a pipe"):
        list(metrics_file.records_of(tmp_path / "metrics.jsonl"))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from elemdist.metrics import Reporter

def most(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

run = Path(sys.argv[1])
reporter = Reporter(run, 0)
reporter.write("train", 1, {"loss": 1.0})
size = (run / "metrics.jsonl").stat().st_size
assert size < 150
most(200)  # a full disk: the next line is cut off within
for step in (2, 3, 4):
    reporter.write("train", step, {"loss": float(step), "note": "x" * 100})
text = (run / "metrics.jsonl").read_text()
assert size < len(text) <= 200, len(text)
most(resource.RLIM_INFINITY)
reporter.write("train", 5, {"loss": 5.0})
most(200)
reporter.event(6, "checkpoint")
most(resource.RLIM_INFINITY)
reporter.event(7, "stopped")
reporter.close()
"""


def test_a_full_disk_costs_nothing_but_a_line_that_says_so(tmp_path):
    done = run_command(sys.executable, "-c", FULL_DISK, tmp_path, **NO_BYTECODE)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = done.stdout.splitlines()
    # Once for each file of each time: the lines, TensorBoard, and the lines again.
    assert len(told) == 3, told
    assert all("cannot be written (File too large); training goes on" in line for line in told)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert scalars(tmp_path, "train/loss") == {step: float(step) for step in range(1, 6)}


def test_a_run_folder_that_vanishes_and_a_terminal_that_is_full_end_nothing(tmp_path):
    code = (
        "import shutil, sys; from pathlib import Path\n"
        "from elemdist.metrics import Reporter, tell\n"
        "run = Path(sys.argv[1], 'run'); reporter = Reporter(run, 0)\n"
        "shutil.rmtree(run); run.write_text('')\n"
        "reporter.write('train', 1, {'loss': 1.0}); tell('still here')\n"
        "run.unlink(); reporter.write('train', 2, {'loss': 1.0}); reporter.close()\n"
        "sys.stderr.write('done'); sys.stderr.flush(); import os; os._exit(0)"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=100, cwd=REPOSITORY,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "done")
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2]


def test_figures_of_a_step_are_means():
    counts = {
        "all_reduce": Count(4, 100, 150.0, 0.5),
        "broadcast": Count(2, 10, 5.0, 0.1),
    }
    figures = step_figures({"data": 1.0, "forward": 3.0}, Traffic(counts), 2)
    assert figures == {
        "data_s": 0.5, "forward_s": 1.5, "communication_s": 0.3, "sent_bytes_per_step": 77.5,
    }  # fmt: skip


def test_peak_memory_is_that_of_this_process():
    code = (
        "import torch; from elemdist.metrics import peak_memory_bytes as peak\n"
        "cpu = torch.device('cpu'); before = peak(cpu); x = torch.ones(100 << 18); del x\n"
        "print(before, peak(cpu))"
    )

    def peaks() -> tuple[int, int]:
        done = run_command(sys.executable, "-c", code)
        assert done.returncode == 0, done.stderr
        before, after = map(int, done.stdout.split())
        return before, after

    alone, _ = peaks()  # how much torch takes depends on its build
    ballast = bytearray(os.urandom(1 << 20)) * 400  # must not count in the child
    before, after = peaks()
    assert 90e6 < after - before < 200e6
    assert before < alone + 50e6
    assert peak_memory_bytes(torch.device("cpu")) > len(ballast)


def test_the_line_of_progress_fits_and_leaves_out_what_there_is_not():
    figures = {
        "loss": 10.1234, "bits_per_byte": 14.605, "lr": 1e-3, "grad_norm": 12.345,
        "bytes_per_s": 1.23456e9, "rows_per_s": 1_234_567.0, "mfu": 0.4213,
        "data_wait_share": 0.1, "peak_memory_bytes": 130e9, "samples": 5, "forward_s": 0.1,
    }  # fmt: skip
    line = progress_line(1_000_000, 1_000_000, figures, 360_000)
    assert len(line) <= 160, len(line)
    for part in (
        "step 1000000/1000000",
        "14.605 bits/byte",
        "MFU 42.1%",
        "1.23 GB/s",
        "mem 130.00 GB",
    ):
        assert part in line
    assert line.endswith("ETA 100:00:00")
    assert "None" not in progress_line(1, 2, {"loss": 1.0, "grad_norm": None, "mfu": None}, 5)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A run folder, and W&B's own files in the test's folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb-home"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "settings.yaml").write_text("steps: 12345\ndata: {train: shards}\n")
    return run


def stored(run: Path) -> bytes:
    """All that W&B wrote in a run folder."""
    return b"".join(path.read_bytes() for path in run.glob("wandb/**/*") if path.is_file())


def test_weights_and_biases_gets_one_run_for_all_starts_and_no_secrets(offline, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["elemdist", "--data.train", "s3://b/x?signature=hunter2"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "correct-horse")
    monkeypatch.setenv("WANDB_API_KEY", "b" * 40)
    for step in (1, 2):
        reporter = Reporter(offline, step - 1, "elementwise-tests")
        reporter.write("train", step, {"loss": 1.5, "note": "not a number"})
        reporter.write("eval", step, {"micro_f1": 0.5})
        reporter.close()
    run_id = (offline / "wandb-id").read_text().strip()
    folders = list((offline / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    # Where both begin in the same second, the later folder's name ends in -1.
    assert all(folder.name.removesuffix("-1").endswith(run_id) for folder in folders)
    data = stored(offline)
    for part in (b"elementwise-tests", b"train/loss", b"eval/micro_f1", b"12345", run_id.encode()):
        assert part in data, part
    for secret in (b"hunter2", b"correct-horse", b"b" * 40):
        assert secret not in data
    assert [line["step"] for line in lines(offline)] == [1, 1, 2, 2]


def test_weights_and_biases_that_fails_does_not_end_training(offline, capsys):
    reporter = Reporter(offline, 0, "elementwise-tests")
    assert reporter.wandb is not None
    reporter.wandb.run.finish()  # as when its service has gone
    for step in (1, 2):
        reporter.write("train", step, {"loss": 1.5})
    reporter.close()
    told = [line for line in capsys.readouterr().out.splitlines() if "goes on without it" in line]
    assert len(told) == 1
    assert len(lines(offline)) == 2


def test_mistakes_with_weights_and_biases_get_one_line(offline):
    with pytest.raises(UserError, match=r"wandb: project 'a/b' cannot be opened: .*offline"):
        Reporter(offline, 0, "a/b")
    (offline / "wandb-id").write_text("../elsewhere\n")
    with pytest.raises(UserError, match="holds no id of a run"):
        Reporter(offline, 0, "elementwise-tests")


def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
    with pytest.raises(UserError, match="pip install wandb"):
        Reporter(tmp_path, 0, "project")
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "wandb").mkdir()  # a folder of earlier runs, which imports as a package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="pip install wandb"):
        Reporter(tmp_path, 0, "project")
