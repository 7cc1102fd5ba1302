from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from elemdist import atomic
from elemdist.atomic import new_folder, remove_leftovers, write_atomically, write_result
from elemdist.errors import UserError
from tests.conftest import REPOSITORY

CONTEXT = multiprocessing.get_context("fork")
TIMES = 150


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_often(path: Path, letter: str) -> None:
    for number in range(TIMES):
        write_atomically(path, letter * (1 + 97 * number))


def test_two_processes_at_one_file_both_succeed_and_a_reader_sees_whole_content(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "a")
    writers = [CONTEXT.Process(target=write_often, args=(path, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert text == text[:1] * len(text)
        assert len(text) % 97 == 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("write", [write_atomically, write_result])
def test_links_are_replaced_and_never_followed(write, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    target = tmp_path / "out"
    for name in (".out.tmp", "out"):
        (tmp_path / name).symlink_to(precious)
    write(target, "new")
    assert precious.read_text() == "mine"
    assert target.read_text() == "new"
    assert not target.is_symlink()


def test_a_link_to_nothing_and_one_to_itself_are_replaced(tmp_path):
    for place in ("missing", "out"):
        (tmp_path / "out").unlink(missing_ok=True)
        (tmp_path / "out").symlink_to(tmp_path / place)
        write_result(tmp_path / "out", "new")
        assert (tmp_path / "out").read_text() == "new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_is_readable_as_umask_says(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"\0")
        with new_folder(tmp_path / "folder") as folder:
            (folder / "file").touch()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_an_existing_file_keeps_its_permissions(mode, tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(mode)
    write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize("length", [250, 255, 256])
@pytest.mark.parametrize("letter", ["x", "ü", "漢"])
def test_the_longest_names_work_and_longer_ones_are_said(length, letter, tmp_path):
    path = tmp_path / (
        letter * (length // len(letter.encode())) + "x" * (length % len(letter.encode()))
    )
    if length <= 255:
        write_result(path, "x")
        assert names(tmp_path) == [path.name]
    else:
        with pytest.raises(UserError, match="File name too long: shorten the name"):
            write_result(path, "x")
        assert names(tmp_path) == []


def in_limits(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    with pytest.raises(UserError, match=r"cannot be written: File too large: raise `ulimit -f`"):
        write_result(path, b"x" * (1 << 17))


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    child = CONTEXT.Process(target=in_limits, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def fail_within(manager, error: type[BaseException]) -> None:
    with manager as one:
        if isinstance(one, Path):
            (one / "half").touch()
        else:
            one.write(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("make", [atomic.replacing, new_folder])
def test_an_exception_of_any_kind_leaves_nothing(make, error, tmp_path):
    with pytest.raises(error):
        fail_within(make(tmp_path / "result"), error)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("folder", "Is a directory: name a file in it"),
        ("file/below", "Not a directory: a part of that path is a file"),
        ("missing/below", "No such file or directory"),
        ("loop/below", "Too many levels of symbolic links"),
        ("socket", "No such device or address: no program reads"),
        ("/proc/version", "Permission denied|Input/output error"),
        ("/", "Is a directory"),
        ("nul\0", "null"),
    ],
)
def test_what_cannot_be_written_is_one_line(path, line, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    subprocess.run(
        [sys.executable, "-c", "import socket; socket.socket(socket.AF_UNIX).bind('socket')"],
        cwd=tmp_path,
        check=True,
    )
    before = names(tmp_path)
    with pytest.raises(UserError, match=line) as raised:
        write_result(tmp_path / path, "x")
    assert "\n" not in str(raised.value)
    assert names(tmp_path) == before


def test_a_named_pipe_and_devices_are_written_to_as_they_are(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    (tmp_path / "null").symlink_to("/dev/null")
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_result(pipe, "through")
    reader.join()
    write_result("/dev/null", "away")
    write_result(tmp_path / "null", "away")
    assert found == ["through"]
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()
    with pytest.raises(UserError, match="/dev/full: cannot be written: No space left on device"):
        write_result("/dev/full", "x")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_the_standard_output_by_name_is_written_to_wherever_it_leads(name, tmp_path):
    code = f"from elemdist.atomic import write_result; write_result({name!r}, 'text')"
    with open(tmp_path / "file", "wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, cwd=REPOSITORY, check=True)
    assert (tmp_path / "file").read_text() == "text"
    assert Path("/dev/stdout").is_symlink()


def hold(path: Path, ready, folder: bool) -> None:
    with new_folder(path) if folder else atomic.replacing(path):
        ready.set()
        threading.Event().wait()


@pytest.mark.parametrize("folder", [False, True])
def test_what_a_killed_writer_leaves_is_removed_and_a_living_ones_is_not(folder, tmp_path):
    ready, path = CONTEXT.Event(), tmp_path / "result"
    writer = CONTEXT.Process(target=hold, args=(path, ready, folder))
    writer.start()
    ready.wait(30)
    (left,) = names(tmp_path)
    assert atomic.TEMPORARY.fullmatch(left)
    assert remove_leftovers(tmp_path) == []
    writer.kill()
    writer.join()
    assert remove_leftovers(tmp_path, "another") == []
    assert names(tmp_path) == [left]
    if folder:
        with new_folder(path):
            pass
    else:
        write_result(path, "x")
    assert names(tmp_path) == ["result"]


def test_only_what_is_ours_is_taken_for_a_leftover(tmp_path):
    others = [".out.tmp", "out.tmp", ".out.0123.tmp", "a.0123456789abcdef.tmp"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".out.0123456789abcdef.tmp").symlink_to(tmp_path / "out.tmp")
    os.mkfifo(tmp_path / ".out.fedcba9876543210.tmp")
    assert remove_leftovers(tmp_path) == []
    assert remove_leftovers(tmp_path / "missing") == []
    assert len(names(tmp_path)) == len(others) + 2


@pytest.mark.parametrize("what", ["EINVAL", "ENOTSUP", "ENOSYS", "EACCES", "EPERM", "EBADF"])
def test_a_file_system_that_flushes_no_folders_is_no_error(what, tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            number = getattr(errno, what)
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomically(tmp_path / "file", "x")
    with new_folder(tmp_path / "folder") as folder:
        (folder / "file").touch()
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("of_folders", [True, False])
def test_a_disk_that_fails_to_flush_is_an_error(of_folders, tmp_path, monkeypatch):
    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == of_folders:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(tmp_path / "file", "x")
    assert (tmp_path / "file").exists() == of_folders
