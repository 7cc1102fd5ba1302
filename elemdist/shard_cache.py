"""The files of a shard set, wherever they lie: in a folder, in an object store, or in the cache.

What is fetched from a store, or unpacked, is compared with the index (size, and a hash where it
has one) before it gets its name in the cache, so that a file with its name is a whole one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from elemdist.artefacts import open_file, read_bytes
from elemdist.compression import decompress
from elemdist.errors import UserError
from elemdist.file_info import FileInfo, leads_out
from elemdist.os_errors import reason_of
from elemdist.remote import filesystem, is_url, public, retried

RANGE = 16 << 20  # bytes asked of a store at a time, and lost when it fails
THREADS = 8  # that fetch at a time; a store answers late, but many at once


class LocalFolder:
    """A set's folder on this machine, or on a file system that it shares."""

    def __init__(self, path: str) -> None:
        self.path = self.name = path

    def read(self, name: str, first: int = 0, end: int | None = None) -> bytes:
        """Bytes `first` to `end` of a file, fewer where it is shorter.

        Raises:
            FileNotFoundError: there is none. UserError: it cannot be read.
        """
        path = os.path.join(self.path, name)
        try:
            if end is None and not first:
                return read_bytes(path)
            with open(open_file(path), "rb") as file:
                file.seek(first)
                return file.read(-1 if end is None else end - first)
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason_of(error)}") from error

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return os.path.exists(os.path.join(self.path, name))

    def exists_beside(self, name: str) -> bool:
        """Whether the folder that this one lies in has it."""
        return os.path.exists(os.path.join(os.path.dirname(os.path.abspath(self.path)), name))


class RemoteFolder:
    """A set's folder in an object store; `name` is its URL without secrets, for messages."""

    def __init__(self, url: str) -> None:
        self.path = url.rstrip("/")
        self.name = public(self.path)
        self._open, self._root = filesystem(self.path)
        self._pid = os.getpid()

    @property
    def _files(self) -> Any:
        """The file system; some kinds do not work in a process forked from theirs."""
        if self._pid != os.getpid():
            self._open, self._pid = filesystem(self.path)[0], os.getpid()
        return self._open

    def _tried(self, action: Callable[[], Any], what: str) -> Any:
        try:
            return retried(action, what)
        except PermissionError as error:
            text = " ".join(str(error).split())
            raise UserError(f"{what}: the store refuses access ({text})") from error

    def read(self, name: str, first: int = 0, end: int | None = None) -> bytes:
        """As LocalFolder.read; again where the store fails."""
        place = f"{self._root}/{name}"
        part = {} if end is None and not first else {"start": first, "end": end}
        return self._tried(
            lambda: self._files.cat_file(place, **part), f"reading {self.name}/{name}"
        )

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""
        return self._exists(f"{self._root}/{name}")

    def exists_beside(self, name: str) -> bool:
        """Whether there is one beside the folder."""
        above = self._root.rpartition("/")[0]
        return bool(above) and self._exists(f"{above}/{name}")

    def _exists(self, place: str) -> bool:
        return self._tried(lambda: self._files.exists(place), f"looking into {self.name}")


Folder = LocalFolder | RemoteFolder


def open_folder(path: str) -> Folder:
    """The folder or URL of a set; reads nothing.

    Raises:
        UserError: a URL of an unknown kind, or whose package is not installed.
    """
    return RemoteFolder(path) if is_url(path) else LocalFolder(path)


def cache_folder(cache: str | None, fingerprint: str) -> str:
    """Where the shards of a set lie that have no usable file of their own on this machine.

    Args:
        cache: the folder for all sets; None: $ELEMDIST_CACHE, else ~/.cache/elemdist.
    """
    root = cache or os.environ.get("ELEMDIST_CACHE") or os.path.expanduser("~/.cache/elemdist")
    return os.path.join(root, fingerprint)


def check_size(folder: LocalFolder, info: FileInfo) -> None:
    """Raises UserError if a file of the set is missing or does not have the bytes it should."""
    path = os.path.join(folder.path, info.name)
    if leads_out(folder.path, info.name):
        raise UserError(f"{path} is a link out of the shard set's folder: copy the file itself")
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing: the shard set is not complete, copy it again")
    size = os.path.getsize(path)
    if size != info.size:
        raise UserError(f"{path} has {size:,} bytes instead of {info.size:,}: copy it again")


