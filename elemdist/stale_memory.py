"""Shared memory that killed runs of a StreamingDataset left behind.

streaming keeps small objects in shared memory, /dev/shm/NNNNNN_locals, NNNNNN_barrier and others,
one number for every data set of a run, and unlinks them at the end. Those of a killed run stay,
and a later one that attaches to them hangs.

What proves that a run is dead is a record beside its objects, NNNNNN_elemdist: every process of
the run holds a lock (flock) on it as long as it lives, and so do its DataLoader workers. The kernel
takes the lock away when the last of them has ended, however that came about, and shows it also to
containers that share the memory but not the process table; names, ages and /proc prove nothing
there. The record names the inode of NNNNNN_locals, which a run makes first and only where there is
none: as long as it is the same one, everything with that number belongs to the recorded run.

Objects without a record, as those of stock data sets, are never removed, whatever their age. Their
numbers are only passed over: streaming takes none whose lock file exists.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator

SHARED_MEMORY = "/dev/shm"
RECORD = "elemdist"
FIRST = "locals"  # of a run's objects
LOCK_FILES = (
    "barrier_filelock",
    "cache_filelock",
)  # streaming's, in the folder for temporary files
NAMES = (
    "locals", "barrier", "next_epoch", "cache_usage", "shard_states", "shard_access_times",
    "resume", "epoch_shape", "epoch_data",
)  # fmt: skip
PATTERN = re.compile(rf"(\d{{6}})_({'|'.join((*NAMES, RECORD))})")

_held: dict[int, int] = {}  # number of a run -> the descriptor that holds its lock, until the end


def hold(number: int, leader: bool) -> None:
    """Declares this process part of the living run with this number, until the process ends.

    Args:
        leader: whether it made the run's objects, and so writes the record.
    """
    if number in _held or not os.path.isdir(SHARED_MEMORY):
        return
    path = os.path.join(SHARED_MEMORY, f"{number:06}_{RECORD}")
    record = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(record, fcntl.LOCK_SH)
    _held[number] = record
    if leader:
        inode = os.stat(os.path.join(SHARED_MEMORY, f"{number:06}_{FIRST}")).st_ino
        os.truncate(record, 0)
        os.pwrite(record, f"{inode}\n".encode(), 0)
        atexit.register(_forget, path, os.getpid())


def _forget(path: str, pid: int) -> None:
    """The normal end: streaming removes its objects, and the record goes with them."""
    if os.getpid() == pid:
        with contextlib.suppress(OSError):
            os.unlink(path)


def remove_stale() -> list[str]:
    """Removes the objects of runs that are provably dead; their names."""
    removed: list[str] = []
    for number, names in sorted(_own_objects().items()):
        if RECORD in names and FIRST in names:
            with _dead(number) as proven:
                if proven:
                    # While FIRST is there no other run can take the number, so it goes last.
                    for name in sorted(names, key=lambda name: (name == FIRST, name == RECORD)):
                        os.unlink(os.path.join(SHARED_MEMORY, f"{number:06}_{name}"))
                        removed.append(f"{number:06}_{name}")
    return removed


@contextlib.contextmanager
def _dead(number: int) -> Iterator[bool]:
    """Whether the run with this number has no living process; nobody joins it in the meantime."""
    path = os.path.join(SHARED_MEMORY, f"{number:06}_{RECORD}")
    try:
        record = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        first = os.stat(os.path.join(SHARED_MEMORY, f"{number:06}_{FIRST}"))
        there = os.stat(path).st_ino == os.fstat(record).st_ino
        dead = there and os.pread(record, 64, 0) == f"{first.st_ino}\n".encode()
    except OSError:  # a living process holds the lock, or another one is removing these
        dead = False
    try:
        yield dead
    finally:
        os.close(record)


def pass_over() -> None:
    """Keeps streaming from taking a number under which objects are left that may not be removed."""
    for number in _own_objects():
        # Other users' objects streaming passes over itself; their lock files are theirs to make.
        locks = [os.path.join(tempfile.gettempdir(), f"{number:06}_{name}") for name in LOCK_FILES]
        if not any(map(os.path.exists, locks)):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(locks[0], os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))


def _own_objects() -> dict[int, list[str]]:
    """This user's objects by number: the parts of their names behind it."""
    found: dict[int, list[str]] = {}
    if not os.path.isdir(SHARED_MEMORY):
        return found
    with os.scandir(SHARED_MEMORY) as entries:
        for entry in entries:
            match = PATTERN.fullmatch(entry.name)
            with contextlib.suppress(FileNotFoundError):
                if match and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                    found.setdefault(int(match[1]), []).append(match[2])
    return found
