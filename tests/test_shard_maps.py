from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from elemdist import shard_maps
from elemdist.errors import UserError
from elemdist.shard_maps import map_file
from elemdist.shards import ShardSet
from tests.conftest import REPOSITORY
from tests.shard_sets import all_ids, make_set

CONTEXT = multiprocessing.get_context("fork")
PAGES = 16 * 4096


@pytest.fixture(autouse=True)
def none_open():
    shard_maps.close_all()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(1).bytes(PAGES))
    return path


@pytest.mark.parametrize(("begin", "size"), [(0, PAGES), (5000, 300), (4096, 4096), (7, 0)])
def test_a_map_holds_the_bytes_of_the_file_and_no_open_file(file, begin, size):
    before = open_files()
    mapped = map_file(str(file), begin, size)
    assert bytes(mapped) == file.read_bytes()[begin : begin + size]
    assert open_files() == before
    with pytest.raises(ValueError, match="read-only"):
        mapped[:] = 0
    file.unlink()  # what was removed stays readable
    assert mapped.sum() >= 0
    del mapped
    assert str(file) not in Path("/proc/self/maps").read_text()


def test_what_cannot_be_mapped_is_an_error(file):
    with pytest.raises(FileNotFoundError):
        map_file(f"{file}.not", 0, 1)
    with pytest.raises(ValueError, match="65,536 bytes instead of 65,537"):
        map_file(str(file), 0, PAGES + 1)
    with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        map_file("/sys/kernel/notes", 0, 1)


def test_two_sets_share_one_budget_and_hold_no_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_maps, "_most", 3)
    rows = [make_set(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    sets = [ShardSet(str(tmp_path / name)) for name in "ab"]
    before = open_files()
    for _ in range(3):
        for one, expected in zip(sets, rows, strict=True):
            ids = np.random.default_rng(2).permutation(all_ids(one))
            assert (one.gather(ids)[0] == expected[ids]).all()
            assert sum(map(len, shard_maps.open_maps())) == 3
            assert open_files() == before
    sets[0].gather(all_ids(sets[0])[:1])
    assert [len(one._views) for one in sets] == [1, 2]
    del sets[0], one
    gc.collect()
    assert len(shard_maps.open_maps()) == 1


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(4096)


def test_the_budget_leaves_most_of_what_the_system_allows_to_others():
    allowed = int(Path("/proc/sys/vm/max_map_count").read_text())
    assert 16 <= shard_maps.most() <= max(16, allowed // 8)


def test_a_shard_that_is_cut_short_in_use_is_named_and_read_again_once_it_is_mended(tmp_path):
    rows = make_set(tmp_path / "set", samples=4000, size_limit=1 << 15)
    shards = ShardSet(str(tmp_path / "set"))
    ids = all_ids(shards)
    assert (shards.gather(ids)[0] == rows[ids]).all()
    path = sorted((tmp_path / "set").glob("*.mds"))[1]
    whole = path.read_bytes()
    cut(path)
    with pytest.raises(UserError, match=rf"{path} was cut short while in use: copy it again"):
        shards.gather(ids)
    with pytest.raises(UserError, match="copy it again"):  # its map is closed
        shards.gather(ids)
    path.write_bytes(whole)
    assert (shards.gather(ids)[0] == rows[ids]).all()


def in_child(shards: ShardSet, ids: np.ndarray, path: Path, said) -> None:
    cut(path)
    try:
        shards.gather(ids)
    except UserError as error:
        said.put(str(error))


def test_a_worker_process_says_it_as_well(tmp_path):
    make_set(tmp_path / "set", samples=4000, size_limit=1 << 15)
    shards, said = ShardSet(str(tmp_path / "set")), CONTEXT.Queue()
    ids = all_ids(shards)
    shards.gather(ids)
    path = sorted((tmp_path / "set").glob("*.mds"))[0]
    worker = CONTEXT.Process(target=in_child, args=(shards, ids, path, said))
    worker.start()
    line = said.get(timeout=30)  # it maps the shards for itself
    assert str(tmp_path / "set") in line
    worker.join()
    assert worker.exitcode == 0


@pytest.mark.parametrize(
    ("read", "code", "line"),
    [
        ("mapped[50000]", 2, "FILE was cut short while in use: copy it again, and not in place"),
        ("mmap.mmap(os.open('FILE', 0), 0, access=1)[50000]", -7, "Fatal Python error: Bus error"),
    ],
)
def test_a_reader_that_does_not_check_ends_with_a_line_and_others_as_before(read, code, line, file):
    program = f"""
import mmap, os
from elemdist.shard_maps import map_file
mapped = map_file('FILE', 0, {PAGES})
other = mmap.mmap(os.open('FILE', 0), 0, access=1)
os.truncate('FILE', 100)
{read.replace("mmap.mmap(os.open('FILE', 0), 0, access=1)", "other")}
"""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program.replace("FILE", str(file))],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == code
    assert line.replace("FILE", str(file)) in done.stderr


def with_few_files(place: str, said) -> None:
    shards = ShardSet(place)
    held = [os.open("/dev/null", 0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        while True:
            held.append(os.open("/dev/null", 0))
    except OSError:
        pass
    try:
        shards.gather(all_ids(shards))
    except UserError as error:
        for handle in held:
            os.close(handle)
        said.put(str(error))


def test_too_many_open_files_names_the_limit(tmp_path):
    make_set(tmp_path / "set")
    said = CONTEXT.SimpleQueue()
    child = CONTEXT.Process(target=with_few_files, args=(str(tmp_path / "set"), said))
    child.start()
    child.join(30)
    line = said.get()
    assert "Too many open files: this process may have 64" in line
    assert "`ulimit -n 4096`" in line
    assert "copy it again" not in line
