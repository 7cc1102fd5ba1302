"""A scalar of YAML has the type of its setting; a file that is none, or endless, is one line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml

from data_prep.settings import ShardSettings
from elemdist.commandline import parse
from elemdist.compare_settings import CompareSettings
from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.run_folder import public_settings
from elemdist.yaml_text import read_tree, yaml_text
from launcher.settings import LaunchSettings, as_recipe

# As YAML 1.1, 1.2 and Python would read them: dates, numbers, truths, nothing, times, bases.
SURPRISES = (
    "2024-01-05", "2024-01-05 10:00:00", "1e5", "1E5", "1.5e-3",
    "007", "0o7", "0x10", "0b1", "1_000",
    "on", "off", "yes", "no", "Yes", "NO", "true", "False", "y", "n", "1:30", "24:00:00", "1:2:3.5",
    ".inf", "-.INF", ".nan", "nan", "inf", "12", "-3", "+4", "1.", ".5", "1.0", "=",
)  # fmt: skip
HOSTILE = (
    *SURPRISES, "null", "~", "Null", "", " ", " x ", "a\nb", "a\n", "\n", "a: b", "a #b", "#",
    "- a",
    "[a]", "{a}", "*a", "&a b", "!!int 3", "%a", "@a", "`a`", "'", '"', "\\", "\t", "a\tb", "🎉",
    "é", "\u2028", "\x85", "\x07", "\ufeff", "\x7f", "<<", "?", "|", ">", "a" * 300, "---",
    "...",
)  # fmt: skip


def train(*argv: str) -> TrainSettings:
    return parse(TrainSettings, list(argv), "elemdist train")


def recipe(folder: Path, text: str | bytes) -> str:
    path = folder / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("text", SURPRISES)
def test_a_scalar_for_a_text_is_the_text_as_written(tmp_path, text):
    shown = text if text != "=" else "'='"
    found = train(recipe(tmp_path, f"run_dir: {shown}\ndata:\n  mixture: [{{path: {shown}}}]\n"))
    assert found.run_dir == found.data.mixture[0].path == text  # Optional, and in a list of groups
    launch = parse(
        LaunchSettings, [recipe(tmp_path, f"slurm: {{setup: [{shown}], time: {shown}}}")], "x"
    )
    assert (launch.slurm.setup, launch.slurm.time) == ([text], text)
    assert train("--run-dir", text).run_dir == train(f"--run-dir={text}").run_dir == text


@pytest.mark.parametrize("text", ["null", "~", "Null", ""])
def test_nothing_is_nothing_only_where_that_is_possible(tmp_path, text):
    found = parse(
        LaunchSettings, [recipe(tmp_path, f"run_dir: {text}\nslurm:\n  time: {text}\n")], "x"
    )
    assert (found.run_dir, found.slurm.time) == (None, text)
    assert train(recipe(tmp_path, f"run_dir: '{text}'")).run_dir == text
    assert train("--run-dir", text).run_dir is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e5", 1e5),
        ("3e-4", 3e-4),
        ("1_000", 1000),
        ("007", 7),
        (".5", 0.5),
        ("1.", 1),
        ("1E2", 100),
    ],
)
def test_a_scalar_for_a_number_is_the_number(tmp_path, text, value):
    assert train(recipe(tmp_path, f"optim: {{eps: {text}}}")).optim.eps == value
    assert train("--optim.eps", text).optim.eps == value
    if value == int(value):
        assert train(recipe(tmp_path, f"steps: {text}\neval_every: '{text}'")).steps == value


@pytest.mark.parametrize(
    "text", ["0x10", "0o7", "1:30", ".inf", "nan", "-.inf", "on", "2024-01-05", "1e999"]
)
def test_what_is_no_number_is_refused_for_one(tmp_path, text):
    for key in ("steps", "optim.lr"):
        with pytest.raises(UserError, match=f"{key}: '?{text}'? (does not fit|is)"):
            train(f"--{key}", text)
        with pytest.raises(UserError, match=rf"r\.yaml: {key}: "):
            train(recipe(tmp_path, f"{key.replace('.', ': {')}: {text}" + "}" * key.count(".")))


@pytest.mark.parametrize("text", ["yes", "on", "true", "True", "YES", "no", "off", "false", "OFF"])
def test_a_truth_is_written_in_any_way(tmp_path, text):
    true = text.lower() in ("yes", "on", "true")
    assert train(recipe(tmp_path, f"compile: {text}")).compile is true
    assert train("--compile", text).compile is true


def test_a_tree_without_types_has_those_of_yaml(tmp_path):
    text = "{a: 2024-01-05, b: 1e5, c: on, d: 'on', e: ~, f: 12, g: 0x10, on: 1, h: [1.5, x]}"
    assert train(recipe(tmp_path, f"deepspeed: {text}")).deepspeed == {
        "a": "2024-01-05", "b": 100000.0, "c": True, "d": "on", "e": None, "f": 12, "g": "0x10",
        "on": 1, "h": [1.5, "x"],
    }  # fmt: skip
    with pytest.raises(UserError, match=r"deepspeed\.a: \.nan is no number; quote it"):
        train(recipe(tmp_path, "deepspeed: {a: .nan}"))


def test_settings_come_back_as_they_were_written(tmp_path):
    for text in HOSTILE:
        settings = TrainSettings(run_dir=text, deepspeed={text: [text, {"a": text}], "b": 0.5})
        settings.data.mixture = []
        for written in (yaml_text(public_settings(settings)), as_recipe(settings)):
            assert train(recipe(tmp_path, written)) == settings, (text, written)
            assert yaml.safe_load(written)["deepspeed"] == settings.deepspeed  # other readers, too


def test_anchors_and_merge_keys_work(tmp_path):
    text = """
