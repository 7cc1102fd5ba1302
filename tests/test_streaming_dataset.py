from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from elemdist import stale_memory
from elemdist.errors import UserError
from elemdist.streaming_dataset import MappedDataset, streaming
from tests.conftest import REPOSITORY
from tests.shard_sets import make_set
from tests.streaming_process import OPTIONS, both, same


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Lock files of the tests' runs stay their own; the shared memory is the machine's."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("ELEMDIST_CACHE", str(tmp_path / "cache"))
    yield
    tempfile.tempdir = None


@pytest.fixture
def folder(tmp_path) -> str:
    make_set(tmp_path / "set", 70, labels=True)
    return str(tmp_path / "set")


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": False},
        {"shuffle": True},
        {"shuffle": True, "shuffle_algo": "py1s", "batch_size": 7},
        {"shuffle": False, "epoch_size": 33, "sampling_method": "fixed"},
    ],
)
def test_two_epochs_are_those_of_streaming(folder, options):
    options = {"batch_size": 4, **options}
    stock = streaming.StreamingDataset(local=folder, **options)
    mapped = MappedDataset(local=folder, **options)
    first, second = same(stock, mapped), same(stock, mapped)
    assert len(set(first)) == options.get("epoch_size", 70)
    assert (first != second) == options.get("shuffle", False)


def test_whole_batches_hold_the_same_samples(folder):
    stock = list(streaming.StreamingDataset(local=folder, **OPTIONS))
    mapped = MappedDataset(local=folder, **OPTIONS, batched=True)
    loader = streaming.StreamingDataLoader(mapped, batch_size=None)
    batches = list(loader)
    assert [len(batch["rows"]) for batch in batches] == [4] * 17 + [2]
    for name in ("rows", "labels"):
        assert np.array_equal(
            np.concatenate([batch[name] for batch in batches]), np.stack([s[name] for s in stock])
        )


def test_several_streams_and_compressed_ones(tmp_path):
    make_set(tmp_path / "one", 40, seed=1)
    make_set(tmp_path / "two", 30, seed=2, compression="zstd")

    def streams() -> list[streaming.Stream]:
        return [
            streaming.Stream(local=str(tmp_path / "one"), repeat=2),
            streaming.Stream(local=str(tmp_path / "two"), repeat=0.5),
        ]

    mapped = MappedDataset(streams=streams(), **OPTIONS)
    got = list(mapped)
    assert list((tmp_path / "cache").rglob("*.mds"))
    stock = streaming.StreamingDataset(streams=streams(), **OPTIONS)
    assert len(same(stock, got)) >= 40 * 2 + 15


def test_a_remote_set_is_mapped_where_it_lies(tmp_path, folder):
    stock = streaming.StreamingDataset(local=folder, **OPTIONS)
    mapped = MappedDataset(remote=folder, local=str(tmp_path / "local"), **OPTIONS)
    assert len(same(stock, mapped)) == 70
    assert os.listdir(tmp_path / "local") == ["index.json"]


def test_a_new_epoch_ends_the_one_before(folder):
    mapped = MappedDataset(local=folder, **OPTIONS)
    early = iter(mapped)
    next(early)
    late = iter(mapped)
    next(late)
    assert list(early) == []
    assert len(list(late)) == 69


def run_ranks(folder: str, state: Path) -> list[dict]:
    """Two processes as the two ranks of a machine; what each found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port), "PYTHONPATH": str(REPOSITORY)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.streaming_process", "ranks", folder, str(state)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_ranks_and_resumption_are_those_of_streaming(tmp_path, folder):
    """On two ranks; a state of one process resumed on two ranks, and one of two on one."""
    mapped = MappedDataset(local=folder, **OPTIONS)
    begun = [int.from_bytes(bytes(s["rows"][0]), "little") for s in itertools.islice(mapped, 20)]
    (tmp_path / "state.json").write_text(json.dumps(mapped.state_dict(20, True)))
    one, two = run_ranks(folder, tmp_path / "state.json")
    assert sorted(one["epoch"] + two["epoch"]) == list(range(70))
    assert sorted(begun + one["resumed"] + two["resumed"]) == list(range(70))

    stock, mapped = both(folder)
    for dataset in (stock, mapped):
        dataset.load_state_dict(one["state"])
    rest = same(stock, mapped)
    assert sorted(one["begun"] + two["begun"] + rest) == list(range(70))
    assert set(same(stock, mapped)) == set(range(70))  # the epoch after it is whole


def test_a_state_is_only_for_its_own_data(tmp_path, folder):
    make_set(tmp_path / "other", 70, seed=5, labels=True)
    mapped = MappedDataset(local=folder, **OPTIONS)
    next(iter(mapped))
    state = mapped.state_dict(1, True)
    other = MappedDataset(local=str(tmp_path / "other"), **OPTIONS)
    with pytest.raises(UserError) as caught:
        other.load_state_dict(state)
    for part in (
        folder,
        str(tmp_path / "other"),
        *(d.sets[0].fingerprint for d in (mapped, other)),
    ):
        assert part in str(caught.value)
    assert len(list(other)) == 70  # nothing of the state was taken
    stock = streaming.StreamingDataset(local=folder, **OPTIONS)
    next(iter(stock))
    mapped = MappedDataset(local=folder, **OPTIONS)
    with pytest.warns(UserWarning, match="does not say which data"):
        mapped.load_state_dict(stock.state_dict(10, True))
    assert len(list(mapped)) == 60


def test_damage_is_found_when_the_set_is_opened(tmp_path, folder):
    shard = Path(folder, "shard.00001.mds")
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    MappedDataset(local=folder, **OPTIONS)
    with pytest.raises(UserError, match=r"shard\.00001\.mds is damaged, its hash differs"):
        MappedDataset(local=folder, **OPTIONS, verify=True)
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"shard\.00001\.mds has .* bytes instead of"):
        MappedDataset(local=folder, **OPTIONS)


def test_sets_that_do_not_fit_are_refused(tmp_path, folder):
    make_set(tmp_path / "other", 20)
    streams = [streaming.Stream(local=path) for path in (folder, str(tmp_path / "other"))]
    with pytest.raises(UserError, match="has not the n, v and labels of"):
        MappedDataset(streams=streams, **OPTIONS)
    with pytest.raises(UserError, match="no cache_limit"):
        MappedDataset(local=folder, cache_limit="1gb", **OPTIONS)


def test_it_travels_to_worker_processes(folder):
    mapped = pickle.loads(pickle.dumps(MappedDataset(local=folder, **OPTIONS)))
    assert sorted(int.from_bytes(bytes(s["rows"][0]), "little") for s in mapped) == [*range(70)]


# Shared memory


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
    kill_all(killed)
    assert f"{stale:06}_barrier" in objects(stale)
    assert f"{stale:06}_elemdist" in objects(stale)
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
    # The kernel ends a process a moment after it was told to.
    for _ in range(100):
        if f"{number:06}_locals" in stale_memory.remove_stale():
            break
        time.sleep(0.05)
    assert objects(number) == {}


def command_of(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_what_cannot_be_proven_stale_is_left_and_does_no_harm(started, folder, tmp_path):
    killed, number = started("stock", folder)
    kill_all(killed)
    for path in (tmp_path / "tmp").iterdir():  # as after a boot's tidying
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
