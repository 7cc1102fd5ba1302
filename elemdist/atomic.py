"""Files that are there wholly or not at all, whatever happens while they are written.

A new file is written under a random name beside its place, with a lock on it (flock) as long as its
writer lives, and then takes its name in one step. What a killed writer leaves is known by its name,
and proven dead by the lock that nobody holds any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from elemdist.errors import UserError
from elemdist.os_errors import reason_of

TEMPORARY = re.compile(r"\.(.*)\.[0-9a-f]{16}\.tmp", re.DOTALL)
STEM = 50  # characters of a name that its temporary one keeps: 255 bytes hold both
# What a file system answers that cannot flush a folder: FUSE, SMB, some of NFS. Its files it can.
NO_FOLDER_FSYNC = (
    errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF,
    errno.EISDIR,
)  # fmt: skip
DEVICES = ("/dev", "/proc")
SHARED_MEMORY = "/dev/shm"


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part.

    A link is replaced, not followed. An existing file keeps its permissions, a new one has those
    that umask leaves. Raises OSError; nothing is left then.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as file:
        file.write(data)


def write_result(path: str | Path, content: str | bytes) -> None:
    """Do the same for a file that a user has named, as result() does. Raises UserError."""
    data = content.encode() if isinstance(content, str) else content
    with result(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str | Path, flush: bool = True) -> Iterator[BinaryIO]:
    """Yield a file to write to, which takes the name `path` once the block has ended, and with
    `flush` is on the disk then; it is removed where the block raises. Raises OSError."""
    path = Path(path)
    if not path.name:  # "/" or "."
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    handle, temporary = _new_file(path)
    try:
        with open(handle, "wb") as file:
            yield file
            file.flush()
            with contextlib.suppress(OSError):  # none is there, or it has no permissions
                there = os.lstat(path)
                if stat.S_ISREG(there.st_mode):
                    os.fchmod(file.fileno(), stat.S_IMODE(there.st_mode) & 0o777)
            if flush:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if flush:
        sync_folder(path.parent)


@contextlib.contextmanager
def result(path: str | Path) -> Iterator[BinaryIO]:
    """Yield the same for a file that a user has named, where a device or a named pipe is written to
    as it is. Raises UserError where it cannot be written."""
    path = Path(path)
    try:
        if is_special(path):
            with open(path, "wb") as file:
                yield file
            return
        remove_leftovers(path.parent, path.name)
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason_of(error)}") from None
    except ValueError as error:
        if "\0" not in str(path):
            raise
        raise UserError(f"{str(path)!r}: cannot be written: {error}") from None


def is_special(path: Path) -> bool:
    """Return whether a path names what cannot be replaced by a file: a device, a pipe, a socket,
    or /dev/stdout, whatever that leads to."""
    folder = Path(os.path.realpath(path.parent))
    if any(map(folder.is_relative_to, DEVICES)) and not folder.is_relative_to(SHARED_MEMORY):
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def temporary_name(path: Path) -> Path:
    """Return a name of its own for what is to become `path`, in the same folder."""
    return path.with_name(f".{path.name[:STEM]}.{secrets.token_hex(8)}.tmp")


def _new_file(path: Path) -> tuple[int, Path]:
    """Return a new, locked file beside `path`, as its descriptor and its path."""
    while True:
        temporary = temporary_name(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(temporary, flags, 0o666)
        try:
            if _locked(handle):
                return handle, temporary
        except BaseException:
            os.close(handle)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        os.close(handle)


def _locked(handle: int) -> bool:
    """Lock a new file or folder, and return whether it was not taken for a leftover meanwhile."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # a file system without locks, where leftovers stay
        return True
    return os.fstat(handle).st_nlink > 0


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to write to, which takes the name `path`, where there must be none, once the
    block has ended; all of it is on the disk then. It is removed where the block raises.

    Raises:
        OSError: it cannot be made, written or named.
    """
    remove_leftovers(path.parent, path.name)
    while True:
        temporary = temporary_name(path)
        temporary.mkdir()
        try:
            handle = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # taken for a leftover
            continue
        if _locked(handle):
            break
        os.close(handle)
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                sync_file(Path(folder, name))
            sync_folder(Path(folder))
        temporary.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def remove_leftovers(folder: str | Path, name: str | None = None) -> list[str]:
    """Remove what killed writers left in a folder, where no living one holds it; return the names.

    Args:
        name: only what was to become the file or folder of this name; None: all.
    """
    removed: list[str] = []
    try:
        with os.scandir(folder) as entries:
            matches = [(TEMPORARY.fullmatch(entry.name), entry) for entry in entries]
    except OSError:
        return removed
    stem = None if name is None else name[:STEM]
    for entry in (entry for match, entry in matches if match and stem in (None, match[1])):
        with contextlib.suppress(OSError):
            if _remove_dead(entry.path):
                removed.append(entry.name)
    return removed


def _remove_dead(path: str) -> bool:
    """Remove a file or folder unless a living writer holds it. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        elif stat.S_ISREG(os.fstat(handle).st_mode):
            os.unlink(path)
        else:
            return False
    finally:
        os.close(handle)
    return True


def sync_file(path: str | Path) -> None:
    """Return when a file's content is on the disk. Raises OSError."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: str | Path) -> None:
    """Return when the names in a folder are on the disk, on file systems that can do that.

    Raises:
        OSError: the disk fails.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_FSYNC:
            raise