optim: &base {lr: 1e-3, eps: 1e-7}
deepspeed: {x: &y [1, 2], z: *y}
memory: {tile_rows: 5, <<: {tile_rows: 7, tile_loss_rows: 9}}
data: {mixture: [&s {path: a, weight: 0.5}, {<<: [{path: b}, *s]}]}
"""
    found = train(recipe(tmp_path, text))
    assert found.deepspeed == {"x": [1, 2], "z": [1, 2]}
    assert (found.memory.tile_rows, found.memory.tile_loss_rows) == (5, 9)
    assert [(one.path, one.weight) for one in found.data.mixture] == [("a", 0.5), ("b", 0.5)]


LAUGHS = "  a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
BAD = {
    "laughs": (f"deepspeed:\n{LAUGHS}", "over 100,000"),
    "itself": ("deepspeed: &a {x: *a}", "has no anchor before it"),
    "deep": ("deepspeed: " + "[" * 100_000, "nest"),
    "deep blocks": ("- " * 50_000, "nest"),
    "tag": ("run_dir: !!python/object/apply:os.system [ls]", "tag .*os.system has no meaning"),
    "own tag": ("run_dir: !env HOME", "!env has no meaning"),
    "binary": ("run_dir: !!binary aGFsbG8=", "binary has no meaning"),
    "tab": ("model:\n\tlayers: 3", "line 2"),
    "twice": ("steps: 1\nsteps: 2", "key 'steps' stands twice"),
    "twice, dashes": ("run_dir: a\nrun-dir: b", "key 'run_dir' stands twice"),
    "documents": ("steps: 1\n---\nsteps: 2\n", "second document"),
    "list": ("- 1", "expected keys"),
    "text": ("hello", "expected keys"),
    "key": ("[a, b]: 1", "a key is no single word"),
    "latin-1": (b"run_dir: caf\xe9", "not valid UTF-8, byte 12 is 0xe9"),
    "utf-16": ("steps: 1".encode("utf-16"), "not valid UTF-8"),
    "zeros": (b"run_dir: a\0b", "not valid YAML"),
    "half a pair": ('run_dir: "\\ud83d"', "surrogate|escape code"),
    "large": (b"# " + b"x" * (2 << 20), "1,048,576 at most"),
    "merge": ("<<: 3", "<< needs keys"),
    "no anchor": ("run_dir: *x", "no anchor"),
    "dict for a text": ("run_dir: {a: 1}", "a dict does not fit; expected text"),
    "list for a number": ("steps: [1]", "a list does not fit; expected int"),
    "text for a list": ("data: {mixture: x}", "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_recipe_is_one_line_at_once(tmp_path, name):
    text, message = BAD[name]
    start = time.perf_counter()
    with pytest.raises(UserError, match=message) as caught:
        train(recipe(tmp_path, text))
    assert time.perf_counter() - start < 2
    assert "r.yaml" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_byte_order_mark_and_an_empty_file_are_fine(tmp_path):
    assert train(recipe(tmp_path, "\ufeffsteps: 3")).steps == 3
    for text in ("", "# nothing\n", "---\n", "~", "{}"):
        assert train(recipe(tmp_path, text)) == TrainSettings()


def test_a_recipe_that_is_no_file_is_one_line_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(10 << 30)
    for name, message in {
        tmp_path: "it is a folder",
        tmp_path / "pipe": "it is a pipe",
        "/dev/zero": "it is a device",
        tmp_path / "loop": "symbolic links",
        tmp_path / "sparse": "10,737,418,240 bytes",
        tmp_path / "missing": "no such file",
        f"{recipe(tmp_path, '')}/x": "no such file",
    }.items():
        with pytest.raises(UserError, match=message):
            train(str(name))
        with pytest.raises(UserError, match=message):
            read_tree(name)


def test_a_comparison_goes_by_types_too(tmp_path):
    text = (
        "out: 007\nmodels:\n- {name: 1e5, recipe: [on], settings: {optim.lr: 1e-3}}\nseeds: [1]\n"
    )
    found = parse(CompareSettings, [recipe(tmp_path, text)], "elemdist compare")
    assert (found.out, found.models[0].name, found.models[0].recipe) == ("007", "1e5", ["on"])
    assert (found.models[0].settings, found.seeds) == ({"optim.lr": 1e-3}, [1])


def test_surrogates_on_the_command_line_never_reach_a_file():
    assert parse(ShardSettings, ["caf\udce9.txt", "--out", "x"], "x", "inputs").inputs == [
        "caf\udce9.txt"
    ]
    with pytest.raises(UserError, match=r"run_dir is 'caf.udce9', not valid UTF-8"):
        train("--run-dir", "caf\udce9", "--data.train", "x").check()
