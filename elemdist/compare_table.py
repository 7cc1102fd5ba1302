"""What a comparison says: means and deviations over seeds, paired tests, a table and a figure.

Two tests, each two-sided, against the first model. Over seeds: Student's paired t, which asks
whether another seed would say the same. Over documents: a paired bootstrap of the mean over seeds,
which asks whether other documents would.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from elemdist.atomic import replacing
from elemdist.curves import run_colour
from elemdist.errors import UserError
from elemdist.resampling import RESAMPLED, draws, resampled

Figures = dict[str, dict[int, dict[str, Any]]]  # model -> seed -> figures of `elemdist eval`


def results(figures: Figures, metrics: list[str], scores: Path, resamples: int) -> dict[str, Any]:
    """All figures, and for each model and metric mean, deviation over seeds and the tests.

    Raises:
        UserError: a metric is not among the figures of a model.
    """
    first = next(iter(figures))
    models: dict[str, Any] = {}
    for name, by_seed in figures.items():
        summary = {}
        for metric in metrics:
            values = {seed: value_of(one, metric, name) for seed, one in by_seed.items()}
            numbers = list(values.values())
            summary[metric] = {
                "mean": float(np.mean(numbers)),
                "deviation": float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
                "seeds": values,
            }
        models[name] = {"summary": summary, "figures": by_seed}
    for name in list(figures)[1:]:
        tests = models[name]["against_first"] = {}
        for metric in metrics:
            ours, theirs = (models[k]["summary"][metric]["seeds"] for k in (name, first))
            tests[metric] = {"seeds": over_seeds(ours, theirs)}
            drawn = over_documents(metric, name, first, figures, scores, resamples)
            if drawn is not None:
                tests[metric]["documents"] = drawn
    return {"metrics": metrics, "first": first, "models": models}


def value_of(figures: dict[str, Any], metric: str, name: str) -> float:
    """A figure. Raises UserError where the evaluation has none of that name."""
    value = figures.get(metric)
    if not isinstance(value, (int, float)):
        known = sorted(key for key, one in figures.items() if isinstance(one, float))
        raise UserError(f"metrics: {name} has no figure {metric}; there are {', '.join(known)}")
    return float(value)


def over_seeds(ours: dict[int, float], theirs: dict[int, float]) -> dict[str, Any]:
    """The mean difference over the seeds that both have, and p of Student's paired t."""
    from scipy.stats import ttest_rel

    both = sorted(set(ours) & set(theirs))
    a, b = (np.array([values[seed] for seed in both]) for values in (ours, theirs))
    found: dict[str, Any] = {"difference": float((a - b).mean()) if both else None, "p": None}
    if len(both) > 1 and np.ptp(a - b) > 0:
        p = float(ttest_rel(a, b).pvalue)
        found["p"] = p if math.isfinite(p) else None
    return found


def over_documents(
    metric: str, name: str, first: str, figures: Figures, scores: Path, resamples: int
) -> dict[str, Any] | None:
    """The difference in a metric, a mean over the seeds of each, with its 95 % interval and p by
    drawing the test documents anew; None where there are no scores, or the metric is none of those
    in elemdist/resampling.py.

    Raises:
        UserError: the models were not tested on the same documents.
    """
    means, truths = [], []
    for one in (first, name):
        drawn = []
        for seed, found in figures[one].items():
            file = scores / f"{one}-{seed}.npz"
            if not resamples or metric not in RESAMPLED or not file.exists():
                return None
            with np.load(file, allow_pickle=False) as arrays:
                score_BL, truth_BL = arrays["probabilities"], arrays["truth"].astype(bool)
            truths.append(truth_BL)
            weights_RB = draws(len(truth_BL), resamples)
            threshold_L = np.asarray(found["thresholds"])
            drawn.append(resampled(metric, score_BL, truth_BL, threshold_L, weights_RB))
        means.append(np.mean(drawn, axis=0))
    if not all(np.array_equal(truth_BL, truths[0]) for truth_BL in truths):
        raise UserError(f"{first} and {name} were tested on different documents")
    difference_R = means[1] - means[0]
    low, high = np.quantile(difference_R[1:], [0.025, 0.975])
    beyond = min((difference_R[1:] <= 0).mean(), (difference_R[1:] >= 0).mean())
    return {
        "difference": float(difference_R[0]),
        "interval": [float(low), float(high)],
        "p": float(min(1.0, 2 * max(beyond, 1 / resamples))),
        "resamples": resamples,
    }


def table(found: dict[str, Any]) -> str:
    """The results as Markdown; * and + mark a difference to the first model that another choice of
    documents, or of seeds, would not have undone (p below 0.05)."""
    metrics, first = found["metrics"], found["first"]
    rows = [["model", *metrics, "parameters", "minutes"]]
    rows.append(["---"] * len(rows[0]))
    for name, model in found["models"].items():
        tests = model.get("against_first", {})
        cells = [cell(model["summary"][metric], tests.get(metric, {})) for metric in metrics]
        rows.append([name, *cells, *cost_of(model["figures"])])
    lines = ["| " + " | ".join(one.replace("|", "\\|") for one in row) + " |" for row in rows]
    seeds = ", ".join(map(str, found["seeds"]))
    unit, amount = next(iter(found["budget"].items()))
    lines += ["", f"Mean and deviation over seeds {seeds}; budget of each: {amount:,.0f} {unit}."]
    if len(found["models"]) > 1:
        lines.append(f"Against {first}, p < 0.05: * over documents, + over seeds.")
    lines += [f"Missing: {one}: {reason}" for one, reason in found["failed"].items()]
    return "\n".join(lines) + "\n"


def cell(summary: dict[str, Any], tests: dict[str, Any]) -> str:
    """Mean, deviation, and a mark for each test that finds a difference."""
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
            values = list(one["seeds"].values())
            ax.plot(values, [place] * len(values), "o", color=run_colour(place), alpha=0.7)
            ax.plot([one["mean"]] * 2, [place - 0.3, place + 0.3], color=run_colour(place))
        ax.set_yticks(range(len(models)))
        for label, name in zip(ax.set_yticklabels(models), models, strict=True):
            label.set_parse_math(False)
            label.set_text(name)
        ax.invert_yaxis()
        ax.set_xlabel(metric)
        ax.grid(alpha=0.3, axis="x")
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def draw(found: dict[str, Any], out: Path) -> None:
    """Writes the figure, whole or not at all."""
    with replacing(out) as file:
        figure_of(found).savefig(file, format="svg")
