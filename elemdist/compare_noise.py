"""What errors in the test documents cost the models of a comparison: curves over their rate.

    DIR/noise/test.jsonl        the test documents as text
             /NAME-SEED.json    figures of a trained model, by `elemdist robustness`

All models read the same errors and keep the threshold that was chosen on text without.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from elemdist.artefacts import read_json
from elemdist.atomic import write_atomically
from elemdist.compare_settings import CompareSettings, NoiseSettings
from elemdist.compare_stages import Stages
from elemdist.figure_types import PointsFile
from elemdist.json_text import json_text
from elemdist.plain_text import markdown_cell
from elemdist.robustness import asked
from elemdist.robustness_settings import RobustnessSettings

NOTHING = "–"  # in the place of a figure that is not defined
DONE = "noise.json"  # in the folder of the comparison

Points = list[dict[str, Any]]


def noise_points(
    settings: CompareSettings, stages: Stages, figures: dict[str, dict[int, dict[str, Any]]]
) -> Points:
    """A point for each model, seed, kind and rate; computes those that are not there yet.

    Raises StageError.
    """
    noise = settings.noise
    trained = {one.name for one in settings.models if one.baseline == "none"}
    named = [(name, seed) for name in figures if name in trained for seed in figures[name]]
    if not noise.kinds or not named:
        return []
    text = stages.out / "noise" / "test.jsonl"
    if not text.exists():
        text.parent.mkdir(exist_ok=True)
        source = stages.plain_shards() / "test"
        log = stages.out / "logs" / "noise-text.log"
        stages.command(log, "convert", source, "--to", "jsonl", "--out", text, "--quiet")
    points: Points = []
    for name, seed in named:
        file = text.with_name(f"{name}-{seed}.json")
        if not complete(file, noise):
            threshold_L = figures[name][seed]["thresholds"]
            words: list[str | Path] = ["--text", text, "--out", file]
            words += ["--device", settings.device]
            words += ["--kinds", json_text(noise.kinds), "--rates", json_text(noise.rates)]
            words += ["--thresholds", json_text(threshold_L)]
            run = stages.out / "runs" / name / f"seed-{seed}" / "train"
            log = stages.out / "logs" / f"noise-{name}-{seed}.log"
            stages.command(log, "robustness", run, *words)
        found = read_json(file, PointsFile)["points"]
        points += [{**point, "run": name, "model_seed": seed} for point in found]
    tree = {"settings": dataclasses.asdict(noise), "points": points}
    write_atomically(stages.out / DONE, json_text(tree, indent=2) + "\n")
    return points


def complete(file: Path, noise: NoiseSettings) -> bool:
    """Whether all figures of a model are there; they are added one by one."""
    if not file.exists():
        return False
    found = read_json(file, PointsFile)["points"]
    return len(found) == len(asked(RobustnessSettings(kinds=noise.kinds, rates=noise.rates)))


def noise_table(points: Points) -> str:
    """micro-F1 as Markdown, means over seeds: a line for each model and kind, a column for each
    rate with what is lost against no noise."""
    rates = sorted({point["rate"] for point in points})
    lines = ["| micro-F1, noise | " + " | ".join(f"{rate:.0%}" for rate in rates) + " |"]
    lines.append("|---" * (1 + len(rates)) + "|")
    for name, kind in dict.fromkeys((point["run"], point["kind"]) for point in points):
        means = {rate: mean(points, name, kind, rate) for rate in rates}
        calm = means.get(0.0)
        cells = [
            NOTHING
            if value is None
            else f"{value:.4f}" + (f" ({value - calm:+.4f})" if calm is not None and rate else "")
            for rate, value in means.items()
        ]
        label = markdown_cell(f"{name}, {kind}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mean(points: Points, name: str, kind: str, rate: float) -> float | None:
    """Return the mean micro-F1 over the seeds that have one; None without any."""
    same = {"run": name, "kind": kind, "rate": rate}
    found = [point["micro_f1"] for point in points if same.items() <= point.items()]
    found = [value for value in found if value is not None]
    return float(np.mean(found)) if found else None
