"""Classifiers on noisy text: ``elemdist robustness RUN --text FILE.jsonl --rates '[0, 0.1]'``.

All runs see the same noise. What elemdist/noise.py does to a text is a function of kind, rate, seed
and the document's number.
Shape suffixes: see elemdist/rows.py.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elemdist.artefacts import read_json
from elemdist.atomic import result, write_result
from elemdist.errors import UserError
from elemdist.figure_types import PointsFile
from elemdist.json_text import json_text
from elemdist.multilabel import multilabel_figures
from elemdist.noise import noisy
from elemdist.output import write_out
from elemdist.plain_text import markdown_cell
from elemdist.plot import check_out
from elemdist.robustness_settings import RobustnessSettings
from elemdist.text_input import OpenDocuments, for_verb, tell_losses
from elemdist.trained import CutSamples, TextClassifier
from elemdist.units import counted

FIGURES = ("micro_f1", "macro_f1", "micro_roc_auc", "macro_roc_auc")
FREE = ("out", "plot", "device", "micro_samples")  # settings that change no figure
READING = (  # settings that `elemdist shard` has as input.*
    "format", "text_field", "labels_field", "labels_separator", "labels_as", "label_names",
    "max_document_mb", "max_record_mb",
)  # fmt: skip

Points = list[dict[str, Any]]


def run(settings: RobustnessSettings, cut: CutSamples, open_documents: OpenDocuments) -> int:
    """Run ``elemdist robustness``; return the exit code."""
    settings.check()
    if settings.plot:
        check_out(Path(settings.plot))
    try:
        texts, labels = read(settings, open_documents)
    except UserError as error:
        raise for_verb(error) from None
    points = known_points(settings)
    unknown = {}
    for name in settings.runs:
        model = TextClassifier(name, settings.tokenizer, settings.device, cut, settings.overlong)
        truth_BL, unknown[name] = truth_of(labels, model.labels)
        if not truth_BL.any():
            raise UserError(
                f"{settings.text}: none of its documents has a label that {name} knows"
                f" ({', '.join(model.labels[:5])}), so there are no figures;"
                " --labels-field names the field of the labels"
            )
        if unknown[name]:
            print(
                "elemdist robustness: left out:"
                f" {counted(unknown[name], 'label')} that {name} does not know",
                file=sys.stderr,
            )
        for kind, rate, seed in asked(settings):
            here = {"run": name, "kind": kind, "rate": rate, "seed": seed}
            if any(here.items() <= point.items() for point in points):
                continue
            calm = next((one for one in points if one["run"] == name and not one["rate"]), None)
            if calm is not None and not rate:  # no noise is the same of every kind
                points.append({**calm, **here})
                continue
            hit = [noisy(text, kind, rate, seed, number) for number, text in enumerate(texts)]
            points.append(here | judged(model, hit, truth_BL, settings))
            save(settings, points, unknown)
    save(settings, points, unknown)
    write_out(table(settings, points) + "\n")
    if settings.plot:
        draw(settings, points, Path(settings.plot))
    return 0


def read(
    settings: RobustnessSettings, open_documents: OpenDocuments
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return texts and labels, and say what was left out. Raises UserError on a record that has
    not both, and where there is none."""
    assert settings.text is not None
    documents = open_documents(
        [settings.text],
        settings.on_invalid,
        nameless="jsonl",
        **{name: getattr(settings, name) for name in READING},
    )
    texts: list[str] = []
    labels: list[tuple[str, ...]] = []
    for one in documents:
        if isinstance(one, UserError):
            if settings.on_error == "skip":
                continue
            raise one
        texts.append(one.text)
        labels.append(one.labels)
        if len(texts) == settings.documents:
            break
    tell_losses("robustness", documents)
    if not texts:
        raise UserError(f"{settings.text}: no documents in it")
    return texts, labels


def truth_of(labels: Sequence[Sequence[str]], known: list[str]) -> tuple[np.ndarray, int]:
    """(B, L) booleans in the order of a model's labels, and how many labels it does not know."""
    place = {label: number for number, label in enumerate(known)}
    truth_BL, unknown = np.zeros((len(labels), len(known)), bool), 0
    for row_L, found in zip(truth_BL, labels, strict=True):
        for label in found:
            if label in place:
                row_L[place[label]] = True
            else:
                unknown += 1
    return truth_BL, unknown


