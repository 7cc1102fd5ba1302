"""The settings of ``elemdist predict``. Imports nothing heavy: help is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from elemdist.config import at_least
from elemdist.errors import UserError


@dataclass
class PredictSettings:
    """Prediction"""

    inputs: list[str] = field(default_factory=list)
    """The run folder (its newest checkpoint) or checkpoint folder, and behind it files with a
    document on each line, also .gz and .zst; - or none: standard input."""
    format: Literal["auto", "text", "jsonl"] = "auto"
    """Of the lines: plain text, or records. auto: records where the file's name says so
    (.jsonl, .ndjson, .json), else text."""
    text_field: str = "text"
    """The field of a record that holds its text."""
    id_field: str = "id"
    """The field of a record that is handed on, so that it is known again; where there is none, the
    number of the line."""
    threshold: float | None = None
    """A label is predicted where its probability reaches this; none: as the run was trained."""
    top: int = 0
    """Show the scores of so many of the likeliest labels, predicted or not; 0: of those that are
    predicted."""
    on_error: Literal["stop", "skip"] = "stop"
    """A line that is no document ends the work, or is named on standard error and left out."""
    overlong: Literal["split", "truncate"] = "split"
    """Of a document that one sample cannot hold all parts are read, or the first."""
    micro_samples: int = 32
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
        at_least(1, micro_samples=self.micro_samples)
        at_least(0, top=self.top)
