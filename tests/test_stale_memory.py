"""Shared memory of killed runs: what is provably dead goes, everything else stays."""

from __future__ import annotations

import contextlib
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
    folder = Path(stale_memory.SHARED_MEMORY)
    return {path.name: path.stat().st_ino for path in folder.glob(f"{number:06}_*")}


def test_only_what_a_killed_run_left_is_removed(started, folder):
    living, kept = started("mapped", folder)
    killed, stale = started("mapped", folder)
    before = objects(kept)
    assert len(before) >= 7
    assert f"{stale:06}_barrier" in objects(stale)
    assert f"{stale:06}_elemdist" in objects(stale)
    kill_all(killed)
    mapped = MappedDataset(local=folder, **OPTIONS)
    assert len(list(mapped)) == 70
    assert objects(kept) == before
    assert living.poll() is None
    assert mapped._shm_prefix_int == stale or not objects(stale)


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
    # The kernel ends a process a moment after it was told to. Any run on this machine may remove
    # what it left: those of tests beside this one do.
    wait_until(lambda: removed(number), "stale memory", 5)


def removed(number: int) -> bool:
    """Whether a run's objects are gone, by this process or any other."""
    stale_memory.remove_stale()
    return not objects(number)


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
        "import sys\nfrom elemdist.streaming_dataset import MappedDataset\n"
        "data = MappedDataset(local=sys.argv[1], batch_size=4)\n"
        "assert len(list(data)) == 70\nprint(data._shm_prefix_int)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    assert objects(int(done.stdout)) == {}
