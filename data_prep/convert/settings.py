"""What `elemdist convert` can be told. Nothing heavy is imported: its help is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from data_prep.settings import (
    ItemMb,
    LabelsAs,
    OnError,
    OnInvalid,
    Overlong,
    Packing,
    Segmenter,
    ShardMb,
)
from elemdist.json_types import Bounds, Count, FileName, Processes, Seed, Share

Target = Literal["shards", "jsonl", "parquet"]


@dataclass
class ConvertSettings:
    """Convert shard sets into others, or into text again."""

    sets: list[FileName]
    """Shard sets, in order: folders or URLs. Also MDS sets of other tools with a column of text."""

    out: FileName | None = None
    """The folder to write, or its URL: missing, empty, or unfinished by the same command, which
    then goes on. For jsonl and parquet the file (.jsonl also .gz, .zst); - for standard output."""

    append: FileName | None = None
    """In place of out: the set that the samples are added to. Its shards stay as they are."""

    to: Target = "shards"
    """shards, or text again: jsonl, an object with text (and labels) for each document; parquet."""

    n: Annotated[int, Bounds(2, 1 << 24)] | None = None
    """Materials (rows) of a sample. For this and the next five, not set: as the sets have it (for a
    set of text: as elemdist shard). Another value shards the documents anew."""

    v: Annotated[int, Bounds(1, 256)] | None = None
    """Elements (bytes) that a material holds."""

    segmenter: Segmenter | None = None
    """What a material is: word, char, byte, uax29, sentence or subword."""

    tokenizer: FileName | None = None
    """The file of the subword segmenter."""

    packing: Packing | None = None
    """document: one document a sample; packed: documents back to back (not with labels)."""

    overlong: Overlong | None = None
    """A document that one sample cannot hold goes on in further ones (split) or loses its end."""

    keep_labels: bool = True
    """false: leave the labels of the sets out."""

    samples: str | None = None
    """FIRST:END: of one set, the documents that begin in the samples from FIRST, counted from 0, up
    to END, not included. Either may be left out. Also for jsonl and parquet."""

    every: Count = 1
    """Only documents whose first sample has a number that this divides (counted from FIRST)."""

    share: Share = 1.0
    """A share of the documents, from 0 to 1, by a hash of the first sample's number and the seed:
    the same ones every time."""

    seed: Seed = 0
    """Another one gives another share."""

    with_labels: list[str] = field(default_factory=list)
    """Only documents that have at least one of these labels, as ["a", "b"]."""

    shuffle: Seed | None = None
    """Write the samples in a random order, by this seed. Local sets without compression, of which
    no document goes on in a second sample."""

    tear: bool = False
    """Take or move samples of packed sets one by one, although documents go on from one to the
    next. Good for pre-training; documents can then not be read from the set any more."""

    text_field: str = "text"
    """The column with the text, in a set of text."""

    labels_field: str | None = None
    """The column with the labels, in a set of text: strings, integers, or JSON lists of them."""

    labels_separator: str | None = None
    """What stands between the labels where that column holds them as one string."""

    on_invalid: OnInvalid = "error"
    """Text that is not valid UTF-8: an error (see on_error), or replaced by U+FFFD and counted."""

    on_error: OnError = "stop"
    """A document that cannot be taken: stop, or skip it and list it in rejects.jsonl (for jsonl and
    parquet on standard error)."""

    labels_as: LabelsAs = "names"
    """In a set of text, names: the labels themselves, or their numbers; multi_hot: a list with 0 or
    1 for each."""

    label_names: str | None = None
    """File with the names of labels that are numbers or multi-hot, one on each line."""

    strict: bool = False
    """Refuse what is else left out, or kept with a word, and counted by reason."""

    compression: str | None = None
    """Compress each shard: zstd, gz, bz2, br or snappy, with a level as in zstd:7. Not set: none;
    with append, as the set's last shard."""

    hashes: str | None = None
    """Hashes of each shard in the index, between commas. Not set: xxh3_128; with append, as the
    set's last shard."""

    shard_mb: ShardMb | None = None
    """MiB of a full shard file; every process holds one in memory. Not set: 64; with append, as the
    set's last shard."""

    item_mb: ItemMb = 64
    """MiB that one process takes at a time; of samples that are copied, whole shards."""

    verify: bool = True
    """Compare the hash of every shard that is copied with the index."""

    processes: Processes = 0
    """Processes that work at the same time; 0: one for each core. The shards are the same."""

    part: str | None = None
    """K/N: do only every N-th work item from number K (0 to N - 1) on, as elemdist shard."""

    restart: bool = False
    """Throw away what an unfinished run left in OUT, instead of going on from there."""

    quiet: bool = False
    """Print nothing but errors."""
