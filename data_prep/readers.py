"""Readers: the documents of a text or JSON Lines file, in batches of valid UTF-8.

What a document of a text file is: `file`, its exact bytes; `line`, a line without its newline
(a carriage return stays; an empty line is an empty document); `block`, the lines between blank
lines, without the newline of the last one. JSON Lines: one object a line, blank lines ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from data_prep import jsonl, spans
from data_prep.settings import InputSettings
from data_prep.sources import Part, PartReader
from elemdist.errors import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# How a text file is cut into pieces of whole documents, and a piece into documents.
DOCUMENT_KINDS: dict[
    str, tuple[Callable[[Iterable[bytes]], Iterator[bytes]], Callable[[bytes], spans.Spans]]
] = {
    "file": (spans.whole, spans.one_span),
    "line": (spans.line_blocks, spans.line_spans),
    "block": (spans.text_blocks, spans.block_spans),
}


@dataclass
class Batch:
    """D documents: document d is data[starts[d]:ends[d]], valid UTF-8.

    labels and lines have one entry for each document of a JSON Lines file and are empty else;
    lines count from 1 at the start of the part. replaced and skipped: documents with invalid text
    that were mended, or left out (and so are not among the D).
    """

    data: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    labels: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    replaced: int = 0
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.starts)

    def span(self, first: int, last: int) -> Batch:
        """Documents first to last - 1. What was mended or left out counts with the last one."""
        cut = slice(first, last)
        counts = (self.replaced, self.skipped) if last == len(self) else (0, 0)
        return Batch(
            self.data, self.starts[cut], self.ends[cut], self.labels[cut], self.lines[cut], *counts
        )


def batch_of(documents: list[bytes], labels: list[list[str]], lines: list[int]) -> Batch:
    """A batch out of single documents, each valid UTF-8."""
    bounds = np.zeros(len(documents) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, documents), np.int64, len(documents)), out=bounds[1:])
    data = np.frombuffer(b"".join(documents), np.uint8)
    return Batch(data, bounds[:-1], bounds[1:], labels, lines)


def is_utf8(text: bytes) -> bool:
    """Whether all of the text is valid UTF-8."""
    if text.isascii():  # many times as fast, and most text of many corpora
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


class DocumentReader:
    """Reads the documents of one part of a source."""

    def __init__(
        self,
        part: Part,
        settings: InputSettings,
        on_invalid: str,
        progress: Callable[[int], None],
    ) -> None:
        """`progress` is called with the number of raw bytes after each read."""
        self._part, self._settings, self._on_invalid = part, settings, on_invalid
        self._reader = PartReader(part, progress)
        self._replaced = self._skipped = 0

    def batches(self) -> Iterator[Batch]:
        """The documents, in order.

        Raises:
            UserError: a file that cannot be read, or content that is not what the settings say.
        """
        jsonl_format = self._part.source.format == "jsonl"
        for batch in self._records() if jsonl_format else self._texts():
            batch.replaced, batch.skipped = self._replaced, self._skipped
            self._replaced = self._skipped = 0
            yield batch

    def digest(self) -> str:
        """xxh3_128 of the raw bytes of the part, once all batches are read."""
        return self._reader.digest.hexdigest()

    def fail(self, line: int, problem: str) -> NoReturn:
        """Ends the work with the file and line of a problem; lines count from 1 in the part.

        Raises:
            UserError: always.
        """
        before = 0
        if self._part.start:
            prefix = Part(self._part.source, 0, self._part.start)
            before = sum(
                chunk.count(b"\n") for chunk in PartReader(prefix, lambda _: None).chunks()
            )
        raise UserError(f"{self._part.source.path}, line {before + line:,}: {problem}")

    def _refuse(self, line: int, offset: int, what: str) -> None:
        """Stops at invalid text, or counts it. The offset is one of the part's unpacked bytes."""
        if self._on_invalid == "skip":
            self._skipped += 1
        elif self._on_invalid == "replace":
            self._replaced += 1
        else:
            self.fail(
                line,
                f"invalid UTF-8 at byte {self._part.start + offset:,} ({what}); --on-invalid "
                f"replace puts U+FFFD there, skip leaves the document out",
            )

    def _texts(self) -> Iterator[Batch]:
        pieces, spans_of = DOCUMENT_KINDS[self._settings.document]
        line, offset = 1, 0
        for text in pieces(self._reader.chunks()):
            batch = Batch(np.frombuffer(text, np.uint8), *spans_of(text))
            yield batch if is_utf8(text) else self._mended(text, batch, line, offset)
            line += text.count(b"\n")
            offset += len(text)

    def _mended(self, text: bytes, batch: Batch, line: int, offset: int) -> Batch:
        """The batch with its invalid documents replaced or left out."""
        documents = []
        for start, end in zip(batch.starts.tolist(), batch.ends.tolist(), strict=True):
            document = text[start:end]
            try:
                document.decode()
            except UnicodeDecodeError as error:
                at = start + error.start
                self._refuse(line + text.count(b"\n", 0, at), offset + at, f"0x{text[at]:02x}")
                if self._on_invalid == "skip":
                    continue
                document = document.decode(errors="replace").encode()
            documents.append(document)
        return batch_of(documents, [], [])

    def _records(self) -> Iterator[Batch]:
        parse = jsonl.Parser(self._settings.text_field, self._settings.labels_field)
        number, offset = 0, 0
        for block in spans.line_blocks(self._reader.chunks()):
            documents: list[bytes] = []
            labels: list[list[str]] = []
            lines: list[int] = []
            for line in block.removesuffix(b"\n").split(b"\n"):
                number += 1
                record = self._record(parse, line, number, offset)
                offset += len(line) + 1
                if record is not None:
                    documents.append(record[0])
                    labels.append(record[1])
                    lines.append(number)
            yield batch_of(documents, labels, lines)

    def _record(
        self, parse: jsonl.Parser, line: bytes, number: int, offset: int
    ) -> tuple[bytes, list[str]] | None:
        """Text and labels of one line; None if it is blank, or invalid and to be skipped."""
        if offset == 0 and self._part.start == 0:
            line = line.removeprefix(BYTE_ORDER_MARK)
        try:
            return parse(line)
        except jsonl.InvalidTextError as error:
            self._refuse(number, offset + error.offset, str(error))
            if self._on_invalid == "skip":
                return None
        except jsonl.RecordError as error:
            self.fail(number, str(error))
        try:
            return parse.mended(line)
        except jsonl.RecordError as error:
            self.fail(number, str(error))
