"""The drawing behind `elemdist plot`: panels, and the curves in them.

A panel appears only for what the runs logged: bits per byte (or the loss, where a run has no bits
per byte), F1, learning rate, throughput. A colour is a run, a line style is a quantity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from elemdist.errors import UserError
from elemdist.plot import Metrics

# Okabe and Ito's palette: told apart with any colour vision, and in print on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MAX_POINTS = 400  # of one curve; a longer one is averaged down, as more would only smear
NUMBERS = (int, float)


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


def draw(runs: dict[str, Metrics]) -> Figure:
    """One figure, the panels one below the other, a legend of the runs above them."""
    panels = [panel for panel in PANELS if any(list(panel_curves(panel, m)) for m in runs.values())]
    if not panels:
        raise UserError("plot: the runs have logged nothing that can be drawn")
    figure = Figure(figsize=(8.0, 0.8 + 2.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for panel, ax in zip(panels, axes, strict=True):
        draw_panel(ax, panel, runs)
    axes[-1].set_xlabel("step")
    figure.align_ylabels()
    handles = [Line2D([], [], color=run_colour(k), linewidth=3) for k in range(len(runs))]
    legend = figure.legend(
        handles, [str(k) for k in range(len(runs))], loc="outside upper center", ncols=3
    )
    # Set afterwards: matplotlib reads `$` as mathematics, and drops labels with a leading `_`.
    for text, name in zip(legend.get_texts(), runs, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    return figure


def draw_panel(ax: Axes, panel: Panel, runs: dict[str, Metrics]) -> None:
    """The panel's curves of all runs: a colour is a run, a line style is a quantity."""
    used: dict[str, Curve] = {}
    for k, metrics in enumerate(runs.values()):
        for curve, steps, values in panel_curves(panel, metrics):
            used[curve.name] = curve
            steps, values = thinned(steps, values)
            ax.plot(
                steps,
                values,
                color=run_colour(k),
                linestyle=curve.style,
                # A single point draws no line, so it always gets a marker.
                marker=curve.marker or ("." if len(steps) == 1 else ""),
                markersize=4,
                linewidth=1.5,
                alpha=curve.alpha,
            )
    ax.set_ylabel(panel.label)
    ax.set_ylim(bottom=panel.bottom, top=panel.top)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.unit:
        ax.yaxis.set_major_formatter(EngFormatter(panel.unit))
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if len(panel.curves) > 1:
        ax.legend(handles=list(legend_lines(used.values())), loc="best", fontsize="small")


def legend_lines(curves: Iterable[Curve]) -> Iterator[Line2D]:
    """What the line styles of a panel mean, in grey, as colours stand for runs."""
    for curve in curves:
        yield Line2D(
            [],
            [],
            color="0.3",
            linestyle=curve.style,
            marker=curve.marker,
            markersize=4,
            alpha=curve.alpha,
            label=curve.name,
        )


def panel_curves(panel: Panel, metrics: Metrics) -> Iterator[tuple[Curve, np.ndarray, np.ndarray]]:
    """The panel's curves for which this run logged at least one number: curve, steps, values."""
    if panel.instead_of and any(
        panel.instead_of in record for lines in metrics.values() for record in lines.values()
    ):
        return
    for curve in panel.curves:
        lines = metrics.get(curve.kind, {})
        points = [
            (step, record[curve.key])
            for step, record in lines.items()
            if isinstance(record.get(curve.key), NUMBERS)
        ]
        if points:
            steps, values = zip(*points, strict=True)
            yield curve, np.array(steps, float), np.array(values, float)


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points: means of consecutive ones, the last point as it is."""
    if len(steps) <= MAX_POINTS:
        return steps, values
    starts = np.linspace(0, len(steps) - 1, MAX_POINTS, dtype=int)[:-1]
    sizes = np.diff([*starts, len(steps) - 1])
    return (
        np.append(np.add.reduceat(steps[:-1], starts) / sizes, steps[-1]),
        np.append(np.add.reduceat(values[:-1], starts) / sizes, values[-1]),
    )


def run_colour(index: int) -> str:
    """Colours repeat after seven runs; the order of the legend tells the rest."""
    return COLOURS[index % len(COLOURS)]
