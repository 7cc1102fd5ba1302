"""elemdist plot: what it reads, what it draws, and what it says about bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from elemdist.curves import MAX_POINTS, draw, thinned
from elemdist.errors import UserError
from elemdist.plot import PlotSettings, read_metrics, run, run_names


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
    folder = write_run(tmp_path / "run", train(1), train(2), train(3), train(2, lr=0.5))
    lines = read_metrics(folder)["train"]
    assert list(lines) == [1, 2, 3]
    assert lines[2]["lr"] == 0.5


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", train(1), train(2))
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    assert list(read_metrics(folder)["train"]) == [1, 2]


@pytest.mark.parametrize(
    "line",
    ['{"kind": "train", "st', '{"kind": "train"}', "[1]", "7", "x", '{"kind": "a", "step": 1e999}'],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    folder = write_run(tmp_path / "run", train(1))
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n" + json.dumps(train(2)) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
        read_metrics(folder)


def test_long_runs_are_thinned() -> None:
    steps = np.arange(10_001.0)
    values = np.sin(steps / 1000)
    short_steps, short_values = thinned(steps, values)
    assert len(short_steps) == len(short_values) == MAX_POINTS
    assert (np.diff(short_steps) > 0).all()
    assert np.allclose(short_values, np.sin(short_steps / 1000), atol=1e-3)
    assert (short_steps[-1], short_values[-1]) == (steps[-1], values[-1])
    assert len(thinned(steps[:10], values[:10])[0]) == 10


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
