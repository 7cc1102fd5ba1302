"""The figure of `elemdist bench all`: every ratio of ours to a peer on one logarithmic axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from elemdist.atomic import result
from elemdist.curves import COLOURS
from tests.bench.rounds import spread

BLUE, ORANGE, *_ = COLOURS
LEAST = 1e-3  # the smallest ratio that is drawn as it is
ROW_INCHES, MARGIN_INCHES = 0.25, 1.6


def rows_of(report: dict[str, Any]) -> list[tuple[str, dict[str, Any], bool]]:
    """(benchmark, comparison, whether less is better) from top to bottom; the comparison with the
    label of its table."""
    return [
        (name, {**one, "label": table["label"], "unit": table["unit"]}, table["less_is_better"])
        for name, done in report["benchmarks"].items()
        for table in done["tables"]
        for one in table["compared"]
    ]


def draw(report: dict[str, Any]) -> Figure:
    """One line for each comparison: median, range, target; costs are marked as such."""
    rows = rows_of(report)
    figure = Figure(figsize=(12, MARGIN_INCHES + ROW_INCHES * max(1, len(rows))))
    axes = figure.add_subplot()
    labels = []
    for y, (name, one, less) in enumerate(rows):
        draw_row(axes, y, one, less)
        where = f"{name}, {one['label']}" if one["label"] else name
        cost = f" ({one['unit']}, less is better)" if less else ""
        labels.append(f"{where}: {one['ours']} / {one['peer']}{cost}")
    names = [name for name, *_ in rows]
    for y in range(1, len(rows)):
        if names[y] != names[y - 1]:
            axes.axhline(y - 0.5, color="0.8", linewidth=0.8)
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"x{x:g}"))
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("ours to the peer: median of the rounds, and their range")
    machine = report["environment"]
    git = machine["git"] or {"commit": "no checkout"}
    title = (
        f"{machine['cpu']}, {machine['cpu_cores']} cores; {machine['date']}; {git['commit'][:12]}"
    )
    axes.set_title(title + ("; tiny inputs (--quick)" if report["quick"] else ""), fontsize=9)
    axes.legend(handles=legend(), fontsize=8, loc="upper center", ncols=4, frameon=False,
                bbox_to_anchor=(0.3, -0.5 / figure.get_figheight()))  # fmt: skip
    figure.set_layout_engine("tight")
    return figure


def draw_row(axes: Axes, y: int, one: dict[str, Any], less: bool) -> None:
    ratio, low, high = np.maximum([one["ratio"], one["min"], one["max"]], LEAST)
    better = ratio <= 1 if less else ratio >= 1
    colour = BLUE if better else ORANGE
    axes.plot([low, high], [y, y], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
    axes.plot([ratio], [y], "o" if better else "s", color=colour, markersize=5)
    if one["target"] is not None:
        marker = "<" if less else ">"
        fill = "full" if one["met"] else "none"
        axes.plot([one["target"]], [y], marker, color="black", markersize=6, fillstyle=fill)
    told = spread(one["ratio"], one["min"], one["max"])
    axes.text(1.01, y, told, transform=axes.get_yaxis_transform(), va="center", fontsize=8)


def legend() -> list[Line2D]:
    def mark(marker: str, colour: str, text: str, fill: Any = "full") -> Line2D:
        return Line2D([], [], marker=marker, color=colour, linestyle="", label=text, fillstyle=fill)

    return [
        mark("o", BLUE, "better than x1"),
        mark("s", ORANGE, "worse than x1"),
        mark(">", "black", "target, met (at least; <: at most)"),
        mark(">", "black", "target, missed", "none"),
    ]


def save(figure: Figure, path: Path) -> None:
    """Writes the figure wholly or not at all. Raises UserError where it cannot be written."""
    with result(path) as file:
        figure.savefig(file, dpi=120, format="png", bbox_inches="tight")
