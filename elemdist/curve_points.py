"""A run's curves for plot and report, in memory that does not grow with the run."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elemdist.errors import UserError
from elemdist.metrics_file import is_number, records_of
from elemdist.panels import PANELS

FRESH, KEPT = 1 << 15, 4096  # points of a curve as they were logged, and thinned ones
CLOSED = 1000  # of a file that was read
EVALUATIONS = 20  # the last ones that are kept whole
SHOWN = {
    kind: tuple({curve.key: 0 for panel in PANELS for curve in panel.curves if curve.kind == kind})
    for kind in ("train", "eval")
}


@dataclass(frozen=True)
class Points:
    """A curve, each point of which stands for `count` consecutive logged ones: their mean step,
    and the mean, the least and the most of their values."""

    step: np.ndarray
    count: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def thinned(self, most: int) -> Points:
        """Return at most so many points, each of about as many logged ones."""
        if len(self.step) <= most:
            return self
        before = np.cumsum(self.count) - self.count
        starts = np.flatnonzero(np.diff(before * most // self.count.sum(), prepend=-1))
        count = np.add.reduceat(self.count, starts)
        return Points(
            np.add.reduceat(self.step * self.count, starts) / count,
            count,
            np.add.reduceat(self.mean * self.count, starts) / count,
            np.minimum.reduceat(self.low, starts),
            np.maximum.reduceat(self.high, starts),
        )

    def joined(self, steps: array[float], values: array[float]) -> Points:
        """Return these points and logged ones, by step. Of equal steps the last holds, as long as
        none of them was thinned."""
        step, value = np.array(steps), np.array(values)
        fresh = Points(step, np.ones(len(step), np.int64), value, value, value)
        parts = [
            np.concatenate([getattr(self, name), getattr(fresh, name)])
            for name in self.__dataclass_fields__
        ]
        order = np.argsort(parts[0], kind="stable")
        step, count = parts[0][order], parts[1][order]
        again = (step[:-1] == step[1:]) & (count[:-1] == 1) & (count[1:] == 1)
        order = order[np.append(~again, True)]
        return Points(*(part[order] for part in parts))


class Series:
    """The values of one figure while a file is read, in memory that does not grow with it."""

    def __init__(self) -> None:
        nothing = np.empty(0)
        self.kept = Points(nothing, nothing.astype(np.int64), nothing, nothing, nothing)
        self.steps, self.values = array("d"), array("d")

    def add(self, step: int, value: float) -> None:
        """Add a point."""
        self.steps.append(step)
        self.values.append(value)
        if len(self.steps) == FRESH:
            self.thin(KEPT)

    def points(self) -> Points:
        """Return all points so far."""
        return self.kept.joined(self.steps, self.values) if self.steps else self.kept

    def thin(self, most: int) -> None:
        """Keep at most so many points."""
        self.kept = self.points().thinned(most)
        self.steps, self.values = array("d"), array("d")


class Metrics:
    """What plot and report show of a run.

    Attributes:
        keys: of all figures that were logged. evaluations: the last ones, by step. last_step,
            time_s: the largest ones.
    """

    def __init__(self) -> None:
        self.series = {(kind, key): Series() for kind, keys in SHOWN.items() for key in keys}
        self.keys: set[str] = set()
        self.evaluations: dict[int, dict[str, Any]] = {}
        self.last_step, self.time_s = 0, 0.0

    def add(self, record: dict[str, Any]) -> None:
        """Add a line, see record_of()."""
        kind, step = record["kind"], record["step"]
        if not record.keys() <= self.keys:
            self.keys |= record.keys()
        for key in SHOWN.get(kind, ()):
            if is_number(value := record.get(key)):
                self.series[kind, key].add(step, value)
        self.last_step = max(self.last_step, step)
        if is_number(time_s := record.get("time_s")):
            self.time_s = max(self.time_s, time_s)
        if kind == "eval":
            self.evaluations[step] = record
            if len(self.evaluations) > 2 * EVALUATIONS:
                self.evaluations = self.last_evaluations()

    def last_evaluations(self) -> dict[int, dict[str, Any]]:
        """Return the last EVALUATIONS by step."""
        return dict(sorted(self.evaluations.items())[-EVALUATIONS:])

    def points(self, kind: str, key: str) -> Points:
        """Return the curve of a figure, without points where there are none."""
        return self.series[kind, key].points()


def read_metrics(folder: Path) -> Metrics:
    """Return what plot and report show of a run. Raises UserError; see records_of()."""
    metrics, kinds = Metrics(), set()
    for record in records_of(folder / "metrics.jsonl"):
        metrics.add(record)
        kinds.add(record["kind"])
    if not kinds & {"train", "eval"}:
        raise UserError(f"{folder / 'metrics.jsonl'}: no training or evaluation line in it yet")
    metrics.evaluations = metrics.last_evaluations()
    for series in metrics.series.values():
        series.thin(CLOSED)
    return metrics
