"""The drawing behind `elemdist plot`: panels, and the curves in them.

A panel appears only for what the runs logged: bits per byte (or the loss, where a run has no bits
per byte), F1, learning rate, throughput. A colour is a run, a line style is a quantity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from elemdist.curve_points import Metrics, Points
from elemdist.errors import UserError
from elemdist.panels import PANELS, Curve, Panel
from elemdist.plain_text import printable

# Okabe and Ito's palette: told apart with any colour vision, and in print on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MAX_POINTS = 500  # of one curve; each stands for several of a longer one


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
        text.set_text(printable(name))
    return figure


def draw_panel(ax: Axes, panel: Panel, runs: dict[str, Metrics]) -> None:
    """Draw the panel's curves of all runs: a colour is a run, a line style is a quantity. A point
    of a long run is the mean of several, in a band from the least to the most of them."""
    used: dict[str, Curve] = {}
    for k, metrics in enumerate(runs.values()):
        for curve, points in panel_curves(panel, metrics):
            used[curve.name] = curve
            steps = points.step
            if points.count.max() > 1:  # what the mean hides
                ax.fill_between(
                    steps, points.low, points.high, color=run_colour(k), alpha=0.2, linewidth=0
                )
            ax.plot(
                steps,
                points.mean,
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


def panel_curves(panel: Panel, metrics: Metrics) -> Iterator[tuple[Curve, Points]]:
    """Yield the panel's curves for which this run logged at least one number."""
    if panel.instead_of and panel.instead_of in metrics.keys:
        return
    for curve in panel.curves:
        points = metrics.points(curve.kind, curve.key)
        if len(points.step):
            yield curve, points.thinned(MAX_POINTS)


def run_colour(index: int) -> str:
    """Colours repeat after seven runs; the order of the legend tells the rest."""
    return COLOURS[index % len(COLOURS)]
