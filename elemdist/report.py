"""A page about runs and comparisons: ``elemdist report RUN [RUN ...] --out report.html``.

Everything is in the one file, which loads nothing and runs nothing, so that it can be read anywhere
and for ever. elemdist/page.py makes the HTML.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from elemdist import page
from elemdist.artefacts import read_json
from elemdist.atomic import write_result
from elemdist.attempts import Attempt, numbers
from elemdist.commandline import parse
from elemdist.config import TrainSettings
from elemdist.curve_points import Metrics, read_metrics
from elemdist.curves import draw_panel, panel_curves, run_colour
from elemdist.errors import UserError
from elemdist.figure_types import Figures, PointsFile
from elemdist.json_text import json_text
from elemdist.json_types import misfit
from elemdist.metrics_file import is_number
from elemdist.panels import PANELS
from elemdist.plot import run_names
from elemdist.report_figures import comparison_part, figures_part
from elemdist.report_settings import ReportSettings
from elemdist.stop import read_end
from elemdist.units import duration

SHOWN = (
    "loss", "bits_per_byte", "material_accuracy", "micro_f1", "macro_f1", "micro_roc_auc",
    "macro_roc_auc",
)  # fmt: skip

Runs = dict[str, tuple[Path, Metrics]]


def run(settings: ReportSettings) -> int:
    """``elemdist report``; the exit code."""
    settings.check()
    places = [Path(place) for place in settings.places]
    compared = [place for place in places if (place / "results.json").is_file()]
    folders = [place for place in places if place not in compared]
    names = run_names(folders) if folders else []
    runs = {name: (path, read_metrics(path)) for name, path in zip(names, folders, strict=True)}
    parts = [part for place in compared for part in comparison_parts(place)]
    if runs:
        parts += [overview(runs), curves(runs)]
    for file in settings.figures:
        parts.append(figures_part(Path(file).name, read_figures(Path(file))))
    parts += [about(name, path, metrics) for name, (path, metrics) in runs.items()]
    title = ", ".join([*(place.name for place in compared), *names]) or "figures"
    out = Path(settings.out)
    write_result(out, page.page(f"elemdist: {title}", *parts))
    print(f"report: {out}, {out.stat().st_size / 1e3:,.0f} kB")
    return 0


def comparison_parts(place: Path) -> list[str]:
    """Of the folder of a comparison, and of its noise, where it has that."""
    parts = [comparison_part(place.name, read_json(place / "results.json", dict[str, Any]))]
    if (place / "noise.json").is_file():
        parts.append(figures_part(place.name, read_figures(place / "noise.json")))
    return parts


def read_figures(path: Path) -> dict[str, Any]:
    """Return the figures of a file. Raises UserError where it holds none."""
    found: dict[str, Any] = read_json(path, dict[str, Any])
    kind = PointsFile if "points" in found else Figures
    if (wrong := misfit(found, kind)) is not None:
        raise UserError(
            f"{path}: {wrong}; name a file of `elemdist eval`, `robustness` or `compare`"
        )
    return found


def evaluations(metrics: Metrics) -> list[dict[str, Any]]:
    """Return the last evaluations of a run, by step."""
    return list(metrics.evaluations.values())


def cells(figures: dict[str, Any], keys: list[str]) -> list[page.Cell]:
    """Return some figures, None for what is no number."""
    return [x if is_number(x := figures.get(key)) else None for key in keys]


def overview(runs: Runs) -> str:
    """A line for each run: how it stands, and its last evaluation."""
    last = {name: (evaluations(metrics) or [{}])[-1] for name, (_, metrics) in runs.items()}
    keys = [key for key in SHOWN if any(key in found for found in last.values())]
    rows = []
    for name, (path, metrics) in runs.items():
        end = read_end(path) or {"state": "unknown", "reason": ""}
        time = duration(metrics.time_s)
        rows.append([name, end["state"], metrics.last_step, time, *cells(last[name], keys)])
    return page.section(
        "Runs",
        page.table("The last evaluation of each", ["run", "state", "step", "time", *keys], rows),
    )


def curves(runs: Runs) -> str:
    """A picture for each quantity that the runs logged, with all of them in it."""
    metrics = {name: found for name, (_, found) in runs.items()}
    pictures = []
    for panel in PANELS:
        if any(list(panel_curves(panel, found)) for found in metrics.values()):
            figure = Figure(figsize=(5.0, 3.0), layout="constrained")  # legible on a phone, too
            axes = figure.subplots()
            draw_panel(axes, panel, metrics)
            axes.set_xlabel("step")
            told = panel.label + (f": {legend(list(runs))}" if len(runs) > 1 else "")
            pictures.append(page.picture(figure, told))
    return page.section("Curves", *pictures)


def legend(names: list[str]) -> str:
    """Which colour is which run, in words: also for those who do not see colours."""
    words = {
        "#0072B2": "blue", "#D55E00": "red", "#009E73": "green", "#CC79A7": "pink",
        "#E69F00": "orange", "#56B4E9": "light blue", "#000000": "black",
    }  # fmt: skip
    return ", ".join(f"{words[run_colour(k)]} {name}" for k, name in enumerate(names))


def about(name: str, path: Path, metrics: Metrics) -> str:
    """All that a run folder tells of itself."""
    return page.folded(
        name,
        *evaluation_table(metrics),
        *settings_part(path),
        *environment_part(path),
        *attempts_part(path),
        is_open=True,
    )


def evaluation_table(metrics: Metrics) -> Iterator[str]:
    """The newest of them as a table, if there are any."""
    found = evaluations(metrics)
    keys = [key for key in SHOWN if any(key in one for one in found)]
    if found:
        rows = [[str(one["step"]), *cells(one, keys)] for one in found]
        yield page.table("Evaluations", ["step", *keys], rows)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a tree of dicts."""
    if not isinstance(tree, dict) or not tree:
        return {prefix[:-1]: tree}
    return {k: x for name, one in tree.items() for k, x in flat(one, f"{prefix}{name}.").items()}


