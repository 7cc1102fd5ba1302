"""What `elemdist shard` can be told. Imports nothing heavy: the command's help is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from elemdist.errors import UserError
from elemdist.json_types import Bounds, FileName, Processes, check_types
from elemdist.set_types import SegmenterName as Segmenter

Format = Literal[
    "auto", "text", "jsonl", "csv", "tsv", "parquet", "arrow", "datasets", "tar", "warc", "mds"
]
Document = Literal["file", "line", "block"]
Packing = Literal["document", "packed"]
Overlong = Literal["split", "truncate"]
OnInvalid = Literal["error", "replace"]
OnError = Literal["stop", "skip"]
Dedup = Literal["off", "exact", "normalized"]
SplitBy = Literal["bytes", "id"]
LabelsAs = Literal["names", "multi_hot"]

MIB = 1 << 20
ShardMb = Annotated[int, Bounds(1, 4095)]  # MDS offsets have 32 bits
ItemMb = Annotated[int, Bounds(1, 1 << 20)]


@dataclass
class InputSettings:
    """How the input files are read."""

    format: Format = "auto"
    """auto: by the file name (.jsonl .ndjson .json; .txt .text .md .rst; .csv; .tsv; .parquet;
    .arrow .feather; .tar .tgz; .wet .warc, of which the plain text is read), and a folder that
    Hugging Face datasets saved, or that holds MDS shards, by its content. All but .parquet and
    .arrow also compressed: .gz .zst .xz .bz2 .lz4. Of a folder, auto takes every file whose name
    tells, text every one that is not hidden."""

    document: Document = "file"
    """What is one document of a text file: the whole file, each line (without its newline), or
    each block of lines between blank lines (without the newline of its last line)."""

    text_field: str = "text"
    """The field or column of a record that holds its text."""

    labels_field: str | None = None
    """The field or column that holds a record's labels: a list, or one, of strings or integers.
    Not set: the shards carry no labels."""

    labels_separator: str | None = None
    """What stands between the labels where a column holds them as one string, as in CSV."""

    labels_as: LabelsAs = "names"
    """names: the labels themselves, or numbers of them; multi_hot: a list with 0 or 1 for each."""

    label_names: str | None = None
    """File with the names of labels that are numbers or multi-hot, one on each line. Not set: as
    Hugging Face datasets wrote them into the file, else the numbers."""

    id_field: str | None = None
    """The field or column that holds a record's id, for split_by id."""

    members: str = "*"
    """Which members of a tar file are documents: a pattern for their names."""

    max_document_mb: Annotated[int, Bounds(1, 1 << 40)] = 4096
    """MiB of the largest document that is taken; a larger one is an error (see on_error)."""

    max_record_mb: Annotated[int, Bounds(1, 1 << 20)] = 128
    """MiB of the largest record of a format that holds records in memory (a line of JSON, a row
    of CSV or Parquet). Text files and tar members stream, whatever their size."""


