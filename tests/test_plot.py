"""elemdist plot: what it reads, what it draws, and what it says about bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from elemdist.curve_points import FRESH, KEPT, read_metrics
from elemdist.curves import MAX_POINTS, draw
from elemdist.errors import UserError
from elemdist.plot import PlotSettings, run, run_names


def write_run(folder: Path, *records: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folder


def train(step: int, **values: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 3.0 / step, **values}


def mlm_run(folder: Path) -> Path:
    steps = [
        train(s, bits_per_byte=8.0 / s, lr=1e-3, bytes_per_s=2e6, rows_per_s=3e5)
        for s in range(1, 30)
    ]
    return write_run(folder, *steps, {"kind": "eval", "step": 30, "bits_per_byte": 2.0})


def classify_run(folder: Path) -> Path:
    scores = {"loss": 0.2, "micro_f1": 0.8, "macro_f1": 0.6}
    return write_run(folder, train(10), train(20), {"kind": "eval", "step": 20, **scores})


def panel_labels(*folders: Path) -> list[str]:
    figure = draw({folder.name: read_metrics(folder) for folder in folders})
    return [ax.get_ylabel() for ax in figure.axes]


def test_writes_a_png_with_something_on_it(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "the curves.png"
    # A `$` must not be read as mathematics, and a leading `_` must not drop the run.
    first, second = mlm_run(tmp_path / "_a $\\frac run$"), classify_run(tmp_path / "b")
    run(PlotSettings(runs=[str(first), str(second)], out=str(out)))
    picture = matplotlib.image.imread(out)
    assert picture.shape[0] > 600
    assert picture.shape[1] > 600
    assert 0.001 < (picture[..., :3] < 0.9).any(axis=-1).mean() < 0.5
    assert str(out) in capsys.readouterr().out


def test_legend_names_the_runs(tmp_path: Path) -> None:
    names = ["_first", "costs $5 or $6"]
    figure = draw({name: read_metrics(mlm_run(tmp_path / name)) for name in names})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())


def test_panels_only_for_what_was_logged(tmp_path: Path) -> None:
    mlm, classify = mlm_run(tmp_path / "mlm"), classify_run(tmp_path / "classify")
    throughput = "throughput of text"
    assert panel_labels(mlm) == ["bits per byte", "learning rate", throughput]
    assert panel_labels(classify) == ["loss (nats)", "F1 at evaluation"]
    both = ["bits per byte", "loss (nats)", "F1 at evaluation", "learning rate", throughput]
    assert panel_labels(mlm, classify) == both


def test_draws_the_logged_numbers(tmp_path: Path) -> None:
    figure = draw({"run": read_metrics(mlm_run(tmp_path / "run"))})
    training, evaluation = figure.axes[0].get_lines()
    assert np.allclose(training.get_xdata(), np.arange(1, 30))
    assert np.allclose(training.get_ydata(), 8.0 / np.arange(1, 30))
    assert evaluation.get_xydata().tolist() == [[30.0, 2.0]]
    assert np.allclose(figure.axes[2].get_lines()[0].get_ydata(), 2e6)
    assert figure.axes[2].yaxis.get_major_formatter().format_data(2e6) == "2 MB/s"


def test_a_repeated_step_takes_the_later_line(tmp_path: Path) -> None:
    lines = [train(s, lr=lr) for s, lr in ((1, 0.1), (3, 0.3), (2, 0.2), (3, 0.9))]
    points = read_metrics(write_run(tmp_path / "run", *lines)).points("train", "lr")
    assert points.step.tolist() == [1, 2, 3]
    assert points.mean.tolist() == [0.1, 0.2, 0.9]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", train(1), train(2))
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    assert read_metrics(folder).points("train", "loss").step.tolist() == [1, 2]


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-1e999", "null", "true", '"2.5"', "[2.5]", "1" + "0" * 400]
)
def test_what_is_no_number_is_no_point(tmp_path: Path, value: str) -> None:
    folder = write_run(tmp_path / "run", train(1), train(3))
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(f'{{"kind": "train", "step": 2, "loss": {value}, "time_s": {value}}}\n')
        file.write('{"kind": "of tomorrow", "step": 9, "loss": 1}\n{"kind": "event", "step": 4}\n')
    metrics = read_metrics(folder)
    assert metrics.points("train", "loss").step.tolist() == [1, 3]
    assert (metrics.last_step, metrics.time_s) == (9, 0.0)
    draw({"run": metrics})


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "train", "st',
        '{"kind": "train"}',
        "[1]",
        "7",
        "x",
        '{"kind": "a", "step": 1e999}',
        '{"kind": "a", "step": "1"}',
        '{"kind": "a", "step": true}',
        '{"kind": 1, "step": 1}',
        "\0" * 50,
        "[" * 100_000,
        '{"kind": "train", "step": 1, "note": "' + "x" * (3 << 20) + '"}',
    ],
    ids=range(12),
)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    folder = write_run(tmp_path / "run", train(1))
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n" + json.dumps(train(2)) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        read_metrics(folder)


def test_a_long_run_is_thinned_and_no_peak_is_lost(tmp_path: Path) -> None:
    """In memory that does not grow with it; means, least and most are those of all points."""
    steps = np.arange(1, 150_001)
    values = np.sin(steps / 20_000)
    values[77_776] = 9.0
    lines = [
        f'{{"kind": "train", "step": {step}, "loss": {value}, "time_s": {step}}}\n'
        for step, value in zip(steps, values, strict=True)
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines))
    metrics = read_metrics(tmp_path / "run")
    kept = metrics.points("train", "loss")
    assert len(kept.step) <= KEPT + FRESH
    shown = kept.thinned(MAX_POINTS)
    assert MAX_POINTS / 2 < len(shown.step) <= MAX_POINTS
    assert shown.count.sum() == len(steps)
    assert shown.count.max() < 4 * shown.count.min()
    assert np.average(shown.mean, weights=shown.count) == pytest.approx(values.mean(), abs=1e-9)
    assert (shown.high.max(), shown.low.min()) == (9.0, values.min())
    assert (np.diff(shown.step) > 0).all()
    near = np.abs(shown.step - 77_777) > 1000
    assert np.allclose(shown.mean[near], np.sin(shown.step[near] / 20_000), atol=1e-3)
    assert (metrics.last_step, metrics.time_s) == (150_000, 150_000.0)
    (axes,) = draw({"run": metrics}).axes
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == 9.0


def test_names_are_as_short_as_they_can_be() -> None:
    assert run_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert run_names([Path("/x/a"), Path("/y/a")]) == ["x/a", "y/a"]
    with pytest.raises(UserError, match="twice"):
        run_names([Path("/x/a"), Path("/x/b/../a")])


@pytest.mark.parametrize(
    ("runs", "out", "message"),
    [
        ([], "c.png", "at least one"),
        (["missing"], "c.png", "missing: no such run folder"),
        (["empty"], "c.png", r"no metrics\.jsonl"),
        (["blank"], "c.png", "no training or evaluation line"),
        (["bare"], "c.png", "nothing that can be drawn"),
        (["good"], "nowhere/c.png", "no folder .*nowhere"),
        (["good"], "c.docx", r"ends in one of .*\.png"),
        (["good"], "c", r"ends in one of .*\.png"),
        (["good"], "folder.png", "cannot be written"),
    ],
)
def test_bad_input_gets_one_clear_line(
    tmp_path: Path, runs: list[str], out: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    write_run(tmp_path / "blank")
    write_run(tmp_path / "bare", {"kind": "train", "step": 1})
    mlm_run(tmp_path / "good")
    with pytest.raises(UserError, match=message) as caught:
        run(PlotSettings(runs=[str(tmp_path / name) for name in runs], out=str(tmp_path / out)))
    assert "\n" not in str(caught.value)
