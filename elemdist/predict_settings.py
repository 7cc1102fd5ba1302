"""The settings of ``elemdist predict``. Imports nothing heavy: help is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from elemdist.errors import UserError
from elemdist.json_types import Bounds, Count, CountOrNone, Rate, check_types


@dataclass
class PredictSettings:
    """Prediction"""

    inputs: list[str] = field(default_factory=list)
    """The run folder (its newest checkpoint) or checkpoint folder, and after it files, folders,
    globs or URLs, all that `elemdist shard` reads; - or none: standard input, answered as lines
    arrive. A line of a text file is a document."""
    format: Literal[
        "auto", "text", "jsonl", "csv", "tsv", "parquet", "arrow", "datasets", "tar", "warc", "mds"
    ] = "auto"
    """auto: by the file's name, as `elemdist shard` does; text where that tells nothing."""
    text_field: str = "text"
    """The field or column of a record that holds its text."""
    id_field: str = "id"
    """The field or column of a record that is handed on, so that it is known again; where there is
    none, the number of the line or row, going on over all files."""
    members: str = "*"
    """Which members of a tar file are documents: a pattern for their names."""
    max_document_mb: Count = 4096
    """MiB of the largest document that is taken; a larger one is an error (see on_error)."""
    max_record_mb: Annotated[int, Bounds(1, 1 << 20)] = 128
    """MiB of the largest record that is taken, as a line of JSON."""
    on_invalid: Literal["error", "replace"] = "error"
    """Text that is not valid UTF-8: an error (see on_error), or replaced by U+FFFD."""
    strict: bool = False
    """Refuse input of which anything is left out, as blank lines and hidden files, instead of
    counting it."""
    threshold: Rate | None = None
    """A label is predicted where its probability reaches this; none: as the run was trained."""
    top: CountOrNone = 0
    """Show the scores of so many of the likeliest labels, predicted or not; 0: of those that are
    predicted."""
    on_error: Literal["stop", "skip"] = "stop"
    """A document that cannot be taken ends the work, or is named on standard error and left out."""
    overlong: Literal["split", "truncate"] = "split"
    """Of a document that one sample cannot hold all parts are read, or the first."""
    micro_samples: Count = 32
    """Documents in one forward pass, at most."""
    tokenizer: str | None = None
    """The tokenizer.json of a subword model; none: where it was in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""

    def check(self) -> None:
        """Raises UserError on what can be said without reading anything."""
        if not self.inputs:
            raise UserError("no run is named: elemdist predict RUN [FILE ...]")
        if self.inputs.count("-") > 1:
            raise UserError("inputs: standard input can be read once")
        check_types(self)
