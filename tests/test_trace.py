"""The trace of a few steps: real steps, and the file that Perfetto reads."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elemdist.timing import Stopwatch
from elemdist.trace import PASSED_STEPS, TRACED_STEPS, Trace
from tests.conftest import NO_BYTECODE

PARTS = ["data", "forward", "backward", "optimizer"]


def run_steps(folder: Path, steps: int, on: bool = True) -> Path:
    """So many steps of a small model; where their trace would be."""
    watch = Stopwatch(torch.device("cpu"))
    trace = Trace(folder, 0, on, watch)
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(steps):
        with watch("data"):
            x = torch.randn(4, 8)
        with watch("forward"):
            loss = model(x).square().mean()
        with watch("backward"):
            loss.backward()
        with watch("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
        trace.step()
    trace.close()
    assert not watch.labelled
    assert set(watch.take()) == (set(PARTS) if steps else set())
    return folder / "trace-rank-0.json.gz"


def spans(path: Path) -> list[dict]:
    """The complete events of a trace."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [event for event in events if event.get("ph") == "X"]


@pytest.mark.parametrize("traced", [TRACED_STEPS, 1])
def test_the_trace_has_the_parts_of_its_steps(traced, tmp_path, capsys):
    later = 4 if traced == TRACED_STEPS else 0
    path = run_steps(tmp_path, PASSED_STEPS + traced + later)
    found = spans(path)
    for part in PARTS:
        labels = [event for event in found if event["name"] == part]
        assert len(labels) == traced, part
        assert all(event["dur"] > 0 for event in labels)
    (multiply, *_) = [event for event in found if event["name"] == "aten::addmm"]
    assert any(
        event["ts"] <= multiply["ts"] < event["ts"] + event["dur"]
        for event in found
        if event["name"] == "forward"
    )
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert f"profile: {path}" in capsys.readouterr().out


def test_a_run_too_short_for_a_trace_says_so(tmp_path, capsys):
    for steps in (0, 2, PASSED_STEPS):
        run_steps(tmp_path, steps)
        assert f"no trace, as this start had {steps} steps" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_nothing_happens_where_it_is_off(tmp_path, capsys):
    run_steps(tmp_path, PASSED_STEPS + TRACED_STEPS, on=False)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path):
    code = (
        "import sys; from pathlib import Path; import tests.test_trace as t\n"
        "print(t.run_steps(Path(sys.argv[1]), t.PASSED_STEPS + 4).exists())"
    )

    def limited() -> None:  # so many bytes of any file, as a full disk would do
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True, text=True, preexec_fn=limited, timeout=100,
        env=os.environ | NO_BYTECODE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"no trace, {tmp_path} did not take it whole; training goes on" in done.stdout
    assert done.stdout.endswith("False\n")
    assert not list(tmp_path.iterdir())
