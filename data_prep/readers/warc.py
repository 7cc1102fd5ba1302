"""The documents of WET files (Common Crawl): the records of a WARC file that are plain text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_prep.documents import Batch
from data_prep.losses import NO_TEXT_RECORD
from data_prep.readers.content import checked
from data_prep.readers.deliver import Delivery, gathered
from data_prep.readers.files import PartStream
from data_prep.readers.task import ReadTask
from data_prep.readers.unpack import DamagedError

HEADER_BYTES = 1 << 16
TEXT_TYPE = "conversion"  # of a record that is the plain text of a page
NO_WARC = "is damaged, or no WARC file"
HEADER_END = re.compile(rb"\r?\n\r?\n")  # some tools leave the carriage returns out


class _Bytes:
    """The unpacked bytes of a file, taken from the front."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._held = chunks, b""

    def _more(self) -> bool:
        chunk = next(self._chunks, b"")
        self._held += chunk
        return bool(chunk)

    def header(self) -> bytes:
        """Take the lines up to an empty one; b"" at the end of the file.

        Raises:
            DamagedError: the file ends within them, or they do not end.
        """
        while not self._held.strip(b"\r\n"):
            self._held = b""
            if not self._more():
                return b""
        self._held = self._held.lstrip(b"\r\n")
        while not (end := HEADER_END.search(self._held)):
            if len(self._held) > HEADER_BYTES:
                raise DamagedError(f"{NO_WARC}: the header of a record does not end")
            if not self._more():
                if not self._held.startswith(b"WARC/"):
                    raise DamagedError(f"{NO_WARC}: a record begins with {self._held[:40]!r}")
                raise DamagedError("is cut short within the header of a record")
        found, self._held = self._held[: end.start()], self._held[end.end() :]
        return found

    def body(self, size: int) -> Iterator[bytes]:
        """Take the next `size` bytes, in pieces.

        Raises:
            DamagedError: the file ends before.
        """
        while size:
            if not self._held and not self._more():
                raise DamagedError("is cut short within a record")
            piece, self._held = self._held[:size], self._held[size:]
            size -= len(piece)
            yield piece


class WarcReader:
    """Reads a WARC file, in batches of about a MiB; larger records stream."""

    def __init__(self, task: ReadTask) -> None:
        self._source, self._problems = task.part.source, task.problems
        self._stream = PartStream(task.part, task.progress)
        self._id = ""
        self._delivery = Delivery(task, lambda _: f"record {self._id}")
        self._digest = ""

    def batches(self) -> Iterator[Batch]:
        """The texts, in order; the addresses of their pages are the ids.

        Raises:
            UserError: a file that cannot be read, or changed; a problem, unless they are skipped.
        """
        chunks = self._stream.chunks()
        try:
            yield from gathered(self._documents(_Bytes(checked(chunks, self._source, 0))))
        except DamagedError as error:
            self._problems.add(self._source.path, "", str(error))
        self._digest = self._stream.finish()

    def digest(self) -> str:
        """xxh3_128 of the stored bytes of the file, once all batches are read."""
        return self._digest

    def where(self, place: int) -> str:
        """Nothing: records have no places."""
        return ""

    def _documents(self, file: _Bytes) -> Iterator[Batch]:
        while header := file.header():
            first, *lines = header.decode(errors="replace").replace("\r\n", "\n").split("\n")
            fields = {
                name.strip().lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines)
            }
            size, kind = fields.get("content-length", ""), fields.get("warc-type", "")
            if not first.startswith("WARC/"):
                raise DamagedError(f"{NO_WARC}: a record begins with {first[:40]!r}")
            if not (size.isascii() and size.isdecimal()):
                length = f"the Content-Length {size[:40]!r}" if size else "no Content-Length"
                raise DamagedError(f"{NO_WARC}: a record has {length}")
            body = file.body(int(size))
            if kind == TEXT_TYPE:
                self._id = fields.get("warc-target-uri") or fields.get("warc-record-id", "")
                self._delivery.line, self._delivery.offset = 1, 0
                yield from self._delivery.long(body, self._id)
            else:
                name = f"{self._source.path}, {kind or 'without a type'}"
                self._problems.leave_out(NO_TEXT_RECORD, name)
            for _ in body:  # of a document that was left out
                pass
