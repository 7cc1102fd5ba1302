"""The documents of shard sets as text again: JSON Lines, or Parquet."""

from __future__ import annotations

import contextlib
import gzip
import os
import sys
from collections.abc import Iterator
from typing import IO, Any, Protocol

import orjson
import zstandard

from data_prep.convert.plan import bounds_of
from data_prep.convert.settings import ConvertSettings
from data_prep.documents import Part, Problems, Source, notes_of
from data_prep.losses import NOT_CHOSEN, Losses
from data_prep.progress import Progress
from data_prep.readers import mds as mds_read
from data_prep.readers.mds_files import MdsFolder
from data_prep.readers.mds_rows import losses as losses_of
from data_prep.readers.task import ReadTask
from data_prep.settings import MIB, InputSettings, ShardSettings, check
from data_prep.store import write_error
from data_prep.words import counted
from elemdist.atomic import remove_leftovers, replacing
from elemdist.errors import UserError
from elemdist.json_text import json_text
from elemdist.remote import is_url, public

GROUP_BYTES = 32 * MIB  # of text in a row group of Parquet
PART_BYTES = 64 * MIB  # stored bytes read at a time
LONGEST_CELL = (1 << 31) - 1  # bytes of a value in a Parquet file
SHARDING = ("n", "v", "segmenter", "tokenizer", "packing", "overlong", "compression", "hashes")
CHOOSING = ("with_labels", "shuffle")


class Writer(Protocol):
    """Takes documents."""

    def add(self, text: bytes, labels: list[str]) -> None:
        """A document and its labels. Raises UserError where the format cannot hold it."""

    def close(self) -> None:
        """Writes what is still held back."""


def export(settings: ConvertSettings, folders: list[MdsFolder], losses: Losses) -> None:
    """Writes the documents of sets to a file, which appears when it is complete.

    Args:
        losses: what is left out already.

    Raises:
        UserError: a mistake in the settings, a damaged set, or a full disk.
    """
    out = settings.out or ""
    refuse_others(settings)
    run = reading(settings, folders)
    parts = parts_of(settings, folders)
    labelled = run.input.labels_field is not None
    progress = Progress("convert", sum(part.weight for part in parts), settings.quiet)
    problems = Problems(run.on_error == "skip", _reject, run.strict)
    left = sum(folder.samples for folder in folders) - sum(one.end - one.start for one in parts)
    problems.losses.update(losses)
    problems.losses.add(NOT_CHOSEN, count=left)
    if out != "-":
        remove_leftovers(os.path.dirname(out) or ".", os.path.basename(out))
    documents = size = 0
    try:
        with contextlib.nullcontext(sys.stdout.buffer) if out == "-" else replacing(out) as file:
            writer = open_writer(settings.to, out, file, labelled)
            try:
                for text, labels in documents_of(parts, run, problems, progress):
                    writer.add(text, labels)
                    documents += 1
                    size += len(text)
            finally:
                writer.close()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise write_error(out, 0, error) from error
    finally:
        progress.close()
    tell_losses(folders)
    for line in problems.losses.lines():
        print(f"elemdist convert: {line}", file=sys.stderr)
    if not settings.quiet and out != "-":
        print(f"{out}: {counted(documents, 'document')}, {counted(size, 'byte')} of text")


def refuse_others(settings: ConvertSettings) -> None:
    """Refuses settings that mean nothing for text.

    Raises:
        UserError: one of them is set, or the file cannot be of that name.
    """
    default = ConvertSettings([])
    for name in (*SHARDING, *CHOOSING, "every", "share", "part", "shard_mb"):
        if getattr(settings, name) != getattr(default, name):
            raise UserError(f"{name} is for shards: leave it out, or convert to shards first")
    out = settings.out or ""
    if is_url(out):
        raise UserError(f"{public(out)} is a URL: text is written to a local file, or -")
    if settings.to == "parquet" and out == "-":
        raise UserError("Parquet cannot be written to standard output: name a file")
    if os.path.isdir(out):
        raise UserError(f"{out} is a folder: name the file to write")
    if os.path.lexists(out):
        raise UserError(f"{out} is there already: name another file, or remove it")


def reading(settings: ConvertSettings, folders: list[MdsFolder]) -> ShardSettings:
    """The settings that the readers take.

    Raises:
        UserError: only some of the sets have labels.
    """
    labels = settings.labels_field
    if labels is None and settings.keep_labels:
        found = {folder.labels is not None for folder in folders}
        if len(found) > 1:
            raise UserError(
                "only some of the sets have labels: --keep-labels false leaves them out"
            )
        labels = "labels" if found == {True} else None
    input = InputSettings(
        format="mds",
        text_field=settings.text_field,
        labels_field=labels if settings.keep_labels else None,
        labels_separator=settings.labels_separator,
        labels_as=settings.labels_as,
        label_names=settings.label_names,
    )
    run = ShardSettings(settings.sets, settings.out or "", input=input)
    run.on_invalid, run.on_error = settings.on_invalid, settings.on_error
    run.strict = settings.strict
    check(run)
    return run