def shown(value: Any) -> str:
    """A value as text."""
    return value if isinstance(value, str) else json_text(value)


def settings_part(path: Path) -> Iterator[str]:
    """What differs from the defaults, and all of it; the command that does the run again."""
    file = path / "settings.yaml"
    if not file.is_file():
        return
    settings = parse(TrainSettings, [str(file)], "elemdist report")
    mine, usual = flat(dataclasses.asdict(settings)), flat(dataclasses.asdict(TrainSettings()))
    other = [[key, shown(value)] for key, value in mine.items() if usual.get(key) != value]
    yield page.table("Settings that are not the defaults", ["setting", "value"], other)
    every = [[key, shown(value)] for key, value in mine.items()]
    yield page.folded("All settings", page.table("All settings", ["setting", "value"], every))
    yield page.paragraph("The same run again, in a new folder:")
    yield page.code(f"elemdist train {shlex.quote(f'{path.name}/settings.yaml')} --run-dir NEW")


def environment_part(path: Path) -> Iterator[str]:
    """What environment.json says, folded up."""
    file = path / "environment.json"
    if file.is_file():
        rows = [[key, shown(value)] for key, value in flat(read_json(file, dict[str, Any])).items()]
        yield page.folded("Environment", page.table("Environment", ["what", "value"], rows))


def attempts_part(path: Path) -> Iterator[str]:
    """The starts of a run and how they ended, where there were several."""
    rows = []
    for number in numbers(path):
        end = Attempt(path, number).read("end")
        told = str(end.get("reason", "not told"))
        rows.append([str(number), *cells(end, ["step"]), told])
    if len(rows) > 1:
        yield page.table("Attempts", ["attempt", "step", "how it ended"], rows)
