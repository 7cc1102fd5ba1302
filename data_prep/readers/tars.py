"""The documents of a tar file: each of its files is one."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from data_prep.documents import Batch
from data_prep.losses import BAD_NAME, HIDDEN, LINK_MEMBER, NOT_MATCHED
from data_prep.readers.content import checked
from data_prep.readers.deliver import Delivery, gathered
from data_prep.readers.files import PartStream
from data_prep.readers.task import ReadTask
from data_prep.readers.unpack import DamagedError

READ_BYTES = 1 << 20
HEADER_BYTES = 16 << 20  # of one member: what tarfile holds in memory
# At a block of zeros, and behind the last block.
EndError, EmptyError = tarfile.EOFHeaderError, tarfile.EmptyHeaderError  # type: ignore[attr-defined]
UNREADABLE = (tarfile.TarError, ValueError, OverflowError)  # tarfile takes numbers as they come


class _Header(tarfile.TarInfo):
    """A member's header. tarfile takes a damaged one for the end of the file; it is not.

    Archives may follow each other (`cat a.tar b.tar`): tarfile reads on behind the end of one, and
    what follows there must be another one, or zeros.
    """

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Header:
        stream: Any = tarfile.fileobj
        file: _File = stream.fileobj
        try:
            found = super().fromtarfile(tarfile)
        except EndError:
            file.ended, file.last = True, file.read_bytes + HEADER_BYTES
            raise
        except EmptyError:
            if file.ended:
                raise
            raise DamagedError("is cut short: a tar file ends with blocks of zeros") from None
        except UNREADABLE as error:
            if file.ended:
                raise DamagedError(
                    f"goes on at byte {tarfile.offset:,} behind the end of an archive, with what is"
                    f" no tar file ({error}): cut that off, or copy it again"
                ) from error
            raise DamagedError(f"is damaged, cut short, or no tar file: {error}") from error
        file.ended = False
        return found


class _File:
    """The unpacked bytes of the tar file, for tarfile to read.

    Attributes:
        read_bytes: how many were read. last: where reading has to end, None for anywhere.
        ended: the last block that was read ends an archive.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._chunk, self._at = chunks, b"", 0
        self.read_bytes = 0
        self.last: int | None = None
        self.ended = False

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        if self._at == len(self._chunk):
            self._chunk, self._at = next(self._chunks, b""), 0
        found = self._chunk[self._at : self._at + size]
        self._at += len(found)
        self.read_bytes += len(found)
        if self.last is not None and self.read_bytes > self.last:
            raise DamagedError(f"has a member with a header of more than {HEADER_BYTES >> 20} MiB")
        return found


class TarReader:
    """Reads a tar file, in batches of about a MiB; larger members stream."""

    def __init__(self, task: ReadTask) -> None:
        self._source, self._problems = task.part.source, task.problems
        self._pattern = task.settings.input.members
        self._stream = PartStream(task.part, task.progress)
        self._member = ""
        self._delivery = Delivery(task, lambda _: f"member {self._member}")
        self._digest = ""

    def batches(self) -> Iterator[Batch]:
        """The members, in order; their names are the ids.

        Raises:
            UserError: a file that cannot be read, or changed; a problem, unless they are skipped.
        """
        chunks = checked(self._stream.chunks(), self._source, 0)
        try:
            yield from gathered(self._documents(chunks))
            for _ in chunks:  # what is packed has to be whole up to its end
                pass
        except DamagedError as error:
            self._problems.add(self._source.path, "", str(error))
        self._digest = self._stream.finish()

    def digest(self) -> str:
        """xxh3_128 of the stored bytes of the file, once all batches are read."""
        return self._digest

    def where(self, place: int) -> str:
        """Nothing: members have no places."""
        return ""

    def _documents(self, chunks: Iterator[bytes]) -> Iterator[Batch]:
        file = _File(chunks)
        file.last = HEADER_BYTES
        with tarfile.open(
            fileobj=file,  # type: ignore[call-overload]
            mode="r|",
            tarinfo=_Header,
            ignore_zeros=True,
            bufsize=1 << 16,
            encoding="utf-8",
            errors="backslashreplace",
        ) as tar:
            while member := _next(tar):
                tar.members.clear()  # or all headers stay in memory
                if not fnmatchcase(member.name, self._pattern):
                    if not member.isdir():
                        self._problems.leave_out(NOT_MATCHED, f"{self._source.path}/{member.name}")
                elif self._is_hidden(member.name):
                    if not member.isdir():
                        self._problems.leave_out(HIDDEN, f"{self._source.path}/{member.name}")
                elif self._is_file(member):
                    file.last = None
                    self._member = member.name
                    self._delivery.line, self._delivery.offset = 1, 0
                    yield from self._delivery.long(_fragments(tar, member), member.name)
                # tarfile reads over what is left of the member to the next header.
                file.last = max(file.read_bytes, tar.offset) + HEADER_BYTES

    def _is_hidden(self, name: str) -> bool:
        """Return True as for files of a folder, unless the pattern has such names itself."""
        pieces = name.split("/")
        return "." not in (piece[:1] for piece in self._pattern.split("/")) and any(
            piece.startswith(".") and piece not in (".", "..") for piece in pieces
        )

    def _is_file(self, member: tarfile.TarInfo) -> bool:
        """Whether a member is a document; folders are none, and anything odd is a problem."""
        if member.isdir():
            return False
        problem, reason = "", LINK_MEMBER
        if member.name.startswith("/") or ".." in member.name.split("/"):
            problem, reason = "its path leads out of the tar file's folder", BAD_NAME
        elif member.issym() or member.islnk():
            problem = "is a link, not a file"
        elif not member.isreg() or member.issparse():
            problem = "is no regular file"
        if problem:
            self._problems.add(self._source.path, f"member {member.name}", problem, reason)
        return not problem


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member."""
    try:
        return tar.next()
    except UNREADABLE as error:
        raise DamagedError(f"is damaged or cut short: {error}") from error


def _fragments(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    """The bytes of one member."""
    file = tar.extractfile(member)
    try:
        while file is not None and (fragment := file.read(READ_BYTES)):
            yield fragment
    except UNREADABLE as error:
        raise DamagedError(f"is cut short: {error}") from error
