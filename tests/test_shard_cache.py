"""Shards that are unpacked, or fetched from an object store, before they are read."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from elemdist import shard_cache
from elemdist.batch_plan import BatchPlan
from elemdist.data import Order, training_steps
from elemdist.errors import UserError
from elemdist.shards import ShardSet
from tests.conftest import run_command
from tests.shard_sets import all_ids, edit_json, flip, make_set


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ELEMDIST_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("compression", ["zstd:7", "gz", "br", "bz2", "snappy"])
def test_compressed_shards_are_unpacked_once_into_the_cache(tmp_path, compression, monkeypatch):
    rows = make_set(tmp_path / "set", compression=compression)
    assert not list((tmp_path / "set").glob("*.mds"))
    shards = ShardSet(str(tmp_path / "set"))
    shards.verify()
    folder = tmp_path / "cache" / shards.fingerprint
    assert not folder.exists()
    assert (shards.gather(all_ids(shards))[0] == rows[all_ids(shards)]).all()
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"shard.{k:05}.mds" for k in range(len(names))]
    monkeypatch.setattr(shard_cache, "unpack", None)  # not called again
    assert (ShardSet(str(tmp_path / "set")).gather(np.arange(50))[0] == rows).all()


def test_what_streaming_unpacked_beside_the_compressed_files_is_used(tmp_path):
    rows = make_set(tmp_path / "set", compression="zstd")
    shards = ShardSet(str(tmp_path / "set"), str(tmp_path / "other"))
    shards.fetch(np.arange(50))
    for path in (tmp_path / "other" / shards.fingerprint).iterdir():
        shutil.copy(path, tmp_path / "set")
    again = ShardSet(str(tmp_path / "set"))
    assert (again.gather(np.arange(50))[0] == rows).all()
    assert not (tmp_path / "cache").exists()


def test_a_damaged_compressed_shard_is_named_and_leaves_nothing_in_the_cache(tmp_path):
    make_set(tmp_path / "set", compression="zstd")
    shards = ShardSet(str(tmp_path / "set"))
    flip(tmp_path / "set" / "shard.00001.mds.zstd")
    with pytest.raises(UserError, match=r"shard\.00001\.mds\.zstd is damaged, its hash"):
        shards.verify()
    with pytest.raises(UserError, match=r"shard\.00001\.mds\.zstd is damaged, its hash"):
        shards.gather(np.arange(50))
    assert not list((tmp_path / "cache").rglob("shard.00001.mds"))
    # The compressed file is as the index says, but what is in it is not.
    edit_json(
        tmp_path / "set" / "index.json",
        lambda index: index["shards"][0]["raw_data"]["hashes"].update(xxh3_128="0" * 32),
    )
    with pytest.raises(UserError, match=r"shard\.00000\.mds\.zstd, unpacked, is damaged"):
        ShardSet(str(tmp_path / "set")).gather(np.arange(1))
    edit_json(
        tmp_path / "set" / "index.json",
        lambda index: index["shards"][0]["raw_data"].update(bytes=100),
    )
    with pytest.raises(UserError, match="unpacks to more than 100 bytes"):
        ShardSet(str(tmp_path / "set")).gather(np.arange(1))


@pytest.fixture(params=["memory", "file"])
def store(request, tmp_path):
    """A function that puts a folder into an object store; the URL, and how to change a file."""

    def put(folder: Path) -> str:
        if request.param == "file":
            return f"file://{folder}"
        files = fsspec.filesystem("memory")
        files.store.clear()
        for path in folder.iterdir():
            files.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
        return "memory://bucket/set"

    return put


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_shards_of_a_store_come_when_they_are_needed(tmp_path, store, compression, capsys):
    rows = make_set(tmp_path / "set", compression=compression)
    local = ShardSet(str(tmp_path / "set"))
    shards = ShardSet(store(tmp_path / "set"))
    assert shards.fingerprint == local.fingerprint
    folder = tmp_path / "cache" / shards.fingerprint
    assert not folder.exists()
    assert (shards.gather(np.array([49, 48]))[0] == rows[[49, 48]]).all()
    assert len(list(folder.glob("*.mds"))) == 1
    shards.fetch(np.arange(20))
    assert len(list(folder.glob("*.mds"))) == 3
    shards.verify()  # the rest is compared when it comes
    assert (shards.gather(all_ids(shards))[0] == rows[all_ids(shards)]).all()
    shards.verify()
    flip(folder / "shard.00000.mds")
    again = ShardSet(shards.path)
    again.verify()
    assert "made anew" in capsys.readouterr().err
    assert (again.gather(all_ids(again))[0] == rows[all_ids(again)]).all()


def test_threads_that_fetch_ahead_end_when_nothing_is_left_and_begin_again():
    made: list[int] = []

    def make(number: int) -> None:
        made.append(number)
        if number == 2:
            raise UserError("whoever needs it will see")

    def working() -> int:
        return sum(thread.name == "fetch" for thread in threading.enumerate())

    before, ahead = working(), shard_cache.Ahead(make)
    for asked, expected in [(range(30), set(range(30))), ([29, 30, 30], set(range(31)))]:
        ahead.ask(asked)
        deadline = time.monotonic() + 30
        while set(made) != expected or working() > before:
            assert time.monotonic() < deadline, (made, working())
            time.sleep(0.01)
    assert len(made) == 31, "each of them once"


def test_what_a_store_holds_is_compared_with_the_index(tmp_path):
    make_set(tmp_path / "set")
    url = f"file://{tmp_path}/set"
    shard = tmp_path / "set" / "shard.00001.mds"
    good = shard.read_bytes()
    for bad, message in [
        (good[:-1] + b"\xfe", r"shard\.00001\.mds is damaged, its hash differs"),
        (good[:-1], r"shard\.00001\.mds does not have"),
        (good + b"x", r"shard\.00001\.mds does not have"),
        (None, r"shard\.00001\.mds is missing"),
    ]:
        shard.write_bytes(bad) if bad is not None else shard.unlink()
        shards = ShardSet(url)
        with pytest.raises(UserError, match=message):
            shards.fetch(np.arange(50))
        with pytest.raises(UserError, match=message):
            shards.gather(np.arange(50))
        assert not (tmp_path / "cache" / shards.fingerprint / "shard.00001.mds").exists()
    shard.write_bytes(good)  # mended, it is taken without a new start
    shards.gather(np.arange(50))


def test_a_file_of_the_wrong_size_in_the_cache_is_fetched_again(tmp_path):
    rows = make_set(tmp_path / "set")
    shards = ShardSet(f"file://{tmp_path}/set")
    folder = tmp_path / "cache" / shards.fingerprint
    folder.mkdir(parents=True)
    (folder / "shard.00000.mds").write_bytes(b"cut off")
    (folder / "shard.00001.mds.part").write_bytes(b"left by a killed run, longer" * 100)
    assert (shards.gather(np.arange(50))[0] == rows).all()
    assert not list(folder.glob("*.part"))


def test_threads_and_processes_fetch_a_shard_once_between_them(tmp_path, monkeypatch):
    rows = make_set(tmp_path / "set")
    url = f"file://{tmp_path}/set"
    fetched = []
    real = shard_cache.fetch

    def counted(folder, info, path):
        with open(tmp_path / "log", "a") as log:
            log.write(f"{info.name}\n")
        fetched.append(info.name)
        threading.Event().wait(0.02)  # so that the others come in the meantime
        real(folder, info, path)

    monkeypatch.setattr(shard_cache, "fetch", counted)

    def work() -> None:
        assert (ShardSet(url).gather(all_ids(ShardSet(url)))[0][0] == rows[36]).any()

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work) for _ in range(4)]
    workers += [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    names = (tmp_path / "log").read_text().split()
    assert len(names) == len(set(names)) == len(list((tmp_path / "set").glob("*.mds")))


def test_training_asks_for_the_shards_of_its_coming_steps(tmp_path):
    rows = make_set(tmp_path / "set")
    shards = ShardSet(f"file://{tmp_path}/set")
    steps = training_steps(shards, Order(BatchPlan(4, 2, 1, 1), 0, seed=3), range(200))
    next(steps)
    folder = tmp_path / "cache" / shards.fingerprint
    for _ in range(200):  # no gather has asked for all of them yet
        if len(list(folder.glob("*.mds"))) == len(list((tmp_path / "set").glob("*.mds"))):
            break
        threading.Event().wait(0.05)
    else:
        raise AssertionError("not all shards came ahead")
    steps.close()
    assert (shards.gather(np.arange(50))[0] == rows).all()


def test_a_program_ends_while_a_fetch_hangs(tmp_path):
    make_set(tmp_path / "set")
    code = (
        "import sys, threading, numpy as np\n"
        "from elemdist import shard_cache\n"
        "from elemdist.shards import ShardSet\n"
        "shard_cache.fetch = lambda *_: threading.Event().wait()\n"
        "ShardSet(sys.argv[1]).prefetch(np.arange(50))\n"
    )
    done = run_command(sys.executable, "-c", code, f"file://{tmp_path}/set", timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    make_set(tmp_path / "set", compression="gz")
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/cache"):
        ShardSet(str(tmp_path / "set")).gather(np.arange(3))


def test_the_cache_is_where_it_was_asked_for(tmp_path, monkeypatch):
    make_set(tmp_path / "set", compression="gz")
    monkeypatch.delenv("ELEMDIST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shards = ShardSet(str(tmp_path / "set"))
    shards.fetch(np.arange(50))
    assert os.listdir(tmp_path / "home/.cache/elemdist") == [shards.fingerprint]
    ShardSet(str(tmp_path / "set"), str(tmp_path / "mine")).fetch(np.arange(50))
    assert os.listdir(tmp_path / "mine") == [shards.fingerprint]


@pytest.mark.parametrize("harm", ["a flipped bit", "another header", "zeros"])
@pytest.mark.parametrize("verified", [True, False])
def test_a_damaged_file_in_the_cache_is_made_anew_and_that_is_said(
    harm, verified, tmp_path, capsys
):
    rows = make_set(tmp_path / "set", compression="zstd")
    shards = ShardSet(str(tmp_path / "set"))
    shards.fetch(all_ids(shards))
    file = tmp_path / "cache" / shards.fingerprint / "shard.00001.mds"
    whole = file.read_bytes()
    if harm == "a flipped bit":
        flip(file)
    else:
        damaged = file.with_name("damaged")
        damaged.write_bytes(
            bytes([255]) + whole[1:] if harm == "another header" else bytes(len(whole))
        )
        damaged.replace(file)  # at once, else a thread that fetches sees a part and mends it
    again = ShardSet(str(tmp_path / "set"))
    if verified:
        again.verify()
    found = again.gather(all_ids(again))[0]
    if verified or harm != "a flipped bit":  # which only a hash shows
        assert (found == rows[all_ids(again)]).all()
        assert file.read_bytes() == whole
        said = capsys.readouterr().err
        assert said == f"{file}: damaged in the cache; it is made anew from the set\n"
        again.verify()
        assert capsys.readouterr().err == ""


def test_a_damaged_file_in_the_cache_of_a_damaged_set_names_the_set(tmp_path):
    make_set(tmp_path / "set", compression="zstd")
    shards = ShardSet(str(tmp_path / "set"))
    shards.fetch(all_ids(shards))
    flip(tmp_path / "cache" / shards.fingerprint / "shard.00001.mds")
    flip(tmp_path / "set" / "shard.00001.mds.zstd")
    with pytest.raises(
        UserError, match=r"set/shard\.00001\.mds\.zstd is damaged, its hash differs"
    ):
        shards.verify()
