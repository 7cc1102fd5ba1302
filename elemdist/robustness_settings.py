"""The settings of ``elemdist robustness``. Imports nothing heavy: help is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from elemdist.errors import UserError, nearest
from elemdist.json_types import Bounds, Count, CountOrNone, Rate, Seed, check_types
from elemdist.noise import KINDS


@dataclass
class RobustnessSettings:
    """Robustness"""

    runs: list[str] = field(default_factory=list)
    """Run folders (their newest checkpoints) or checkpoint folders of classifiers."""
    text: str | None = None
    """Labelled documents, in a file, folder or URL that `elemdist shard` reads. Required."""
    format: Literal["auto", "jsonl", "csv", "tsv", "parquet", "arrow", "datasets", "mds"] = "auto"
    """auto: by the name, as `elemdist shard` does; jsonl where that tells nothing."""
    text_field: str = "text"
    """The field or column of a record that holds its text."""
    labels_field: str = "labels"
    """The field or column that holds its labels, a list or one."""
    labels_separator: str | None = None
    """What stands between the labels where a column holds them as one string, as in CSV."""
    labels_as: Literal["names", "multi_hot"] = "names"
    """names: the labels themselves, or numbers of them; multi_hot: a list with 0 or 1 for each."""
    label_names: str | None = None
    """File with the names of labels that are numbers or multi-hot, one on each line."""
    max_document_mb: Count = 4096
    """MiB of the largest document that is taken; a larger one is an error (see on_error)."""
    max_record_mb: Annotated[int, Bounds(1, 1 << 20)] = 128
    """MiB of the largest record that is taken, as a line of JSON."""
    on_invalid: Literal["error", "replace"] = "error"
    """Text that is not valid UTF-8: an error (see on_error), or replaced by U+FFFD."""
    on_error: Literal["stop", "skip"] = "stop"
    """A document that cannot be taken ends the work, or is left out and counted."""
    kinds: list[str] = field(default_factory=lambda: ["mixed"])
    """Of noise: swap, drop, insert, repeat, case, homoglyph, ocr, mixed."""
    rates: list[Rate] = field(default_factory=lambda: [0.0, 0.05, 0.1, 0.2])
    """How likely a letter is hit, 0 to 1."""
    seeds: list[Seed] = field(default_factory=lambda: [1])
    """Of the noise; figures are means over them."""
    documents: CountOrNone = 0
    """The first so many documents only; 0: all."""
    threshold: Rate | None = None
    """A label is predicted where its probability reaches this; none: as each run was trained."""
    thresholds: list[Rate] = field(default_factory=list)
    """One for each of the labels, as `elemdist eval` writes them; none: `threshold` for all."""
    out: str | None = None
    """File for all figures as JSON. With the same settings, what stands in it already is not
    computed again."""
    plot: str | None = None
    """A picture (.png, .svg, .pdf) of micro-F1 against the rate."""
    overlong: Literal["split", "truncate"] = "split"
    """Of a document that one sample cannot hold all parts are read, or the first."""
    micro_samples: Count = 32
    """Samples in one forward pass."""
    tokenizer: str | None = None
    """The tokenizer.json of a subword model; none: where it was in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""

    def check(self) -> None:
        """Raises UserError on what can be said without reading anything."""
        if not self.runs or not self.text:
            raise UserError("name runs and text: elemdist robustness RUN --text FILE.jsonl")
        for kind in self.kinds:
            if kind not in KINDS:
                raise UserError(f"kinds: there is no '{kind}'{nearest(kind, KINDS)}")
        if self.thresholds and self.threshold is not None:
            raise UserError("threshold: there are thresholds, too; give one of them")
        if not self.kinds or not self.rates or not self.seeds:
            raise UserError("kinds, rates and seeds: at least one of each")
        check_types(self)
        if self.out and not Path(self.out).resolve().parent.is_dir():
            raise UserError(f"out: the folder of {self.out} does not exist")
