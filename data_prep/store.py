"""Where a run writes: a local folder or one of an object store, whose files appear whole or not.

A local file is written under a temporary name and renamed. An object is put in one request and
then compared in size; a store shows it only when it is complete. Names are relative, with `/`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import Any

from elemdist.artefacts import read_bytes
from elemdist.atomic import replacing, sync_file, sync_folder
from elemdist.errors import UserError
from elemdist.os_errors import reason_of
from elemdist.remote import filesystem, is_url, public, retried

Bytes = bytes | memoryview
LARGEST_FILE = 1 << 33  # a shard has 4 GiB at most


class LocalStore:
    """A folder of this machine, or of a file system that it shares.

    Args:
        path: the folder; it need not exist.
    """

    local = True

    def __init__(self, path: str) -> None:
        self.path = path

    def within(self, folder: str) -> LocalStore:
        """The same for a folder in this one; "" is this one."""
        return LocalStore(self.name_of(folder) if folder else self.path)

    def name_of(self, name: str) -> str:
        """The path of a file, for opening and for messages."""
        return os.path.join(self.path, *name.split("/"))

    def write(self, name: str, *parts: Bytes, flush: bool = False) -> None:
        """Writes a file, in folders that it makes; `flush` waits until it is on the disk.

        Raises:
            UserError: the disk is full, or the file cannot be written; nothing is left of it.
        """
        path = self.name_of(name)
        needed = sum(memoryview(part).nbytes for part in parts)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with replacing(path, flush) as file:
                for part in parts:
                    file.write(part)
        except OSError as error:
            raise write_error(path, needed, error) from error

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none. UserError: it cannot be read, or is no file.
        """
        return read_bytes(self.name_of(name), LARGEST_FILE)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """The bytes from start to end of a file."""
        with open(self.name_of(name), "rb", buffering=0) as file:
            file.seek(start)
            return file.read(end - start)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        path = self.name_of(name)
        return os.path.getsize(path) if os.path.isfile(path) else None

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders in a folder, sorted; none if it is missing."""
        try:
            return sorted(os.listdir(self.name_of(folder) if folder else self.path))
        except FileNotFoundError:
            return []

    def sizes(self) -> dict[str, int]:
        """Bytes of every file that lies in the folder itself."""
        try:
            with os.scandir(self.path) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return {}

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name_of(name))

    def remove_folder(self, folder: str) -> None:
        """Removes a folder with all that is in it, if it is there."""
        shutil.rmtree(self.name_of(folder), ignore_errors=True)

    def sync(self, name: str = "") -> None:
        """Waits until a file, or the names in the folder itself, are on the disk."""
        path = self.name_of(name) if name else self.path
        try:
            sync_file(path) if name else sync_folder(path)
        except OSError as error:
            raise write_error(path, 0, error) from error


class RemoteStore:
    """A folder of an object store; the methods are those of LocalStore.

    Args:
        url: the folder, as s3://bucket/folder.
    """

    local = False

    def __init__(self, url: str) -> None:
        self.path = url.rstrip("/")
        self._files, self._root = filesystem(self.path)

    def within(self, folder: str) -> RemoteStore:
        """As LocalStore."""
        return RemoteStore(self.name_of(folder)) if folder else self

    def name_of(self, name: str) -> str:
        """As LocalStore."""
        return f"{self.path}/{name}"

    def write(self, name: str, *parts: Bytes, flush: bool = False) -> None:
        """Puts an object, again where the store fails, and compares its size with what was sent.

        Raises:
            UserError: the store refuses, or fails again and again.
        """
        content = b"".join(parts)
        place = f"{self._root}/{name}"

        def put() -> None:
            self._files.pipe_file(place, content)
            self._files.invalidate_cache()
            there = self._files.info(place)["size"]
            if there != len(content):
                raise OSError(f"{there:,} bytes arrived instead of {len(content):,}")

        self._tried(put, f"writing {public(self.name_of(name))}")

    def read(self, name: str) -> bytes:
        """As LocalStore."""
        what = f"reading {public(self.name_of(name))}"
        return retried(lambda: self._files.cat_file(f"{self._root}/{name}"), what)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """As LocalStore."""
        what = f"reading {public(self.name_of(name))}"
        place = f"{self._root}/{name}"
        return retried(lambda: self._files.cat_file(place, start=start, end=end), what)

    def size(self, name: str) -> int | None:
        """As LocalStore; asks the store anew each time."""
        self._files.invalidate_cache()
        try:
            return self._tried(
                lambda: int(self._files.info(f"{self._root}/{name}")["size"]),
                f"looking at {public(self.name_of(name))}",
            )
        except FileNotFoundError:
            return None

    def sizes(self) -> dict[str, int]:
        """As LocalStore."""
        return {
            entry["name"].rpartition("/")[2]: int(entry["size"])
            for entry in self._listed("")
            if entry["type"] == "file"
        }

    def names(self, folder: str = "") -> list[str]:
        """As LocalStore."""
        names = {entry["name"].rstrip("/").rpartition("/")[2] for entry in self._listed(folder)}
        return sorted(names - {""})

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        """What lies in a folder, without the folder's own entry."""
        self._files.invalidate_cache()
        place = f"{self._root}/{folder}".rstrip("/")
        try:
            found = self._tried(
                lambda: self._files.ls(place, detail=True), f"listing {public(self.path)}"
            )
        except FileNotFoundError:
            return []
        own = place.strip("/")
        return [entry for entry in found if entry["name"].strip("/") != own]

    def remove(self, name: str) -> None:
        """As LocalStore."""
        with contextlib.suppress(FileNotFoundError):
            self._tried(
                lambda: self._files.rm_file(f"{self._root}/{name}"),
                f"removing {public(self.name_of(name))}",
            )

    def remove_folder(self, folder: str) -> None:
        """As LocalStore."""
        place = f"{self._root}/{folder}"
        self._files.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            self._tried(
                lambda: self._files.rm(place, recursive=True),
                f"removing {public(self.name_of(folder))}",
            )

    def sync(self, name: str = "") -> None:
        """Nothing to wait for: what the store has acknowledged is kept."""

    def _tried(self, action: Any, what: str) -> Any:
        try:
            return retried(action, what)
        except PermissionError as error:
            text = " ".join(str(error).split())
            raise UserError(f"{what}: the store refuses access ({text})") from error


Store = LocalStore | RemoteStore


def open_store(path: str) -> Store:
    """The folder or URL to write to; touches nothing.

    Raises:
        UserError: a URL of an unknown kind, or whose package is not installed.
    """
    return RemoteStore(path) if is_url(path) else LocalStore(path)


def write_error(path: str, needed: int, error: OSError) -> UserError:
    """What a user is told when `needed` bytes could not be written to `path`."""
    if error.errno != errno.ENOSPC:
        return UserError(f"cannot write {path}: {reason_of(error)}")
    folder = os.path.dirname(path) or "."
    free = shutil.disk_usage(folder).free if os.path.isdir(folder) else 0
    needs = f"the file needs {needed:,} bytes" if needed else "it needs more"
    if free > needed + (1 << 26):  # bytes are not what is missing
        needs = "its inodes may be used up (see `df -i`), or a quota of the folder"
    return UserError(
        f"no space for {path}: {error.strerror}; {needs} and the disk has {free:,} bytes free. "
        f"Nothing incomplete is left behind: make room and run again"
    )