def parts_of(settings: ConvertSettings, folders: list[MdsFolder]) -> list[Part]:
    """What is read, in order."""
    start, end = bounds_of(settings, folders)
    found = []
    for folder in folders:
        size = folder.stored_bytes(0, folder.samples)
        for part in mds_read.cut(Source(folder.path, "mds", "", size, ""), PART_BYTES):
            low, high = max(part.start, start), part.end if end is None else min(part.end, end)
            if low < high:
                found.append(Part(part.source, low, high, part.weight))
    if not found:
        raise UserError("there is no sample to convert: see samples")
    return found


def _reject(record: dict[str, Any]) -> None:
    print(json_text(record), file=sys.stderr)


def documents_of(
    parts: list[Part], settings: ShardSettings, problems: Problems, progress: Progress
) -> Iterator[tuple[bytes, list[str]]]:
    """Text and labels of every document, in order."""
    labelled = settings.input.labels_field is not None
    for part in parts:
        held: list[bytes] = []
        task = ReadTask(part, settings, problems, progress.add)
        for batch in mds_read.MdsReader(task).batches():
            notes_of(batch, problems.losses, public(part.source.path), labelled)
            view = batch.data.data
            spans = zip(batch.starts.tolist(), batch.ends.tolist(), strict=True)
            for document, (start, end) in enumerate(spans):
                held.append(bytes(view[start:end]))
                if batch.open and document == len(batch) - 1:
                    continue
                text = held[0] if len(held) == 1 else b"".join(held)
                held = []
                yield text, batch.labels[document] if batch.labels else []


def open_writer(to: str, out: str, file: IO[bytes], labelled: bool) -> Writer:
    """Return the writer for a target, which leaves `file` open.

    Raises:
        UserError: its package is missing.
    """
    if to == "parquet":
        return ParquetText(file, labelled)
    if out.endswith(".zst"):
        packed = zstandard.ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False)
        return JsonLines(packed, [packed], labelled)
    if out.endswith(".gz"):
        zipped = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)
        return JsonLines(zipped, [zipped], labelled)
    return JsonLines(file, [], labelled)


class JsonLines:
    """One object a line: {"text": ...}, with "labels" where there are any."""

    def __init__(self, file: IO[bytes] | Any, closed: list[Any], labelled: bool) -> None:
        """`closed` are closed in the end, in this order."""
        self._file, self._closed, self._labelled = file, closed, labelled

    def add(self, text: bytes, labels: list[str]) -> None:
        """As Writer.add; a line of JSON."""
        record: dict[str, Any] = {"text": text.decode()}
        if self._labelled:
            record["labels"] = labels
        self._file.write(orjson.dumps(record) + b"\n")

    def close(self) -> None:
        """As Writer.close; ends the compressed streams, too."""
        self._file.flush()
        for one in self._closed:
            one.close()


class ParquetText:
    """A Parquet file with a column text, and labels where there are any, zstd-compressed."""

    def __init__(self, file: IO[bytes], labelled: bool) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise UserError("to parquet needs pyarrow: pip install pyarrow") from error
        self._pa, self._labelled = pa, labelled
        fields = [("text", pa.string())] + [("labels", pa.list_(pa.string()))] * labelled
        self._schema = pa.schema(fields)
        self._file = pq.ParquetWriter(file, self._schema, compression="zstd")
        self._texts: list[str] = []
        self._labels: list[list[str]] = []
        self._held = 0

    def add(self, text: bytes, labels: list[str]) -> None:
        """As Writer.add; written by the row group."""
        if len(text) > LONGEST_CELL:
            raise UserError(
                f"a document of {len(text):,} bytes does not fit into Parquet: to jsonl"
            )
        if self._held + len(text) > GROUP_BYTES:
            self._flush()
        self._texts.append(text.decode())
        self._labels.append(labels)
        self._held += len(text) + 64  # so that many empty ones are a group, too

    def close(self) -> None:
        """As Writer.close."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._texts:
            columns = [self._texts] + [self._labels] * self._labelled
            arrays = [
                self._pa.array(column, field.type)
                for column, field in zip(columns, self._schema, strict=True)
            ]
            self._file.write_table(self._pa.Table.from_arrays(arrays, schema=self._schema))
        self._texts, self._labels, self._held = [], [], 0


def tell_losses(folders: list[MdsFolder]) -> None:
    """Says on standard error which sets lost text when they were made."""
    for folder in folders:
        documents, size = losses_of(folder.manifest) if folder.manifest is not None else (0, 0)
        if documents:
            print(
                f"elemdist convert: {folder.name}: {counted(documents, 'document')} had been cut "
                f"at the end ({counted(size, 'byte')} in all) when the shards were made",
                file=sys.stderr,
            )
