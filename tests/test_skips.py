"""What a run of the tests says of those that it skipped."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import REPOSITORY, run_command

TESTS = """
import pytest

def test_that_runs(): pass

@pytest.mark.skipif(True, reason="no moon tonight; make moon test")
@pytest.mark.parametrize("number", [1, 2])
def test_by_moonlight(number): pass

def test_that_gives_up(): pytest.skip("just so")
"""


@pytest.mark.parametrize("more", [[], ["-n", "2", "--dist", "loadfile"]])
def test_a_table_tells_why_tests_were_skipped_and_what_makes_them_run(more, tmp_path):
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_terminal_summary\n")
    (tmp_path / "test_made.py").write_text(TESTS)
    (tmp_path / "pytest.ini").touch()
    words = [sys.executable, "-m", "pytest", "--rootdir", tmp_path, tmp_path, *more]
    done = run_command(*words, "--ignore", "tests/cluster", PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, table = done.stdout.partition("not tested: 4")
    rows = [[cell.strip() for cell in row.split("|")] for row in table.splitlines() if "|" in row]
    assert sorted(rows) == [
        ["not tested", "why", "what makes it run"],
        ["test_made.py::test_by_moonlight[1]", "no moon tonight", "make moon test"],
        ["test_made.py::test_by_moonlight[2]", "no moon tonight", "make moon test"],
        ["test_made.py::test_that_gives_up", "just so", "the reason does not say"],
        ["tests/cluster", "has a target of its own", "make test-cluster"],
    ]


def test_a_run_without_skips_has_no_table(tmp_path):
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_terminal_summary\n")
    (tmp_path / "test_made.py").write_text("def test_that_runs(): pass\n")
    words = [sys.executable, "-m", "pytest", "-c", "/dev/null", tmp_path]
    done = run_command(*words, PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not tested" not in done.stdout
