"""What `elemdist shard` can be told. Imports nothing heavy: the command's help is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from elemdist.errors import UserError, nearest

Format = Literal["auto", "text", "jsonl"]
Document = Literal["file", "line", "block"]
Segmenter = Literal["word", "char", "byte"]
Packing = Literal["document", "packed"]
Overlong = Literal["split", "truncate"]
OnInvalid = Literal["error", "replace", "skip"]

MIB = 1 << 20


@dataclass
class InputSettings:
    """How the input files are read."""

    format: Format = "auto"
    """jsonl (one JSON object a line), text, or auto: by the file name (.jsonl .ndjson .json; .txt
    .text .md .rst). Both also compressed, as .gz or .zst. Of a folder, auto takes *.jsonl and
    *.txt, jsonl takes *.jsonl *.ndjson *.json, text takes every file that is not hidden."""

    document: Document = "file"
    """What is one document of a text file: the whole file, each line (without its newline), or
    each block of lines between blank lines (without the newline of its last line)."""

    text_field: str = "text"
    """The field of a JSON record that holds its text."""

    labels_field: str | None = None
    """The field of a JSON record that holds its labels: a list, or one, of strings or integers.
    Not set: the shards carry no labels."""


@dataclass
class ShardSettings:
    """Convert text into shards of byte rows, ready for training."""

    inputs: list[str]
    """Files, folders (searched in depth, in sorted order) and globs."""

    out: str
    """The folder to write: missing or empty."""

    input: InputSettings = field(default_factory=InputSettings)
    """How the input files are read."""

    n: int = 512
    """Materials (rows) of a sample."""

    v: int = 12
    """Elements (bytes) that a material holds; a longer one goes on in the next row."""

    segmenter: Segmenter = "word"
    """What a material is: word, char (one character) or byte (v bytes)."""

    packing: Packing = "document"
    """document: one document a sample; packed: documents back to back, nothing dropped, only the
    last sample of each work item padded (not with labels)."""

    overlong: Overlong = "split"
    """A document that one sample cannot hold goes on in further samples (split) or loses its end
    (truncate). Only for packing document."""

    on_invalid: OnInvalid = "error"
    """Text that is not valid UTF-8: stop with an error, replace what is wrong by U+FFFD, or skip
    the document. The manifest counts both."""

    processes: int = 0
    """Processes that work at the same time; 0: one for each core. The shards are the same."""

    shard_mb: int = 64
    """MiB of a full shard file; every process holds one in memory."""

    item_mb: int = 64
    """MiB of input that one process takes at a time; every such piece ends with a shorter shard."""

    holdout_last: int = 0
    """Keep the last so many documents apart: they go to OUT/val, all others to OUT/train. 0: all
    documents go to OUT."""

    labels_from: str | None = None
    """A shard folder whose label names, in their order, are taken; any other label is an error.
    Give the training set here when converting a test set. Not set: all labels found, sorted."""

    quiet: bool = False
    """Print nothing but errors."""


def check(settings: ShardSettings) -> None:
    """Finds what cannot be meant, before any work.

    Raises:
        UserError: a value out of its range, or two settings that exclude each other.
    """
    choices: list[tuple[str, str, Any]] = [
        ("input.format", settings.input.format, Format),
        ("input.document", settings.input.document, Document),
        ("segmenter", settings.segmenter, Segmenter),
        ("packing", settings.packing, Packing),
        ("overlong", settings.overlong, Overlong),
        ("on_invalid", settings.on_invalid, OnInvalid),
    ]
    for name, value, kind in choices:
        if value not in get_args(kind):
            known = get_args(kind)
            raise UserError(f"{name} is {', '.join(known)}, not '{value}'{nearest(value, known)}")
    limits = [
        ("n", settings.n, 2, 1 << 24),
        ("v", settings.v, 1, 256),
        ("processes", settings.processes, 0, 4096),
        ("shard_mb", settings.shard_mb, 1, 4095),  # MDS offsets have 32 bits
        ("item_mb", settings.item_mb, 1, 1 << 20),
        ("holdout_last", settings.holdout_last, 0, 1 << 62),
    ]
    for name, number, low, high in limits:
        if not low <= number <= high:
            raise UserError(f"{name} must be from {low} to {high}, not {number}")
    if not settings.inputs:
        raise UserError("no input: name files, folders or globs")
    if not settings.out:
        raise UserError("no output: name a folder that is missing or empty")
    if settings.input.labels_field is None:
        if settings.labels_from is not None:
            raise UserError("labels_from needs input.labels_field, the field that holds the labels")
    elif settings.packing == "packed":
        raise UserError(
            "packing packed mixes documents in a sample, so labels have no place: "
            "set packing document, or leave input.labels_field out"
        )
