"""The additions that README.md counts the lines of: each is applied to a copy, and works."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, TINY, run_command

PATCHES = Path(__file__).with_name("extending")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SHORT = [*TINY, "--steps", "2", "--eval-every", "1"]


# Several verbs in one process, which imports the copy: it lies in its working directory.
BETWEEN = "\n====\n"
RUN = f"""
import json, sys
from elemdist.cli import main
for sys.argv[1:] in json.loads(sys.argv[1]):
    assert main() == 0
    print({BETWEEN!r}, end="")
"""


def lines_added(patch: str) -> int:
    return sum(line.startswith("+") and not line.startswith("+++") for line in patch.splitlines())


@pytest.fixture
def with_patch(tmp_path):
    """with_patch(name) -> a function that runs elemdist with that addition."""

    def apply(name: str):
        copy = tmp_path / "copy"
        for package in ("elemdist", "data_prep", "launcher"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / package, copy / package, ignore=ignore)
        done = run_command("git", "apply", PATCHES / f"{name}.patch", cwd=copy)
        assert done.returncode == 0, f"bring tests/extending/{name}.patch up to date: {done.stderr}"

        def run(*commands: list[str | Path]) -> list[str]:
            words = [[str(word) for word in command] for command in commands]
            done = run_command(sys.executable, "-c", RUN, json.dumps(words), cwd=copy)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout.split(BETWEEN)

        return run

    return apply


@pytest.mark.parametrize("patch", sorted(PATCHES.glob("*.patch")), ids=lambda path: path.stem)
def test_the_readme_counts_the_lines(patch):
    assert f"(`tests/extending/{patch.name}`) | {lines_added(patch.read_text())} |" in README


def test_a_segmenter(with_patch, tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "set"
    text.write_text("one line\n\nand another, with more than v bytes\nno newline at the end")
    shape = ["--segmenter", "line", "--n", "16", "--v", "16"]
    shard = ["shard", text, "--out", out, *shape]
    _, shown, *_ = with_patch("segmenter")(shard, ["inspect", out], ["verify", out])
    assert "one line" in shown
    manifest = json.loads((out / "manifest.json").read_text())
    # DOC, "one line\n", "\n", three rows of 16 bytes, two of them.
    assert manifest["counts"]["rows"] == 1 + 1 + 1 + 3 + 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("input", ["--model.input", "hashed"]),
        ("backbone", ["--model.backbone", "parallel", "--model.norm", "pre"]),
        ("objective", ["--objective", "spans"]),
    ],
)
def test_a_part_of_a_model_trains(name, words, with_patch, packed, tmp_path):
    run, val = tmp_path / "run", packed / "val"
    data = ["--data.train", packed / "train", "--data.eval", val]
    evaluate = ["eval", run, "--data", val, "--device", "cpu"]
    _, figures, *_ = with_patch(name)(["train", *SHORT, *words, *data, "--run-dir", run], evaluate)
    assert 0 < json.loads(figures)["bits_per_byte"] < 10
