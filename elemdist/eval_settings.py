"""The settings of ``elemdist eval``. Imports nothing heavy: the command's help is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from elemdist.errors import UserError
from elemdist.json_types import Count, CountOrNone, Rate, check_types


@dataclass
class EvalSettings:
    """Evaluation"""

    run: str | None = None
    """Run folder (its newest checkpoint) or checkpoint folder."""
    data: str | None = None
    """Folder or URL of held-out shards. Required."""
    more_data: list[str] = field(default_factory=list)
    """More such folders; bits per byte are then given for each of them, too. Not of a
    classifier."""
    out: str | None = None
    """File for the JSON; none: it goes to the terminal."""
    micro_samples: Count = 32
    """Samples in one forward pass."""
    samples: CountOrNone = 0
    """Evaluate on the first so many samples only; 0: on all."""
    threshold: Rate | None = None
    """A label is predicted where its probability reaches this; none: as the run was trained."""
    thresholds: Literal["fixed", "tuned", "per_label"] = "fixed"
    """fixed: `threshold`, for all labels. tuned: the one that gives the best micro-F1 on
    `tune_on`. per_label: for each label the one with its best F1 there; a label with fewer than 5
    documents there takes the tuned one."""
    tune_on: str | None = None
    """Folder or URL of validation shards, for thresholds other than fixed."""
    train_data: str | None = None
    """Folder or URL of the training shards, for figures by how often a label is in them; none:
    where the run had them, or no such figures."""
    bootstrap: CountOrNone = 1000
    """So many times the documents are drawn anew for the 95 % intervals; 0: none."""
    scores: str | None = None
    """File (.npz) for probabilities and truth of every document; none: not written."""
    tokenizer: str | None = None
    """The tokenizer.json of a subword model; none: where it was in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""

    def check(self) -> None:
        """Raises UserError on what can be said without looking at the data."""
        if not self.run or not self.data:
            raise UserError("name a run and its data: elemdist eval RUN --data SHARDS")
        check_types(self)
        if self.thresholds != "fixed":
            if self.threshold is not None:
                raise UserError(f"threshold: it is chosen, by thresholds {self.thresholds}")
            if not self.tune_on:
                raise UserError(
                    f"thresholds: {self.thresholds} chooses them on validation shards; add"
                    " --tune-on SHARDS"
                )
            if same_place(self.tune_on, self.data):
                raise UserError("tune_on: thresholds are not chosen on the data that is judged")
        elif self.tune_on:
            raise UserError("tune_on: nothing is chosen; add --thresholds tuned or per_label")
        for name in ("out", "scores"):
            path = getattr(self, name)
            if path and not Path(path).resolve().parent.is_dir():
                raise UserError(f"{name}: the folder of {path} does not exist")
        if self.scores and not self.scores.endswith(".npz"):
            raise UserError(f"scores: the name of {self.scores} does not end in .npz")


def same_place(one: str, other: str) -> bool:
    """Whether two folders or URLs are the same."""
    if "://" in one or "://" in other:
        return one.rstrip("/") == other.rstrip("/")
    return Path(one).resolve() == Path(other).resolve()
