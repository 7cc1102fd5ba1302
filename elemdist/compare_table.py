"""What a comparison says: means and deviations over seeds, paired tests, a table and a figure.

Two tests, each two-sided, against the first model. Over seeds: Student's paired t, which asks
whether another seed would say the same. Over documents: a paired bootstrap of the mean over seeds,
which asks whether other documents would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from elemdist.atomic import replacing
from elemdist.curves import run_colour
from elemdist.errors import UserError
from elemdist.plain_text import markdown_cell, printable
from elemdist.resampling import RESAMPLED, defined, interval, resampled

NOTHING = "–"  # in the place of a figure that is not defined
Figures = dict[str, dict[int, dict[str, Any]]]  # model -> seed -> figures of `elemdist eval`


def results(figures: Figures, metrics: list[str], scores: Path, resamples: int) -> dict[str, Any]:
    """Return all figures, and for each model and metric mean, deviation over seeds and the tests;
    None for those of a figure that no seed has.

    Raises:
        UserError: a metric is not among the figures of a model, or the models were not tested on
            the same documents.
    """
    first = next(iter(figures))
    models: dict[str, Any] = {}
    for name, by_seed in figures.items():
        summary = {}
        for metric in metrics:
            values = {seed: value_of(one, metric, name) for seed, one in by_seed.items()}
            numbers = [value for value in values.values() if value is not None]
            summary[metric] = {
                "mean": float(np.mean(numbers)) if numbers else None,
                "deviation": float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
                "seeds": values,
            }
        models[name] = {"summary": summary, "figures": by_seed}
    drawn_first = None
    for name in list(figures)[1:]:
        if resamples and set(metrics) & set(RESAMPLED):
            drawn_first = drawn_first or drawn(first, figures[first], scores, resamples)
            both = (drawn_first, drawn(name, figures[name], scores, resamples))
        else:
            both = (None, None)
        tests = models[name]["against_first"] = {}
        for metric in metrics:
            ours, theirs = (models[k]["summary"][metric]["seeds"] for k in (name, first))
            tests[metric] = {"seeds": over_seeds(ours, theirs)}
            if both[0] is None or both[1] is None or metric not in RESAMPLED:
                continue
            if not np.array_equal(both[0].truth_BL, both[1].truth_BL):
                raise UserError(f"{first} and {name} were tested on different documents")
            tests[metric]["documents"] = over_documents(both[1].of[metric] - both[0].of[metric])
    return {"metrics": metrics, "first": first, "models": models}


def value_of(figures: dict[str, Any], metric: str, name: str) -> float | None:
    """Return a figure; None where it is not defined. Raises UserError where the evaluation has
    none of that name."""
    value = figures.get(metric)
    if value is None and metric in figures:
        return None
    if not isinstance(value, (int, float)):
        known = sorted(key for key, one in figures.items() if isinstance(one, float))
        raise UserError(f"metrics: {name} has no figure {metric}; there are {', '.join(known)}")
    return float(value)


def over_seeds(ours: dict[int, float | None], theirs: dict[int, float | None]) -> dict[str, Any]:
    """Return the mean difference over the seeds for which both have the figure, and p of Student's
    paired t; None where there are too few."""
    from scipy.stats import ttest_rel

    pairs = [(ours[seed], theirs[seed]) for seed in sorted(set(ours) & set(theirs))]
    a, b = np.array([pair for pair in pairs if None not in pair], float).reshape(-1, 2).T
    found: dict[str, Any] = {"difference": float((a - b).mean()) if len(a) else None, "p": None}
    if len(a) > 1 and np.ptp(a - b) > 0:
        p = float(ttest_rel(a, b).pvalue)
        found["p"] = p if math.isfinite(p) else None
    return found


@dataclass(frozen=True)
class Drawn:
    """What a model says of the test documents, drawn anew many times.

    Attributes:
        truth_BL: of the documents. of: metric -> the mean over seeds of its figure for each draw,
            as resampled() returns them.
    """

    truth_BL: np.ndarray
    of: dict[str, np.ndarray]


def drawn(
    name: str, by_seed: dict[int, dict[str, Any]], scores: Path, resamples: int
) -> Drawn | None:
    """Return the figures of a model for each draw; None without the scores of all its seeds.

    Raises:
        UserError: its seeds were not tested on the same documents.
    """
    found, truths = [], []
    for seed, figures in by_seed.items():
        file = scores / f"{name}-{seed}.npz"
        if not file.exists():
            return None
        with np.load(file, allow_pickle=False) as arrays:
            score_BL, truth_BL = arrays["probabilities"], arrays["truth"].astype(bool)
        truths.append(truth_BL)
        if not np.array_equal(truth_BL, truths[0]):
            raise UserError(f"the seeds of {name} were tested on different documents")
        threshold_L = np.asarray(figures["thresholds"])
        found.append(resampled(score_BL, truth_BL, threshold_L, resamples))
    means = {metric: np.mean([one[metric] for one in found], axis=0) for metric in RESAMPLED}
    return Drawn(truths[0], means)


def over_documents(difference_R: np.ndarray) -> dict[str, Any]:
    """Return the difference in a metric, its 95 % interval, and p by drawing the test documents
    anew; None where it is not defined as they are, or for too few draws.

    Args:
        difference_R: of the documents as they are, then of each draw; NaN where it is not defined.
    """
    valid_R = defined(difference_R[1:])
    bounds = interval(difference_R)
    found: dict[str, Any] = {
        "difference": None if np.isnan(difference_R[0]) else float(difference_R[0]),
        "interval": bounds,
        "p": None,
        "resamples": len(difference_R) - 1,
        "undefined_draws": len(difference_R) - 1 - len(valid_R),
    }
    if bounds is not None:
        beyond = min((valid_R <= 0).mean(), (valid_R >= 0).mean())
        found["p"] = float(min(1.0, 2 * max(beyond, 1 / len(valid_R))))
    return found


def table(found: dict[str, Any]) -> str:
    """The results as Markdown; * and + mark a difference to the first model that another choice of
    documents, or of seeds, would not have undone (p below 0.05)."""
    metrics, first = found["metrics"], found["first"]
    rows = [["model", *map(markdown_cell, metrics), "parameters", "minutes"]]
    rows.append(["---"] * len(rows[0]))
    for name, model in found["models"].items():
        tests = model.get("against_first", {})
        cells = [cell(model["summary"][metric], tests.get(metric, {})) for metric in metrics]
        rows.append([markdown_cell(name), *cells, *cost_of(model["figures"])])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    seeds = ", ".join(map(str, found["seeds"]))
    unit, amount = next(iter(found["budget"].items()))
    lines += ["", f"Mean and deviation over seeds {seeds}; budget of each: {amount:,.0f} {unit}."]
    if len(found["models"]) > 1:
        lines.append(f"Against {markdown_cell(first)}, p < 0.05: * over documents, + over seeds.")
    missing = found["failed"].items()
    lines += [f"Missing: {markdown_cell(one)}: {markdown_cell(reason)}" for one, reason in missing]
    return "\n".join(lines) + "\n"


def cell(summary: dict[str, Any], tests: dict[str, Any]) -> str:
    """Return mean, deviation, and a mark for each test that finds a difference; a dash without."""
    if summary["mean"] is None:
        return NOTHING
    spread = "" if summary["deviation"] is None else f" ± {summary['deviation']:.4f}"
    documents, seeds = tests.get("documents", {}), tests.get("seeds", {})
    marks = [sign for sign, test in (("*", documents), ("+", seeds)) if is_below(test.get("p"))]
    return f"{summary['mean']:.4f}{spread}{''.join(marks)}"


def is_below(p: float | None) -> bool:
    """Whether a p-value is below 5 %."""
    return p is not None and p < 0.05


def cost_of(figures: dict[int, dict[str, Any]]) -> list[str]:
    """Parameters, and the mean minutes of training, of a model; empty for a baseline."""
    spent = [found["training"] for found in figures.values()]
    if not all(spent):
        return ["", ""]
    seconds = np.mean([sum(phase["seconds"] for phase in phases) for phases in spent])
    return [f"{spent[0][-1]['parameters']:,}", f"{seconds / 60:.1f}"]


def figure_of(found: dict[str, Any]) -> Figure:
    """A panel for each metric: a dot for each seed, a line at the mean of each model."""
    metrics, models = found["metrics"], found["models"]
    figure = Figure(
        figsize=(8.0, 0.6 + len(metrics) * (0.7 + 0.35 * len(models))), layout="constrained"
    )
    axes = figure.subplots(len(metrics), 1, squeeze=False)[:, 0]
    for metric, ax in zip(metrics, axes, strict=True):
        for place, model in enumerate(models.values()):
            one = model["summary"][metric]
            values = [value for value in one["seeds"].values() if value is not None]
            if not values:
                continue
            ax.plot(values, [place] * len(values), "o", color=run_colour(place), alpha=0.7)
            ax.plot([one["mean"]] * 2, [place - 0.3, place + 0.3], color=run_colour(place))
        ax.set_yticks(range(len(models)))
        for label in ax.set_yticklabels([printable(name) for name in models]):
            label.set_parse_math(False)
        ax.invert_yaxis()
        ax.set_xlabel(printable(metric), parse_math=False)
        ax.grid(alpha=0.3, axis="x")
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def draw(found: dict[str, Any], out: Path) -> None:
    """Writes the figure, whole or not at all."""
    with replacing(out) as file:
        figure_of(found).savefig(file, format="svg")
