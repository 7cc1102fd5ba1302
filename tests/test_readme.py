"""Every example of README.md in Python runs as it stands there, and prints what it says."""

from __future__ import annotations

import re
import sys

import pytest

from tests.conftest import REPOSITORY, run_command

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.DOTALL | re.MULTILINE
)
PRINTED = re.compile(r"^print\(.*\)  # (.*)$", re.MULTILINE)


def test_there_are_examples():
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_an_example_runs_and_prints_what_it_says(block):
    # A process of its own: what another test has imported must not make it run.
    done = run_command(sys.executable, "-c", block)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    for said in PRINTED.findall(block):
        assert said in printed


def test_the_example_of_the_embedding_says_its_shape():
    (block,) = [block for block in BLOCKS if "ElementwiseEmbedding" in block]
    assert PRINTED.findall(block) == ["torch.Size([1, 8, 192])"]
