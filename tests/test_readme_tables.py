"""The tables of README.md are what the commands beside them wrote, of figures that are kept."""

from __future__ import annotations

import json
import re
from importlib.metadata import requires

import pytest

from elemdist import bench
from tests.bench import bench_all, compared
from tests.cluster import recoveries
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_table_of_packages_has_each_dependency_and_no_other():
    listed = [one for one in requires("elemdist") or [] if "extra ==" not in one]
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in listed}
    table = README.split("| package | for |\n|---|---|\n")[1].split("\n\n")[0]
    assert {
        name for row in table.splitlines() for name in row.split(" | ")[0][2:].split(", ")
    } == names


def test_the_table_of_benchmarks_is_that_of_the_figures_kept():
    kept = json.loads((REPOSITORY / "tests/bench/figures.json").read_text())
    assert not kept["quick"]
    assert set(kept["benchmarks"]) == set(bench.benchmarks()) - {"all"}
    assert bench_all.markdown(kept["benchmarks"]) in README
    assert kept["environment"]["cpu"] in README


def test_the_table_of_recoveries_is_that_of_the_run_kept():
    assert recoveries.table(json.loads(recoveries.KEPT.read_text())) in README


@pytest.mark.parametrize("name", ["reuters", "patents"])
def test_the_tables_of_a_comparison_are_those_of_the_results_kept(name):
    command = f"elemdist compare configs/compare/{name}.yaml"
    _, _, after = README.partition(command)
    assert compared.tables(compared.KEPT / f"{name}.json") in after