@dataclass
class ShardSettings:
    """Convert text into shards of byte rows, ready for training."""

    inputs: list[FileName]
    """Files, folders (searched in depth, in sorted order), globs, URLs of object stores
    (s3://bucket/folder), or - for standard input (kept in OUT until the set is complete)."""

    out: FileName
    """The folder to write, or its URL in an object store: missing, empty, or unfinished by the
    same command, which then goes on."""

    input: InputSettings = field(default_factory=InputSettings)
    """How the input files are read."""

    n: Annotated[int, Bounds(2, 1 << 24)] = 512
    """Materials (rows) of a sample."""

    v: Annotated[int, Bounds(1, 256)] = 12
    """Elements (bytes) that a material holds; a longer one goes on in the next row."""

    segmenter: Segmenter = "word"
    """What a material is: word, char (one character), byte (v bytes), uax29 (a word of Unicode's
    rules), sentence, or subword (a token of the tokenizer)."""

    tokenizer: FileName | None = None
    """The file of the subword segmenter: any tokenizer.json of the tokenizers library."""

    packing: Packing = "document"
    """document: one document a sample; packed: documents back to back, nothing dropped, only the
    last sample of each work item padded (not with labels)."""

    overlong: Overlong = "split"
    """A document that one sample cannot hold goes on in further samples (split) or loses its end
    (truncate). Only for packing document."""

    on_invalid: OnInvalid = "error"
    """Text that is not valid UTF-8: an error (see on_error), or replaced by U+FFFD and counted."""

    on_error: OnError = "stop"
    """A document or record that cannot be taken: stop, or skip it and list it in rejects.jsonl."""

    strict: bool = False
    """Refuse what is else left out, or kept with a word, and counted by reason: hidden files, files
    of other formats, links, blank lines, documents without text or label and the like."""

    dedup: Dedup = "off"
    """Leave out documents that came before, with the same bytes (exact), or the same up to Unicode
    form, case and white space (normalized). Compared by 128-bit hashes over the whole input."""

    split: str | None = None
    """Shares of several sets, as train=0.98,val=0.01,test=0.01: each document goes to OUT/train,
    OUT/val or OUT/test by a hash, and stays there when the corpus grows."""

    split_by: SplitBy = "bytes"
    """What the split hashes: the document's bytes (the first 64 KiB), or its id (input.id_field; a
    file's or tar member's name)."""

    holdout_last: Annotated[int, Bounds(0, 1 << 62)] = 0
    """Keep the last so many documents apart: they go to OUT/val, all others to OUT/train. 0: all
    documents go to OUT."""

    labels_from: FileName | None = None
    """A shard folder whose label names, in their order, are taken; any other label is an error.
    Give the training set here when converting a test set. Not set: all labels found, sorted."""

    compression: str | None = None
    """Compress each shard: zstd, gz, bz2, br or snappy, with a level as in zstd:7. Not set: none,
    so that training maps the shards as they are."""

    hashes: str = "xxh3_128"
    """Hashes of each shard in the index, by the names of hashlib and xxhash, between commas."""

    shard_mb: ShardMb = 64
    """MiB of a full shard file; every process holds one in memory for each set."""

    item_mb: ItemMb = 64
    """MiB of input that one process takes at a time; every such piece ends with a shorter shard."""

    processes: Processes = 0
    """Processes that work at the same time; 0: one for each core. The shards are the same."""

    part: str | None = None
    """K/N: do only every N-th work item from number K (0 to N - 1) on, as one of N tasks of a job
    array; the same command without it, when all have ended, makes the set of them."""

    restart: bool = False
    """Throw away what an unfinished run left in OUT, instead of going on from there."""

    quiet: bool = False
    """Print nothing but errors."""


def shares_of(split: str) -> dict[str, float]:
    """The shares of a split, by set, as fractions of 1.

    Raises:
        UserError: not of the form train=0.98,val=0.02, or not 1 together.
    """
    shares: dict[str, float] = {}
    for entry in split.split(","):
        name, _, number = (text.strip() for text in entry.partition("="))
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        plain = name.isidentifier() and name.isascii()
        if not plain or not 0 < share <= 1 or name in shares:
            raise UserError(
                f"split: '{entry.strip()}' does not fit; expected shares as in "
                f"train=0.98,val=0.01,test=0.01, each name once"
            )
        shares[name] = share
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"split: the shares make {sum(shares.values()):g} together, not 1")
    return shares


def part_of(part: str) -> tuple[int, int]:
    """Number and count of a part K/N.

    Raises:
        UserError: not of that form.
    """
    number, slash, count = part.partition("/")
    if slash and number.isdecimal() and count.isdecimal() and int(number) < int(count):
        return int(number), int(count)
    raise UserError(f"part is K/N with K from 0 to N - 1, as in 3/16, not '{part}'")


def check(settings: ShardSettings) -> None:
    """Finds what cannot be meant, before any work.

    Raises:
        UserError: a value out of its range, or two settings that exclude each other.
    """
    check_types(settings)
    if settings.split is not None:
        shares_of(settings.split)
        if settings.holdout_last:
            raise UserError("split and holdout_last exclude each other: leave one out")
    if settings.part is not None:
        part_of(settings.part)
    if (settings.segmenter == "subword") != (settings.tokenizer is not None):
        raise UserError("segmenter subword and tokenizer, its file, go together")
    if settings.strict and settings.on_error == "skip":
        raise UserError("strict and on_error skip exclude each other: leave one out")
    if not settings.inputs:
        raise UserError("no input: name files, folders or globs")
    if not settings.out:
        raise UserError("no output: name a folder that is missing or empty")
    if settings.input.labels_field is None:
        if settings.labels_from is not None:
            raise UserError("labels_from needs input.labels_field, the field that holds the labels")
        if settings.input.labels_as != "names" or settings.input.label_names is not None:
            raise UserError("labels_as and label_names need input.labels_field, where labels stand")
    elif settings.packing == "packed":
        raise UserError(
            "packing packed mixes documents in a sample, so labels have no place: "
            "set packing document, or leave input.labels_field out"
        )
