"""The parts of a report that show figures: of evaluations, of noise, of comparisons.

A file may come from another version: what is known is shown as it should be, single numbers that
are not are listed, and the rest is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from elemdist import page
from elemdist.errors import UserError

NUMBERS = (int, float)
# What a value of another type, or one that is missing, ends in.
MISFITS = (KeyError, TypeError, AttributeError, ValueError, IndexError, StopIteration)


def figures_part(name: str, found: dict[str, Any]) -> str:
    """Return the part about a file of `elemdist eval` or `elemdist robustness`. Raises UserError
    where it is none."""
    try:
        if isinstance(found.get("points"), list):
            return page.section(f"Noise: {name}", *noise(found["points"]))
        return page.section(f"Figures: {name}", *evaluation(found))
    except MISFITS as error:
        told = "these are no figures of `elemdist eval` or `elemdist robustness`"
        raise UserError(f"{name}: {told} ({error})") from None


def evaluation(found: dict[str, Any]) -> list[str]:
    """The parts about what `elemdist eval` wrote."""
    intervals = found.get("intervals") or {}
    words = [f"{key}: {value}" for key, value in found.items() if isinstance(value, str)]
    rows = [
        [key, value, interval(intervals.get(key))]
        for key, value in found.items()
        if isinstance(value, NUMBERS) and not isinstance(value, bool)
    ]
    parts = [page.paragraph("; ".join(words), "quiet")] if words else []
    parts.append(page.table("Figures", ["figure", "value", "95 % interval"], rows))
    for key, told in (
        ("by_frequency", "Labels by how often training saw them"),
        ("by_source", "By source"),
        ("by_position", "By position, in rows"),
        ("by_material_bytes", "By the bytes of a material"),
    ):
        if isinstance(found.get(key), dict):
            parts.append(nested(told, "part", found[key]))
    if found.get("calibration_bins"):
        parts.append(reliability(found["calibration_bins"]))
    if isinstance(found.get("labels"), dict):
        most = sorted(found["labels"].items(), key=lambda pair: -pair[1].get("documents", 0))
        parts.append(page.folded("Labels", nested("Every label", "label", dict(most))))
    return parts


def interval(bounds: Any) -> str:
    """Bounds in words; empty without any."""
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}" if isinstance(bounds, list) else ""


def nested(told: str, first: str, groups: dict[str, Any]) -> str:
    """A table with a line for each of some groups of figures."""
    known = [group for group in groups.values() if isinstance(group, dict)]
    keys = list(dict.fromkeys(key for group in known for key in group))
    rows = [
        [name, *(as_cell(group.get(key)) for key in keys)]
        for name, group in groups.items()
        if isinstance(group, dict)
    ]
    return page.table(told, [first, *(key.replace("_", " ") for key in keys)], rows)


def as_cell(value: Any) -> page.Cell:
    """A value of JSON as a cell."""
    if isinstance(value, list):
        return " to ".join(map(str, value))
    return value if isinstance(value, (*NUMBERS, str)) else None


def reliability(bins: list[dict[str, float]]) -> str:
    """A picture of how often what is said with so much confidence is true."""
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color="0.6")
    axes.plot([one["probability"] for one in bins], [one["positives"] for one in bins], "o-")
    axes.set_xlabel("probability that was said")
    axes.set_ylabel("share that is true")
    return page.picture(figure, "Calibration: on the dashed line probabilities are what they say")


def noise(points: list[dict[str, Any]]) -> list[str]:
    """micro-F1 against the rate, a curve for each run and kind, as a picture and a table."""
    curves: dict[tuple[str, str], dict[float, list[float]]] = {}
    for point in points:
        rates = curves.setdefault((point["run"], point["kind"]), {})
        if point["micro_f1"] is not None:
            rates.setdefault(point["rate"], []).append(point["micro_f1"])
    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    axes = figure.subplots()
    every = sorted({point["rate"] for point in points})
    rows: list[list[page.Cell]] = []
    for (name, kind), rates in curves.items():
        means = {rate: float(np.mean(values)) for rate, values in sorted(rates.items())}
        (line,) = axes.plot(list(means), list(means.values()), "o-")
        line.set_label(f"{len(rows) + 1}")
        rows.append([f"{len(rows) + 1}: {name}, {kind}", *map(means.get, every)])
    axes.set_xlabel("share of letters that are hit")
    axes.set_ylabel("micro-F1")
    axes.grid(alpha=0.3)
    axes.legend()
    head = ["run, noise", *(f"{rate:.0%}" for rate in every)]
    told = "micro-F1 against noise; the numbers are those of the table"
    return [page.picture(figure, told), page.table("micro-F1", head, rows)]


def comparison_part(name: str, found: dict[str, Any]) -> str:
    """Of the results of `elemdist compare`. Raises UserError where they are none."""
    from elemdist.compare_table import figure_of

    try:
        metrics, models, first = found["metrics"], found["models"], found["first"]
        parts = [page.picture(figure_of(found), "Every seed a dot, the mean a line")]
        rows = [
            [model, *(spread(one["summary"][metric]) for metric in metrics)]
            for model, one in models.items()
        ]
        parts.append(page.table("Mean and deviation over seeds", ["model", *metrics], rows))
        tests = [
            [f"{model}: {metric}", *test_cells(one["against_first"][metric])]
            for model, one in models.items()
            for metric in metrics
            if "against_first" in one
        ]
        head = ["model", "difference", "p, seeds", "95 %, documents", "p, documents"]
        if tests:
            parts.append(page.table(f"Against {first}", head, tests))
        unit, amount = next(iter(found["budget"].items()))
        seeds = ", ".join(map(str, found["seeds"]))
        parts.append(page.paragraph(f"Budget of each: {amount:,.0f} {unit}. Seeds: {seeds}."))
        missing = [f"Missing: {one}: {why}" for one, why in found["failed"].items()]
        parts += [page.paragraph(line) for line in missing]
        labels = [
            page.folded(f"{model}, seed {seed}", *evaluation(figures))
            for model, one in models.items()
            for seed, figures in one["figures"].items()
        ]
        return page.section(f"Comparison: {name}", *parts, *labels)
    except MISFITS as error:
        raise UserError(f"{name}: these are no results of `elemdist compare` ({error})") from None


def spread(summary: dict[str, Any]) -> str:
    """Return mean and deviation; a dash where no seed has the figure."""
    if summary["mean"] is None:
        return page.text(None)
    deviation = summary["deviation"]
    return f"{summary['mean']:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def test_cells(tests: dict[str, Any]) -> list[page.Cell]:
    """The paired tests as cells."""
    seeds, documents = tests["seeds"], tests.get("documents") or {}
    bounds = documents.get("interval")
    return [seeds["difference"], seeds["p"], interval(bounds), documents.get("p")]
