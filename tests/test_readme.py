"""Every command and every example in Python of README.md runs as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import zstandard

from tests.conftest import REPOSITORY, elemdist, run_command, write_corpus
from tests.readme import FIRST, SLURM, kind, shown

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PRINTED = re.compile(r"^print\(.*\)  # (.*)$", re.MULTILINE)
COMMANDS = [command for command in shown() if kind(command) not in SLURM]
# What makes a training short; the recipes stay those of the README.
SHORT = [
    "--steps", "2", "--device", "cpu", "--model.layers", "1", "--batch.global-samples", "8",
    "--batch.micro-samples", "4", "--optim.warmup-steps", "1", "--checkpoint-every", "0",
]  # fmt: skip
SHORTER = {
    "train": SHORT,
    "deepspeed": SHORT,
    "torchrun": SHORT,
    "eval": ["--device", "cpu"],
    "compare": [
        "--budget.seconds", "0", "--budget.steps", "2", "--seeds", "[1]", "--resamples", "10",
        "--ranks", "1", "--device", "cpu", "--noise.rates", "[0.1]",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader's: the checkout's, with the texts that the commands name."""
    place = tmp_path_factory.mktemp("reader")
    for name in ("elemdist", "slurm", "configs"):
        (place / name).symlink_to(REPOSITORY / name)
    made = write_corpus(place / "made.jsonl", 1100, seed=4)
    packed = zstandard.compress(made.read_bytes())
    for name in ("news", "reuters", "train", "val"):
        (place / f"{name}.jsonl.zst").write_bytes(packed)
    (place / "corpus").mkdir()
    texts = [json.loads(line)["text"] for line in made.read_text().splitlines()]
    for number in range(200):
        (place / "corpus" / f"{number}.txt").write_text("\n".join(texts[number : number + 30]))
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs(command, place):
    words = shlex.split(command)
    if kind(command) == "make":
        targets = [word for word in words[1:] if "=" not in word]
        # CI runs lint and the tests; the demo and the benchmarks have tests of their own.
        done = run_command("make", "--dry-run", *targets)
        assert done.returncode == 0, done.stderr
        return
    if kind(command) == "source":
        assert words[1] == ".venv/bin/activate"
        assert Path(sys.executable).with_name("activate").exists()
        return
    words += SHORTER.get(kind(command), [])
    if words[0] == "elemdist":
        done = elemdist(*words[1:], cwd=place)
    else:
        program = Path(sys.executable).with_name(words[0])
        done = run_command(program, *words[1:], cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_block_of_commands_was_read():
    text = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"(?:^    .+\n)+", text, re.MULTILINE)
    read = [block for block in blocks if FIRST.match(block)]
    lines = [line for block in read for line in block.replace("\\\n", " ").splitlines()]
    assert all(FIRST.match(line) for line in lines), "a line of a block is no command that is known"
    assert len({*lines}) >= len(shown()) >= 25
    # Of the other blocks there is one, the picture.
    assert len(blocks) - len(read) == 1


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_an_example_runs_and_prints_what_it_says(block):
    # A process of its own: what another test has imported must not make it run.
    done = run_command(sys.executable, "-c", block)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    for said in PRINTED.findall(block):
        assert said in printed


def test_the_example_of_the_embedding_says_its_shape():
    (block,) = [block for block in PYTHON if "ElementwiseEmbedding" in block]
    assert PRINTED.findall(block) == ["torch.Size([1, 8, 192])"]
