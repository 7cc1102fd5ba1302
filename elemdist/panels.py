"""What `elemdist plot` and `elemdist report` draw of a run: panels, and the curves in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Curve:
    """One quantity out of the lines of one kind."""

    kind: str
    key: str
    name: str
    style: Literal["-", "--"] = "-"
    marker: str = ""
    alpha: float = 1.0


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `instead_of` names a key that makes it superfluous for a run."""

    label: str
    curves: tuple[Curve, ...]
    unit: str = ""
    instead_of: str = ""
    bottom: float | None = None
    top: float | None = None


PANELS = (
    Panel(
        "bits per byte",
        (
            Curve("train", "bits_per_byte", "training", alpha=0.55),
            Curve("eval", "bits_per_byte", "evaluation", marker="o"),
        ),
    ),
    Panel(
        "loss (nats)",
        (
            Curve("train", "loss", "training", alpha=0.55),
            Curve("eval", "loss", "evaluation", marker="o"),
        ),
        instead_of="bits_per_byte",
    ),
    Panel(
        "F1 at evaluation",
        (
            Curve("eval", "micro_f1", "micro", marker="o"),
            Curve("eval", "macro_f1", "macro", style="--", marker="s"),
        ),
        bottom=0.0,
        top=1.0,
    ),
    Panel("learning rate", (Curve("train", "lr", "training"),), bottom=0.0),
    Panel(
        "throughput of text",
        (Curve("train", "bytes_per_s", "training"),),
        unit="B/s",
        bottom=0.0,
    ),
)
