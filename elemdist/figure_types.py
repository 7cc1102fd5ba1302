"""The types of files of figures: those of `elemdist eval`, `robustness` and `compare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from elemdist.json_types import Amount, Positive, Rate, Step

Figure = float | None


@dataclass
class Bin:
    """A bin of the calibration"""

    open_names: ClassVar[bool] = True
    probability: float
    positives: float


@dataclass
class LabelFigures:
    """The figures of a label"""

    open_names: ClassVar[bool] = True
    documents: Step = 0
    f1: Figure = None


@dataclass
class Figures:
    """A file of `elemdist eval --out`: what is used of it; it holds more"""

    open_names: ClassVar[bool] = True
    checkpoint: str = ""
    step: Step = 0
    data: str = ""
    objective: str = ""
    loss: Figure = None
    bits_per_byte: Figure = None
    micro_f1: Figure = None
    macro_f1: Figure = None
    micro_roc_auc: Figure = None
    documents: Step = 0
    thresholds: list[float] | float | None = None
    intervals: dict[str, tuple[float, float] | None] | None = None
    by_frequency: dict[str, dict[str, Any]] | None = None
    by_source: dict[str, dict[str, Any]] | None = None
    by_position: dict[str, dict[str, Any]] | None = None
    by_material_bytes: dict[str, dict[str, Any]] | None = None
    calibration_bins: list[Bin] | None = None
    labels: dict[str, LabelFigures] | None = None


@dataclass
class Point:
    """The figures of a classifier on one kind of noise; `run` names it"""

    open_names: ClassVar[bool] = True
    run: str
    kind: str
    rate: Rate
    seed: int
    micro_f1: Figure = None
    macro_f1: Figure = None
    micro_roc_auc: Figure = None
    macro_roc_auc: Figure = None


@dataclass
class PointsFile:
    """A file of `elemdist robustness --out`, and noise.json of `elemdist compare`"""

    open_names: ClassVar[bool] = True
    settings: dict[str, Any]
    points: list[Point]


@dataclass
class Cost:
    """What a step of training costs, by a trial"""

    seconds: Positive
    bytes: Amount
    flops: Amount
