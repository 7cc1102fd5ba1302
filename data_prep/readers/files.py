"""The stored bytes of a source, on a disk or in an object store, and what they unpack to.

Memory stays bounded by a few MiB, whatever the size of the file or of what it unpacks to.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import xxhash

from data_prep.documents import STDIN, Part, Source
from data_prep.readers.unpack import READ_BYTES, DamagedError, unpacked
from elemdist.errors import UserError
from elemdist.remote import filesystem, is_url, public, retried

Result = TypeVar("Result")

REMOTE_BYTES = 8 << 20  # of an object: each request waits for the network
VERSION_KEYS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime")


def remote_version(info: dict[str, Any]) -> str:
    """What tells one content of an object from another, out of what its store says of it."""
    for key in (*VERSION_KEYS, "updated", "created"):
        if info.get(key):
            value = info[key]
            stamp = value.timestamp() if isinstance(value, datetime.datetime) else value
            return str(stamp).strip('"')
    return ""


def asked(action: Callable[[], Result], path: str) -> Result:
    """action() on an object in a store, with the errors that a local file would have.

    Raises:
        UserError: it is missing, access is refused, or the store does not answer.
    """
    try:
        return retried(action, f"reading {public(path)}")
    except FileNotFoundError as error:
        raise UserError(f"no such file or folder: {public(path)}") from error
    except PermissionError as error:
        raise UserError(f"cannot read {public(path)}: access is refused") from error


class Stored:
    """Reads any ranges of a source's bytes; use it in a with statement.

    Raises:
        UserError: the source cannot be opened.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._store: Any = None
        self._file = -1
        if is_url(source.path):
            self._store, self._path = filesystem(source.path)
            return
        try:
            self._file = os.open(source.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"cannot read {source.path}: {error.strerror}") from error

    def __enter__(self) -> Stored:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def read_size(self) -> int:
        """Bytes of a good read."""
        return REMOTE_BYTES if self._store else READ_BYTES

    def read(self, start: int, size: int) -> bytes:
        """The bytes from start on; fewer than size only at the end of the file.

        Raises:
            UserError: they cannot be read.
        """
        path, end = self._source.path, min(start + size, self._source.size)
        if start >= end:
            return b""
        if self._store:
            found: bytes = asked(
                lambda: self._store.cat_file(self._path, start=start, end=end), path
            )
            return found
        try:
            return os.pread(self._file, end - start, start)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error

    def check(self) -> None:
        """Compares size and version with those of the plan.

        Raises:
            UserError: the source changed.
        """
        if self._store:
            self._store.invalidate_cache()
            info = asked(lambda: self._store.info(self._path), self._source.path)
            size, version = info["size"], remote_version(info)
        else:
            status = os.fstat(self._file)
            size, version = status.st_size, str(status.st_mtime_ns)
        path = public(self._source.path)
        if size < self._source.size:
            raise UserError(f"{path} became shorter while it was read: run again")
        if size != self._source.size or version != self._source.version:
            raise UserError(f"{path} changed while it was read: run again")


class StoredFile(io.RawIOBase):
    """A source as a binary file object that seeks, for libraries that want one."""

    def __init__(self, stored: Stored, size: int) -> None:
        self._stored, self._size, self._at = stored, size, 0

    def readable(self) -> bool:
        """As io.RawIOBase."""
        return True

    def seekable(self) -> bool:
        """As io.RawIOBase."""
        return True

    def tell(self) -> int:
        """As io.RawIOBase."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As io.RawIOBase."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """As io.RawIOBase; one request to the store a call."""
        found = self._stored.read(self._at, len(buffer))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


class PartStream:
    """Reads a part of a source once, from its start to its end.

    Attributes:
        hash: xxh3_128 of the stored bytes read so far.
    """

    def __init__(self, part: Part, progress: Callable[[int], None]) -> None:
        """`progress` is called with the number of stored bytes after each read."""
        self._part, self._progress = part, progress
        self._least = 1 if part.source.live else READ_BYTES  # what comes is handed on at once
        self._raw = self._live_chunks() if part.source.live else self._stored_chunks()
        self.hash = xxhash.xxh3_128()

    def chunks(self) -> Iterator[bytes]:
        """The bytes, unpacked, in pieces of about READ_BYTES; none is empty.

        Raises:
            UserError: the file cannot be read, or changed since the plan.
            DamagedError: what is packed is damaged or cut short.
        """
        compression = self._part.source.compression
        if not compression:
            yield from self._raw
            return
        held: list[bytes] = []
        size = 0
        try:
            for text in unpacked(self._raw, compression):
                held.append(text)
                size += len(text)
                if size >= self._least:
                    whole, held, size = b"".join(held), [], 0
                    for start in range(0, len(whole), READ_BYTES):
                        yield whole[start : start + READ_BYTES]
        except DamagedError:
            if size:
                yield b"".join(held)
            raise
        if size:
            yield b"".join(held)

    def finish(self) -> str:
        """Reads what is left unread, and gives the hash of all: 32 hexadecimal digits.

        Raises:
            UserError: the file changed since the plan.
        """
        for _ in self._raw:
            pass
        return self.hash.hexdigest()

    def _live_chunks(self) -> Iterator[bytes]:
        path = self._part.source.path
        try:
            if path == STDIN and sys.stdin is None:
                raise UserError("cannot read standard input: it is closed")
            # Without a buffer, whose lock a thread that waits here would hold when Python ends.
            target = sys.stdin.fileno() if path == STDIN else path
            with open(target, "rb", buffering=0, closefd=path != STDIN) as file:
                while chunk := file.read(READ_BYTES):
                    self.hash.update(chunk)
                    self._progress(len(chunk))
                    yield chunk
        except OSError as error:
            what = "standard input" if path == STDIN else path
            raise UserError(f"cannot read {what}: {error.strerror or error}") from error

    def _stored_chunks(self) -> Iterator[bytes]:
        part = self._part
        at, path = part.start, public(part.source.path)
        with Stored(part.source) as stored:
            stored.check()
            while at < part.end:
                big = stored.read(at, min(stored.read_size, part.end - at))
                if not big:
                    raise UserError(f"{path} became shorter while it was read: run again")
                for start in range(0, len(big), READ_BYTES):
                    chunk = big[start : start + READ_BYTES]
                    self.hash.update(chunk)
                    self._progress(len(chunk))
                    yield chunk
                at += len(big)
            stored.check()


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Any]:
    """A source as a file object that seeks, checked against the plan before and after.

    Raises:
        UserError: it cannot be opened, or changed.
    """
    with Stored(source) as stored:
        stored.check()
        yield StoredFile(stored, source.size)
        stored.check()