def is_whole(path: str, size: int) -> bool:
    """Whether a file lies there with so many bytes."""
    return os.path.isfile(path) and os.path.getsize(path) == size


def make_once(path: str, size: int, write: Callable[[str], None]) -> None:
    """Makes a file of `size` bytes, whole or not at all, unless it is there.

    However many threads and processes of a machine ask for it at once, one makes it and the others
    wait. write(temporary path) is called for it; the file then gets its name. The lock ends with
    the process that holds it, and what a killed one has left is overwritten.

    Raises:
        UserError: the file cannot be written, or `write` says so; nothing is left of it.
    """
    part = f"{path}.part"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(part, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks: the work is done twice, never mixed
                part += f"-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
            try:
                if is_whole(path, size):
                    with contextlib.suppress(FileNotFoundError):  # ours, if another was faster
                        os.unlink(part)
                    return
                write(part)
                os.replace(part, path)
            except BaseException:
                # Not unlinked: others may wait for the lock on this very file.
                with contextlib.suppress(OSError):
                    os.truncate(part, 0)
                raise
            finally:
                # Closing would not do: a process forked meanwhile has the file open, too.
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {reason_of(error)}; ELEMDIST_CACHE names the folder of the cache"
        ) from error


def fetch(folder: Folder, info: FileInfo, path: str) -> None:
    """Copies a file of the set to `path` and compares it with the index.

    Raises:
        UserError: it is missing, of the wrong size or content, or the store fails.
        OSError: `path` cannot be written.
    """
    digest, expected = info.digest()
    what = f"{folder.name}/{info.name}"
    with open(path, "wb", buffering=0) as file:
        for first in range(0, info.size, RANGE):
            end = min(first + RANGE, info.size)
            # One byte more than there should be shows a file that is too long.
            data = read_existing(folder, info.name, first, end + (end == info.size))
            if len(data) != end - first:
                raise UserError(f"{what} does not have {info.size:,} bytes: copy it again")
            if digest is not None:
                digest.update(data)
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
    if digest is not None and digest.hexdigest() != expected:
        raise UserError(f"{what} is damaged, its hash differs: copy it again")


def read_existing(folder: Folder, name: str, first: int = 0, end: int | None = None) -> bytes:
    """folder.read() of a file that the index names.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        return folder.read(name, first, end)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder.name}/{name} is missing: the shard set is not complete, copy it again"
        ) from error


def unpack(folder: Folder, packed: FileInfo, raw: FileInfo, compression: str, path: str) -> None:
    """Unpacks a compressed shard of the set to `path`, both compared with the index.

    Raises:
        UserError: it is missing or damaged, or the store fails.
        OSError: `path` cannot be written.
    """
    what = f"{folder.name}/{packed.name}"
    data = read_existing(folder, packed.name, 0, packed.size + 1)
    packed.check_bytes(data, what)
    try:
        data = decompress(compression, data, raw.size)
    except ValueError as error:
        raise UserError(f"{what} cannot be unpacked: {error}") from error
    raw.check_bytes(data, f"{what}, unpacked,")
    with open(path, "wb") as file:
        file.write(data)


class Ahead:
    """Threads that call make(number) for the numbers that were asked for, in that order, and end
    when there is none left.

    They only save time: what they could not make is made, or its error raised, where it is needed.
    They are daemons, for a program's end must not wait for what nobody needs any more.
    """

    def __init__(self, make: Callable[[int], None]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._left: deque[int] = deque()
        self._asked: set[int] = set()
        self._threads = 0
        self._pid = os.getpid()

    def ask(self, numbers: Iterable[int]) -> None:
        """Shards that will be wanted soon, by number."""
        if self._pid != os.getpid():  # forked: the threads stayed behind
            self.__init__(self._make)  # type: ignore[misc]
        with self._lock:
            new = [number for number in dict.fromkeys(numbers) if number not in self._asked]
            self._asked.update(new)
            self._left.extend(new)
            more = min(THREADS - self._threads, len(new))
            self._threads += more
        for _ in range(more):
            threading.Thread(target=self._work, name="fetch", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._left:
                    self._threads -= 1
                    return
                number = self._left.popleft()
            with contextlib.suppress(Exception):
                self._make(number)
