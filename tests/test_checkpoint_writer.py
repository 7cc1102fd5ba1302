"""Checkpoints are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from elemdist.checkpoint import find, flaw, newest
from elemdist.checkpoint_writer import outdated
from tests.checkpoint_ranks import (
    Setup,
    killed_in_write,
    out_of_room,
    refused,
    run,
    save_often,
    start,
    train_and_save,
)
from tests.conftest import REPOSITORY


def contents(run_dir: Path) -> dict[str, bytes]:
    folder = run_dir / "checkpoints"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def steps(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("setup", [Setup(2, 0), Setup(2, 3, bf16=True)], ids=str)
def test_what_is_written_in_the_background_is_the_same_byte_for_byte(setup, tmp_path):
    """Though the weights have changed before it is written."""
    for name in ("blocking", "background"):
        behind = name == "background"
        run(tmp_path, train_and_save, setup, run=tmp_path / name, background=behind)
    files = contents(tmp_path / "blocking")
    assert files == contents(tmp_path / "background")
    names = {name.removeprefix("step-00000004/") for name in files}
    assert names == {
        "latest", "manifest.json", "config.json", "model.safetensors",
        "state/rank-00000.safetensors", "state/rank-00001.safetensors",
    }  # fmt: skip
    sizes = [len(files[f"step-00000004/state/rank-0000{rank}.safetensors"]) for rank in (0, 1)]
    assert max(sizes) < 1.1 * min(sizes)  # each rank writes its share


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(("victim", "stage"), [(0, 3), (1, 3), (1, 0)])
def test_a_full_disk_costs_one_checkpoint(victim, stage, background, tmp_path):
    setup = Setup(2, stage)
    found = run(
        tmp_path, out_of_room, setup, run=tmp_path / "run", victim=victim, background=background
    )
    before, reason, after = found["told"]
    assert before is None
    assert after is None
    assert reason.startswith(f"checkpoint of step 2 not written: File too large on rank {victim};")
    assert "make room" in reason
    assert "\n" not in reason
    assert steps(tmp_path / "run") == ["latest", "step-00000001", "step-00000003"]
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000003\n"
    for name in ("step-00000001", "step-00000003"):
        assert flaw(tmp_path / "run/checkpoints" / name) is None


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_in_a_write_leaves_nothing_that_looks_whole(victim, background, tmp_path):
    setup, run_dir = Setup(2, 1), tmp_path / "run"
    done = start(
        tmp_path, killed_in_write, setup, run=run_dir, victim=victim, background=background
    )
    assert done.codes[victim] == -signal.SIGKILL, done.log
    assert done.codes[1 - victim] == 1, done.log  # told by the closed connection, and not killed
    assert steps(run_dir) == [".writing-step-00000002", "latest", "step-00000001"]
    found, passed = newest(run_dir)
    assert found is not None
    assert (found.step, passed) == (1, [])
    # the next start takes away what is left, and can write the same step
    run(tmp_path, save_often, setup, run=run_dir, steps=[2], keep_last=2, keep_every=0)
    assert steps(run_dir) == ["latest", "step-00000001", "step-00000002"]


def test_a_failing_rank_does_not_wait_for_the_write_of_the_others(tmp_path):
    """In processes of their own: a fork would leave out the end of Python, which waits."""
    run_dir, store, out = tmp_path / "run", tmp_path / "store", tmp_path / "out"
    line = "from tests.checkpoint_ranks import *; rank_main({}, {}, {!r}, {!r}, Setup(2, 2), {})"
    name, words = "fails_during_a_write", {"run": str(run_dir), "victim": 1}
    ranks = [
        subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
        for rank in (0, 1)
        for code in [line.format(repr(name), rank, str(store), str(out), words)]
    ]
    try:
        failed = ranks[1].wait(120)
        still_writing = ranks[0].poll() is None
        (run_dir / "ended").touch()
        other = ranks[0].wait(120)
    finally:
        for process in ranks:
            process.kill()
    assert failed == 1, out.with_suffix(".log").read_text()  # no abort at exit, either
    assert "made to fail" in out.with_suffix(".log").read_text()
    assert still_writing
    assert other == 3
    assert steps(run_dir) == [".writing-step-00000001"]


def test_only_the_newest_stay_and_those_that_are_to_be_kept(tmp_path):
    run_dir = tmp_path / "run"
    words = {"run": run_dir, "keep_last": 2, "keep_every": 4}
    run(tmp_path, save_often, Setup(1, 0), steps=[2, 4, 6, 8, 9, 11], **words)
    assert steps(run_dir) == [
        "latest", "step-00000004", "step-00000008", "step-00000009", "step-00000011",
    ]  # fmt: skip
    # resumed before 11, which is damaged
    (run_dir / "checkpoints/step-00000011/config.json").write_text("{}")
    assert refused_with(tmp_path, run_dir) == {"step": 9}
    run(tmp_path, save_often, Setup(1, 0), steps=[10], **words)
    assert steps(run_dir)[1:] == [
        "step-00000004", "step-00000008", "step-00000009", "step-00000010",
    ]  # fmt: skip
    assert find(str(run_dir)).step == 10


def refused_with(folder: Path, run_dir: Path) -> object:
    return run(folder, refused, Setup(1, 0), run=run_dir)


@pytest.mark.parametrize(
    ("found", "last", "every", "gone"),
    [
        ([1, 2, 3], 1, 0, [1, 2]),
        ([1, 2, 3], 3, 0, []),
        ([1, 2, 3], 9, 0, []),
        ([2, 4, 6, 7], 1, 4, [2, 6]),
        ([5, 7, 9], 2, 0, [9]),
        ([4, 7, 8], 1, 4, [8]),
    ],
)
def test_which_checkpoints_go(found, last, every, gone):
    assert sorted(outdated(found, 7 if 7 in found else 3, last, every)) == gone


def test_the_manifest_tells_what_the_run_gave(tmp_path):
    run(
        tmp_path,
        save_often,
        Setup(1, 2),
        run=tmp_path / "run",
        steps=[3],
        keep_last=1,
        keep_every=0,
    )
    found = find(str(tmp_path / "run"))
    assert found.state == {"place": [3, "x"]}
    assert found.settings() == Setup(1, 2).settings()
    assert found.config().model.width == 20
    manifest = json.loads((found.path / "manifest.json").read_text())
    assert manifest["facts"] == {"model": {"width": 20}, "seed": 1}
    assert manifest["optimizer_steps"] == 0
