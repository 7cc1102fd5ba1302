from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from elemdist import compiled
from tests.conftest import REPOSITORY

SOURCE = """
from elemdist.compiled import compiled
@compiled
def add(numbers):
    total = 0
    for number in numbers:
        total += number
    return total
"""


@pytest.fixture
def load(tmp_path):
    """Calls the function of a new module like the one before; (what it gives, was it cached)."""
    path = tmp_path / "loops.py"
    path.write_text(SOURCE)

    def call() -> tuple[int, bool]:
        spec = importlib.util.spec_from_file_location("loops", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = module.add(np.arange(10))
        return found, sum(module.add.stats.cache_hits.values()) == 1

    return call


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".nbc", ".nbi")]


HARMS = {
    "empty": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "a flipped byte": lambda data: data[:900] + bytes([data[900] ^ 1]) + data[901:],
    "another file": lambda data: b"not a cache at all",
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_torn_entry_is_made_anew(harm, load, tmp_path):
    assert load() == (45, False)
    assert load() == (45, True)
    (entry,) = entries(tmp_path)
    entry.write_bytes(HARMS[harm](entry.read_bytes()))
    assert load() == (45, False)
    assert load() == (45, True)
    assert entries(tmp_path) == [entry]


def test_versions_and_processors_do_not_share_an_entry(load, tmp_path, monkeypatch):
    for place, stamp in enumerate(("a", "b")):
        monkeypatch.setattr(compiled, "VERSIONS", stamp)
        assert load() == (45, False)
        assert load() == (45, True)
        assert len(entries(tmp_path)) == place + 1
    monkeypatch.setattr(
        "numba.core.codegen.JITCPUCodegen.magic_tuple", lambda self: ("triple", "other", "")
    )
    assert load() == (45, False)
    assert len(entries(tmp_path)) == 3
    monkeypatch.undo()
    assert load()[0] == 45


def test_constants_of_other_sources_are_part_of_the_versions():
    for name in compiled.CONSTANTS:
        assert (Path(compiled.__file__).parent / name).is_file()
    assert "DOC" in compiled.VERSIONS
    assert "REPEAT" in compiled.VERSIONS


@pytest.mark.parametrize("place", ["/proc/none", "/dev/full", "~"])
def test_without_a_folder_for_the_cache_it_is_compiled_all_the_same(
    place, load, tmp_path, monkeypatch
):
    (tmp_path / "__pycache__").write_text("a file")
    monkeypatch.setattr("numba.core.config.CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "" if place == "~" else place)
    monkeypatch.setenv("HOME", place)
    monkeypatch.chdir(tmp_path)
    assert load() == (45, False)
    assert entries(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["__pycache__", "loops.py"]


def test_a_disk_that_is_full_costs_the_entry_only(load, tmp_path, monkeypatch):
    def full(*words: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiled, "replacing", full)
    assert load() == (45, False)
    assert load() == (45, False)


@pytest.mark.parametrize(
    ("name", "value", "lines"),
    [
        ("NUMBA_NUM_THREADS", "0", ["elemdist: NUMBA_NUM_THREADS=0 is ignored"]),
        ("NUMBA_NUM_THREADS", "-3", ["elemdist: NUMBA_NUM_THREADS=-3 is ignored"]),
        ("NUMBA_NUM_THREADS", "many", ["elemdist: NUMBA_NUM_THREADS=many is ignored"]),
        ("NUMBA_NUM_THREADS", "999", []),
        ("NUMBA_DISABLE_JIT", "1", ["elemdist: NUMBA_DISABLE_JIT=1 is ignored"]),
    ],
)
def test_variables_that_numba_cannot_use_are_one_line(name, value, lines):
    code = "from elemdist.compiled import numba; print(numba.config.DISABLE_JIT)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {name: value},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
    assert done.stderr.splitlines() == lines