def asked(settings: RobustnessSettings) -> list[tuple[str, float, int]]:
    """(kind, rate, seed) of each point; without noise all seeds are the same one."""
    return [
        (kind, rate, seed)
        for kind in settings.kinds
        for rate in settings.rates
        for seed in (settings.seeds if rate else settings.seeds[:1])
    ]


def judged(
    model: TextClassifier, texts: list[str], truth_BL: np.ndarray, settings: RobustnessSettings
) -> dict[str, Any]:
    """Figures of a classifier on these texts; `truth_BL`: their labels. Raises UserError where the
    thresholds asked for are not as many as its labels."""
    score_BL = model.scores(texts, settings.micro_samples)
    threshold: float | np.ndarray = model.settings.classify.threshold
    if settings.threshold is not None:
        threshold = settings.threshold
    if settings.thresholds:
        threshold = np.array(settings.thresholds)
        if len(threshold) != len(model.labels):
            raise UserError(
                f"thresholds: there are {len(threshold)}, the model has {len(model.labels)} labels"
            )
    found = multilabel_figures(score_BL, truth_BL, model.labels, threshold)
    return {name: found[name] for name in FIGURES}


def same(settings: RobustnessSettings) -> dict[str, Any]:
    """What the figures hang on."""
    return {name: x for name, x in dataclasses.asdict(settings).items() if name not in FREE}


def known_points(settings: RobustnessSettings) -> Points:
    """What stands in the file already. Raises UserError where it is another's."""
    if not settings.out or not Path(settings.out).exists():
        return []
    found = read_json(settings.out, PointsFile, remedy="name another file for --out")
    if found["settings"] != same(settings):
        raise UserError(
            f"out: {settings.out} is of other settings, or something else; name another"
        )
    return list(found["points"])


def save(settings: RobustnessSettings, points: Points, unknown: dict[str, int]) -> None:
    """Writes the points so far, if they are to be kept."""
    if settings.out:
        found = {"settings": same(settings), "unknown_labels": unknown, "points": points}
        text = json_text(found, indent=2)
        write_result(settings.out, text + "\n")


def curve(points: Points, name: str, kind: str, metric: str) -> dict[float, float]:
    """Rate -> the mean over seeds."""
    found: dict[float, list[float]] = {}
    for point in points:
        if (point["run"], point["kind"]) == (name, kind) and point[metric] is not None:
            found.setdefault(point["rate"], []).append(point[metric])
    return {rate: float(np.mean(values)) for rate, values in sorted(found.items())}


def table(settings: RobustnessSettings, points: Points) -> str:
    """micro-F1 as Markdown: a line for each run and kind, a column for each rate."""
    rates = sorted(set(settings.rates))
    lines = ["| micro-F1 | noise | " + " | ".join(f"{rate:.0%}" for rate in rates) + " |"]
    lines.append("|---" * (2 + len(rates)) + "|")
    for name in settings.runs:
        for kind in settings.kinds:
            found = curve(points, name, kind, "micro_f1")
            cells = [f"{found[rate]:.4f}" if rate in found else "" for rate in rates]
            lines.append(f"| {markdown_cell(name)} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(settings: RobustnessSettings, points: Points, out: Path) -> None:
    """A colour for each run, a line style for each kind. Raises UserError."""
    from matplotlib.figure import Figure

    from elemdist.curves import run_colour

    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    styles = ("-", "--", ":", "-.")
    for number, name in enumerate(settings.runs):
        for place, kind in enumerate(settings.kinds):
            found = curve(points, name, kind, "micro_f1")
            style = styles[place % len(styles)]
            axes.plot(
                list(found), list(found.values()), style, marker="o", color=run_colour(number)
            )
            axes.lines[-1].set_label(f"{Path(name).name}, {kind}".replace("$", r"\$").lstrip("_"))
    axes.set_xlabel("share of letters that are hit")
    axes.set_ylabel("micro-F1")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend()
    with result(out) as file:
        figure.savefig(file, dpi=120, format=Path(out).suffix[1:])
