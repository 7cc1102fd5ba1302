"""`elemdist inspect`: what a shard set holds, and what text asks of n and v.

elemdist inspect shards --sample 3          a shard set: manifest, lengths of materials, rows
elemdist inspect corpus.jsonl.zst           text that is no shard set yet: advice for n and v
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from typing import Annotated

from data_prep.settings import InputSettings, Segmenter
from elemdist.json_text import json_text
from elemdist.json_types import Bounds, CountOrNone, FileName, check_types

SPLITS = ("train", "val", "test")


@dataclass
class InspectSettings:
    """Show what a shard set holds, or which n and v suit text that is to be sharded."""

    path: FileName
    """A shard folder; or text to be sharded, as `elemdist shard` takes it."""

    rows: Annotated[int, Bounds(0, 1 << 24)] = 24
    """Materials (rows) of the sample to show; padding at its end is only counted."""

    sample: CountOrNone = 0
    """The sample to show, counted from 0."""

    samples: Annotated[int, Bounds(1, 1 << 24)] = 2000
    """Samples of a shard set to read for its figures, in runs all over it."""

    sample_mb: Annotated[int, Bounds(1, 1 << 20)] = 32
    """MiB of text to read for the figures, in places all over it."""

    advise: bool = False
    """Show of a shard set, too, what other n and v would give."""

    v: Annotated[int, Bounds(1, 256)] = 12
    """Elements (bytes) that a material holds, in the advice for n; a shard set has its own."""

    segmenter: Segmenter = "word"
    """What a material of the text is; a shard set has its own."""

    tokenizer: FileName | None = None
    """The tokenizer.json of segmenter subword; for a shard set if its own is not where it was."""

    input: InputSettings = field(default_factory=InputSettings)
    """How the text is read, as for `elemdist shard`."""

    strict: bool = False
    """Refuse what is else left out, or kept with a word, and counted by reason."""

    json: bool = False
    """Print all figures, advice included, as one JSON object, and no rows."""


def run(settings: InspectSettings) -> None:
    """Prints what there is to say of a shard set or a corpus.

    Raises:
        UserError: nothing there, a damaged shard set, no such sample, or a setting out of range.
    """
    from data_prep.inspect.figures import corpus_figures, set_figures  # loads the compiler

    check(settings)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without UTF-8 still shows the rest
        sys.stdout.reconfigure(errors="replace")
    inspected = set_figures if is_shard_set(settings.path) else corpus_figures
    figures, lines = inspected(settings)
    print(json_text(figures) if settings.json else "\n".join(lines))


def check(settings: InspectSettings) -> None:
    """Finds what cannot be meant. Raises UserError."""
    check_types(settings)


def is_shard_set(path: str) -> bool:
    """Whether a path is meant as a shard set of ours: one, several in a folder, or unfinished.

    Anything else is text to be sharded, MDS files of other makers included.
    """
    from elemdist.shard_cache import open_folder
    from elemdist.shard_index import UNFINISHED

    names = ["manifest.json", UNFINISHED, *(f"{split}/manifest.json" for split in SPLITS)]
    folder = open_folder(path)
    return any(folder.exists(name) for name in names)
