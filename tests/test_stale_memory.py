"""Shared memory of killed runs: what is provably dead goes, everything else stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from elemdist import stale_memory
from elemdist.streaming_dataset import MappedDataset
from tests.conftest import REPOSITORY, wait_until
from tests.shard_sets import make_set
from tests.streaming_process import OPTIONS

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def folder(tmp_path) -> str:
    make_set(tmp_path / "set", 70, labels=True)
    return str(tmp_path / "set")


@pytest.fixture
def started() -> Iterator:
    """Starts a process that reads a set and waits, in a process group of its own."""
    processes: list[subprocess.Popen] = []

    def start(kind: str, folder: str, workers: int = 0) -> tuple[subprocess.Popen, int]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.streaming_process", "wait", kind, folder, str(workers)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield start
    for process in processes:
        kill_all(process)


def kill_all(process: subprocess.Popen) -> None:
    """Ends a process with all that it started, Python's resource tracker too, as a job's end by the
    system does: nobody is left to tidy up."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def objects(number: int) -> dict[str, int]:
    """Names and inodes of a run's objects."""
    entries = os.scandir(stale_memory.SHARED_MEMORY)
    return {one.name: one.inode() for one in entries if one.name.startswith(f"{number:06}_")}


def still_there(run: dict[str, int]) -> set[str]:
    """Those of a run's objects that are left. The number of one that is gone may be another's by
    now: tests beside this one have runs, too, and remove what dead ones left."""
    inodes = {entry.name: entry.inode() for entry in os.scandir(stale_memory.SHARED_MEMORY)}
    return {name for name, inode in run.items() if inodes.get(name) == inode}


def test_only_what_a_killed_run_left_is_removed(started, folder):
    living, kept = started("mapped", folder)
    killed, stale = started("mapped", folder)
    before, left = objects(kept), objects(stale)
    assert len(before) >= 7
    assert left.keys() >= {f"{stale:06}_barrier", f"{stale:06}_elemdist"}
    kill_all(killed)
    mapped = MappedDataset(local=folder, **OPTIONS)
    assert len(list(mapped)) == 70
    assert objects(kept) == before
    assert living.poll() is None
    assert not still_there(left)


def test_a_run_whose_worker_lives_is_living(started, folder):
    process, number = started("mapped", folder, workers=1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    worker = next(pid for pid in children if b"resource_tracker" not in command_of(pid))
    os.kill(int(worker), signal.SIGSTOP)  # it would end with its parent
    before = objects(number)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not [name for name in stale_memory.remove_stale() if name.startswith(f"{number:06}")]
    assert objects(number) == before
    kill_all(process)

    def removed() -> bool:
        stale_memory.remove_stale()
        return not still_there(before)

    # The kernel ends a process a moment after it was told to.
    wait_until(removed, "stale memory", 5)


def command_of(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_what_cannot_be_proven_stale_is_left_and_does_no_harm(started, folder):
    killed, number = started("stock", folder)
    kill_all(killed)
    for path in Path(tempfile.gettempdir()).iterdir():  # as after a boot's tidying
        path.unlink()
    left = objects(number)
    assert f"{number:06}_barrier" in left
    try:
        mapped = MappedDataset(local=folder, **OPTIONS)
        assert mapped._shm_prefix_int != number
        assert len(list(mapped)) == 70
        assert objects(number) == left
    finally:
        for name in left:
            (Path(stale_memory.SHARED_MEMORY) / name).unlink()


def test_a_record_of_another_run_proves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(stale_memory, "SHARED_MEMORY", str(tmp_path))
    for name in ("locals", "barrier"):
        (tmp_path / f"000007_{name}").write_bytes(b"x")
    for inode in (1, "", "x"):
        (tmp_path / "000007_elemdist").write_text(f"{inode}\n")
        assert stale_memory.remove_stale() == []
    inode = (tmp_path / "000007_locals").stat().st_ino
    (tmp_path / "000007_elemdist").write_text(f"{inode}\n")
    (tmp_path / "000008_barrier").write_bytes(b"no record")
    (tmp_path / "000007_mine").write_bytes(b"not streaming's")
    assert stale_memory.remove_stale() == ["000007_barrier", "000007_elemdist", "000007_locals"]
    assert {path.name for path in tmp_path.iterdir()} >= {"000008_barrier", "000007_mine"}


def test_a_normal_end_leaves_nothing(tmp_path, folder):
    code = (
        "import json, sys\nfrom elemdist.streaming_dataset import MappedDataset\n"
        "from tests.test_stale_memory import objects\n"
        "data = MappedDataset(local=sys.argv[1], batch_size=4)\n"
        "assert len(list(data)) == 70\nprint(json.dumps(objects(data._shm_prefix_int)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    living = json.loads(done.stdout)
    assert len(living) >= 7
    assert not still_there(living)
