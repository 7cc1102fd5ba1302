"""A run goes on with other ranks, ZeRO stages and sequence-parallel degrees, and with the same
numbers; real ranks over gloo, see tests/forked.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import TINY, metrics
from tests.forked import train

HALF, WHOLE = 10, 20
# Every number of ranks and every stage once as the start; resumed on another of both.
MATRIX = [
    ((1, 1), (2, 2)), ((1, 2), (4, 3)), ((1, 3), (2, 1)),
    ((2, 1), (4, 2)), ((2, 2), (1, 3)), ((2, 3), (4, 1)),
    ((4, 1), (2, 3)), ((4, 2), (1, 1)), ((4, 3), (1, 2)),
]  # fmt: skip


def options(data: Path, run: Path, stage: int, *more: str) -> list[str | Path]:
    return [
        "--run-dir", run, "--data.train", data / "train", *TINY, "--steps", str(WHOLE),
        "--zero.stage", str(stage), *more,
    ]  # fmt: skip


def same_run(run: Path, undisturbed: Path, steps: int = WHOLE, tolerance: float = 1e-5) -> None:
    """The same losses, and the very same samples in every global batch."""
    got, expected = metrics(run), metrics(undisturbed)
    assert sorted(got) == sorted(expected) == list(range(1, steps + 1))
    for step, figures in expected.items():
        assert got[step]["samples_digest"] == figures["samples_digest"], step
        assert got[step]["loss"] == pytest.approx(figures["loss"], abs=tolerance), step
        assert got[step]["samples"] == figures["samples"]
    digests = [figures["samples_digest"] for figures in expected.values()]
    assert len(set(digests)) == steps, "the digest does not tell batches apart"


@pytest.fixture(scope="module")
def undisturbed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder / "log", 1, *options(packed, folder / "run", 1))
    return folder / "run"


@pytest.mark.parametrize(("start", "then"), MATRIX, ids=str)
def test_a_run_goes_on_elsewhere_with_the_same_numbers(start, then, packed, undisturbed, tmp_path):
    """Dropout on: it hangs on the samples, which lie in the same passes everywhere."""
    run, log = tmp_path / "run", tmp_path / "log"
    (ranks, stage), (other_ranks, other_stage) = start, then
    half = ["--stop-step", str(HALF)]
    train(log, ranks, *options(packed, run, stage, *half))
    out = train(log, other_ranks, *options(packed, run, other_stage, "--resume"))
    assert f"resumed after step {HALF}" in out
    same_run(run, undisturbed)


def test_a_global_batch_that_does_not_divide_is_the_same_on_any_ranks(packed, tmp_path):
    """11 samples: 6 and 5, or 4, 4 and 3; without dropout, as the passes hold other samples."""
    more = ["--batch.global-samples", "11", "--model.dropout", "0"]
    train(tmp_path / "log", 1, *options(packed, tmp_path / "whole", 1, *more))
    run = tmp_path / "run"
    train(tmp_path / "log", 2, *options(packed, run, 2, *more, "--stop-step", str(HALF)))
    train(tmp_path / "log", 3, *options(packed, run, 1, *more, "--resume"))
    same_run(run, tmp_path / "whole")


def test_a_rank_takes_all_cores_and_more_threads_give_the_same_numbers(
    packed, undisturbed, tmp_path
):
    """With dropout. The tests' ranks have one thread each."""
    run = tmp_path / "run"
    train(tmp_path / "log", 1, *options(packed, run, 1), fault="threads_unsaid")
    threads = [
        json.loads((one / "environment.json").read_text())["cpu_threads"]
        for one in (undisturbed, run)
    ]
    assert threads == [1, len(os.sched_getaffinity(0))]
    same_run(run, undisturbed)


@pytest.mark.parametrize("kind", ["bert", "decoder", "canine", "classify"])
def test_sequence_parallel_ranks_train_like_one(kind, packed, labelled, tmp_path):
    """From 2 ranks a sequence to 4 and to 2 x 2, with other stages, against one rank."""
    data = labelled if kind == "classify" else packed
    more = ["--model.dropout", "0", "--batch.micro-samples", "8"]
    more += {
        "bert": [],
        "decoder": ["--model.backbone", "decoder", "--objective", "clm"],
        "canine": ["--model.backbone", "canine", "--model.canine.local", "8"],
        "classify": ["--objective", "classify", "--classify.pooling", "mean"],
    }[kind]
    train(tmp_path / "log", 1, *options(data, tmp_path / "whole", 1, *more))
    run, two, four = tmp_path / "run", ["--sequence-parallel", "2"], ["--sequence-parallel", "4"]
    train(tmp_path / "log", 2, *options(data, run, 2, *more, *two, "--stop-step", "7"))
    train(
        tmp_path / "log", 4, *options(data, run, 3, *more, *four, "--resume", "--stop-step", "14")
    )
    train(tmp_path / "log", 4, *options(data, run, 1, *more, *two, "--resume"))
    same_run(run, tmp_path / "whole")
