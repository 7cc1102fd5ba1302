"""oneDNN's cache of compiled primitives is bounded, as unpadded batches would fill any."""

from __future__ import annotations

import sys

import pytest

from elemdist.cpu_primitives import CAPACITY, FORMER, VARIABLE
from tests.conftest import run_command

# More shapes than the cache holds, and the first again.
SHAPES = """
import torch
import elemdist
for rows in [*range(1, 101), 1]:
    torch.nn.functional.gelu(torch.ones(rows, 64))
"""


@pytest.mark.parametrize(
    ("own", "capacity"),
    [({}, CAPACITY), ({VARIABLE: "7"}, "7"), ({VARIABLE: "0"}, "0"), ({FORMER: "7"}, None)],
)
@pytest.mark.parametrize("module", ["elemdist", "elemdist.predict_settings", "launcher.local"])
def test_what_runs_a_model_bounds_the_cache_unless_the_user_has(module, own, capacity, monkeypatch):
    for name in (VARIABLE, FORMER):
        monkeypatch.delenv(name, raising=False)
    code = f"import os, {module}; print(os.environ.get('{VARIABLE}'))"
    done = run_command(sys.executable, "-c", code, **own)
    assert done.stdout == f"{capacity}\n", done.stderr


@pytest.mark.parametrize(("own", "kept"), [({}, False), ({VARIABLE: "1024"}, True)])
def test_onednn_forgets_shapes_though_torch_was_imported_before(own, kept, monkeypatch):
    for name in (VARIABLE, FORMER):
        monkeypatch.delenv(name, raising=False)
    verbose = {"ONEDNN_VERBOSE": "profile_create"}
    done = run_command(sys.executable, "-c", SHAPES, **verbose, **own)
    made = [line for line in done.stdout.splitlines() if ",create:cache_" in line]
    assert len(made) > 100, done.stdout[:2000] + done.stderr
    assert ("create:cache_hit" in made[-1]) is kept
