"""What surrounds the steps of training, by the real command or real ranks."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
from pathlib import Path

import pytest

from elemdist.errors import EXIT_STOPPED
from elemdist.stop import read_end
from tests.conftest import (
    ELEMDIST,
    REPOSITORY,
    TINY,
    MakeShards,
    elemdist,
    metrics,
    write_corpus,
)
from tests.forked import train

PARTS = ("data", "agree", "forward", "backward", "optimizer")


@pytest.fixture(scope="module")
def two_sets(
    corpus: Path, make_shards: MakeShards, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A mixture of two sets, 3 to 1, as an option."""
    other = write_corpus(tmp_path_factory.mktemp("other") / "other.jsonl", 100, seed=8)
    sets = [make_shards(source, "--packing", "packed") for source in (corpus, other)]
    shares = [
        {"path": str(path), "weight": weight, "name": name}
        for path, weight, name in zip(sets, (3, 1), ("made", "more"), strict=True)
    ]
    return json.dumps(shares)


def test_a_mixture_is_resumed_elsewhere_and_tells_the_loss_of_each_source(two_sets, tmp_path):
    words = ["--data.mixture", two_sets, *TINY, "--steps", "12", "--model.dropout", "0"]
    train(tmp_path / "log", 1, "--run-dir", tmp_path / "whole", *words)
    run = ["--run-dir", tmp_path / "run", *words, "--zero.stage", "2"]
    train(tmp_path / "log", 2, *run, "--stop-step", "5")
    train(tmp_path / "log", 3, *run, "--resume")
    got, expected = metrics(tmp_path / "run"), metrics(tmp_path / "whole")
    assert sorted(got) == list(range(1, 13))
    for step, figures in expected.items():
        assert got[step]["samples_digest"] == figures["samples_digest"]
        for name in ("made", "more"):
            assert got[step][f"bits_per_byte/{name}"] == pytest.approx(
                figures[f"bits_per_byte/{name}"], rel=1e-5
            )
        each = [figures[f"bits_per_byte/{name}"] for name in ("made", "more")]
        assert min(each) < figures["bits_per_byte"] < max(each)


def test_metrics_say_where_the_time_goes_and_what_is_sent(packed, tmp_path):
    words = ["--run-dir", tmp_path / "run", "--data.train", packed / "train", *TINY]
    words += ["--steps", "10", "--log-every", "5", "--peak-tflops", "0.01"]
    out = train(tmp_path / "log", 2, *words)
    figures, before = metrics(tmp_path / "run")[10], metrics(tmp_path / "run")[5]
    parts = sum(figures[f"{part}_s"] for part in PARTS)
    step_s = 5 * 16 / figures["samples_per_s"] / 5
    assert 0.5 * step_s < parts <= 1.01 * step_s
    assert 0 < figures["communication_s"] < step_s
    assert figures["sent_bytes_per_step"] > 0
    assert 0 < figures["mfu"] < 1
    assert figures["peak_memory_bytes"] > 50e6
    assert figures["samples"] == 160
    assert figures["samples_digest"] != before["samples_digest"]
    assert "MFU" in out


def test_a_trace_has_the_parts_of_three_steps(packed, tmp_path):
    words = ["--run-dir", tmp_path / "run", "--data.train", packed / "train", *TINY]
    train(tmp_path / "log", 2, *words, "--steps", "10", "--profile")
    trace = json.loads(gzip.decompress((tmp_path / "run/trace-rank-0.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    for label in PARTS:
        assert names.count(label) >= 3, label


def test_checkpoints_by_the_clock(packed, tmp_path):
    words = ["--run-dir", tmp_path / "run", "--data.train", packed / "train", *TINY]
    words += ["--steps", "30", "--checkpoint-every", "0", "--keep-last", "99"]
    minutes = ["--checkpoint-every-minutes", "0.005"]
    train(tmp_path / "log", 2, *words, *minutes, fault="slow", seconds=0.05)
    found = sorted((tmp_path / "run/checkpoints").glob("step-*"))
    assert 3 <= len(found) < 20  # and one is that of the end
    assert found[-1].name == "step-00000030"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_stops_with_a_checkpoint_and_goes_on(number, packed, tmp_path):
    """The launcher gets the signal, its ranks save, and the code says what to do."""
    run = tmp_path / "run"
    words = ["train", "--run-dir", run, "--data.train", packed / "train", *TINY]
    words += ["--ranks", "2", "--steps", "3000", "--checkpoint-every", "0", "--eval-every", "0"]
    with subprocess.Popen(
        [ELEMDIST, *map(str, words)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 3/"):
                process.send_signal(number)
                break
        process.stdout.read()
        assert process.wait(120) == EXIT_STOPPED
    end = read_end(run)
    assert end["state"] == "stopped"
    assert "SIG" in end["reason"]
    stop = str(end["step"] + 2)
    done = elemdist(*words, "--resume", "--stop-step", stop)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumed after step {end['step']}" in done.stdout
    assert sorted(metrics(run)) == list(range(1, int(stop) + 1))


def test_a_lost_rank_is_named_by_the_command(packed, tmp_path):
    run = tmp_path / "run"
    words = ["train", "--run-dir", run, "--data.train", packed / "train", *TINY]
    words += ["--ranks", "2", "--steps", "100000", "--checkpoint-every", "2", "--eval-every", "0"]
    with subprocess.Popen(
        [ELEMDIST, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("step 5/"):
                break
        ranks = children(process.pid)
        assert len(ranks) == 2
        subprocess.run(["kill", "-KILL", str(ranks[1])], check=True)
        process.stdout.read()
        errors = process.stderr.read()
        assert process.wait(60) == 76
    assert "rank 1 was killed by signal 9 (SIGKILL)" in errors
    assert "Traceback" not in errors
    assert read_end(run)["state"] == "failed"
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks), "an orphan"


def children(pid: int) -> list[int]:
    """Processes that were started by `pid`, oldest first."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_the_micro_batch_is_found_by_trying(packed, tmp_path):
    words = ["--run-dir", tmp_path / "run", "--data.train", packed / "train", *TINY]
    out = train(tmp_path / "log", 2, *words, "--steps", "2", "--auto-micro-batch")
    assert "16 samples (4,096 bytes) a step = 8 a pass x 2 ranks x 1 pass" in out
