from __future__ import annotations

import importlib
from operator import attrgetter
from pathlib import Path

import pytest

from elemdist.commandline import leaf_types, parse
from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.eval_settings import EvalSettings
from elemdist.setting_values import required
from launcher.completion import SETTINGS


def train(*argv: str) -> TrainSettings:
    return parse(TrainSettings, list(argv), "elemdist train")


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "my recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults_lie_below_the_recipe_below_the_command_line(tmp_path):
    path = recipe(tmp_path, "model:\n  layers: 7\n  width: 96\noptim: {lr: 3e-4}\n")
    settings = train(path, "--model.layers", "9")
    assert settings.model.layers == 9
    assert settings.model.width == 96
    assert settings.optim.lr == pytest.approx(3e-4)
    assert settings.model.dropout == TrainSettings().model.dropout


def test_dashes_underscores_equals_and_flags_are_all_taken(tmp_path):
    settings = train("--eval-every=5", "--checkpoint_every", "6", "--resume", "--run-dir", "a b")
    assert (settings.eval_every, settings.checkpoint_every) == (5, 6)
    assert (settings.resume, settings.run_dir) == (True, "a b")
    assert train("--resume", "false").resume is False


def test_a_time_stays_text_and_an_exponent_is_a_number(tmp_path):
    path = recipe(tmp_path, "run_dir: 24:00:00\noptim:\n  lr: 1e-5\n  eps: 1.5e-7\n")
    settings = train(path)
    assert settings.run_dir == "24:00:00"
    assert (settings.optim.lr, settings.optim.eps) == (1e-5, 1.5e-7)
    assert train("--run-dir", "24:00:00").run_dir == "24:00:00"


def test_a_positional_argument_fills_its_setting():
    settings = parse(EvalSettings, ["runs/a", "--data", "d"], "elemdist eval", "run")
    assert (settings.run, settings.data) == ("runs/a", "d")


def test_a_later_recipe_lies_above_an_earlier_one(tmp_path):
    one = recipe(tmp_path, "model: {layers: 7, width: 96}\nsteps: 5\n")
    two = tmp_path / "second.yaml"
    two.write_text("model: {width: 48}\n")
    settings = parse(TrainSettings, [one, str(two), "--steps", "6"], "elemdist train")
    assert (settings.model.layers, settings.model.width, settings.steps) == (7, 48, 6)
    two.write_text("model: {widht: 48}\n")
    with pytest.raises(UserError, match=r"second\.yaml: unknown key .model\.widht"):
        parse(TrainSettings, [one, str(two)], "elemdist train")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:\n  layer: 3\n", ["unknown key 'model.layer'", "'model.layers'"]),
        ("modle:\n  layers: 3\n", ["unknown key 'modle'"]),
        ("model: 3\n", ["model: expected keys"]),
        ("model:\n  layers: many\n", ["model.layers: 'many' does not fit; expected int"]),
        ("model:\n  layers: 2.5\n", ["model.layers: '2.5' does not fit; expected int"]),
        ("objective: mml\n", ["objective: 'mml'", "'mlm', 'clm', 'classify'"]),
        ("steps: 1\nsteps: 2\n", ["key 'steps' stands twice"]),
        ("steps: [1\n", ["not valid YAML"]),
        ("- 1\n", ["expected keys"]),
        ("run_dir: !!python/object/apply:os.system [ls]\n", ["not valid YAML"]),
    ],
)
def test_a_mistake_in_a_recipe_names_file_key_and_remedy(tmp_path, text, expected):
    path = recipe(tmp_path, text)
    with pytest.raises(UserError) as caught:
        train(path)
    message = str(caught.value)
    assert path in message
    assert "\n" not in message
    for part in expected:
        assert part in message, message


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--model.layer", "3"], "did you mean 'model.layers'?"),
        (["--model.layers"], "needs a value"),
        (["--zero.stage", "5"], "one of 0, 1, 2, 3"),
        (["no-such-recipe.yaml"], "cannot read the recipe"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_line(argv, expected):
    with pytest.raises(UserError, match=expected.replace("?", r"\?")):
        train(*argv)


def test_help_shows_every_setting_with_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as caught:
        train("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "--model.layers",
        "--optim.warmup-steps",
        "--zero.stage {0,1,2,3}",
        "default: 100",
    ):
        assert part in text
    assert "CONFIG" not in text


@pytest.mark.parametrize("verb", SETTINGS)
def test_a_number_that_means_nothing_is_refused_by_every_setting_of_every_verb(verb):
    module, _, name = SETTINGS[verb].partition(":")
    kind = getattr(importlib.import_module(module), name)
    known, told = leaf_types(kind), []
    needed = [f"--{key}={'[]' if 'list' in str(known[key]) else 'x'}" for key in required(kind)]
    texts = ("nan", "-nan", "inf", "-inf", "1e999", "-1", "-0.5", "1e300", "9" * 30, "0x10", "1:30")
    for key in known:
        for text in texts:
            try:
                settings = parse(kind, [*needed, f"--{key}={text}"], "x")
            except UserError as error:
                told.append(str(error))
                continue
            value = attrgetter(key)(settings)
            assert isinstance(value, (str, bool, dict)) or value is None, (key, text, value)
    assert all(line.isprintable() for line in told)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--optim.lr nan", "optim.lr: 'nan' does not fit; expected float"),
        ("--steps 0", "steps: 0 is below 1"),
        ("--batch.global-samples -1", "batch.global_samples: -1 is below 1"),
        ("--model.dropout 2", r"model.dropout: 2.0 is not in \[0, 1\)"),
        ("--model.layers 20000", "model.layers: 20000 is above 10000"),
        ("--seed -1", "seed: -1 is below 0"),
        ("--steps 50 --optim.warmup-steps 100", "100 is more than the 50 steps of the run"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(argv, message):
    with pytest.raises(UserError, match=message):
        train(*argv.split(), "--run-dir", "r", "--data.train", "d").check()


def test_a_trial_of_few_steps_has_the_schedule_of_the_run():
    for argv in ("--steps 5 --optim.warmup-steps 100", "--steps 50"):
        train(*argv.split(), "--run-dir", "r", "--data.train", "d").check()
