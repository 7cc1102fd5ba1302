"""Every benchmark runs on a tiny size and prints its table; nothing is asserted about its times."""

from __future__ import annotations

import io
import json
import sys

import pytest

from elemdist import bench
from elemdist.errors import UserError
from tests.bench import gpu_report
from tests.bench.rounds import Rates
from tests.conftest import REPOSITORY, elemdist, expect_user_error, run_command

TABLES = {
    "loader": {"ours, gathered", "ours, in training", "MappedDataset", "bare memmap gather"}
    | {"StreamingDataset", "TokensLoader"},
    "segment": {"word", "char", "byte", "uax29", "sentence"}
    | {"words by re", "words by split", "char by numpy"},
    "shard": {"elemdist shard", "WordPiece to MDS", "our writer", "MDSWriter"},
    "table": {"F.embedding", "sorted_sums", "one_hot_product", "index_add_", "scatter_add_"}
    | {"sort, segment_reduce", "np.add.at"},
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_benchmark_runs_and_prints_its_table(name, tmp_path):
    done = elemdist("bench", name, "--quick", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    tables = json.loads((tmp_path / "figures.json").read_text())
    assert set().union(*(table["rates"] for table in tables)) == TABLES[name]
    for table in tables:
        assert table["title"] in done.stdout
        for peer, rates in table["rates"].items():
            assert len(rates) == 2
            assert f"\n{peer} " in done.stdout


def test_memory_is_measured_for_every_kind_of_input(tmp_path):
    done = elemdist("bench", "memory", "--quick", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "figures.json").read_text())
    assert len(table) == 4
    assert all(50 < peak < 2000 for peaks in table.values() for peak in peaks.values())


def test_the_epoch_plan_of_100_million_samples_is_known_at_once(tmp_path):
    done = elemdist("bench", "epoch", "--quick", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "figures.json").read_text())[0]
    assert ours["samples"] == 100_000_000
    assert ours["megabytes"] < 50  # a plan of int64 would take 800


def test_a_benchmark_runs_by_its_path_too():
    done = run_command(sys.executable, REPOSITORY / "tests/bench/bench_epoch.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--streaming-samples" in done.stdout


def test_the_verb_lists_what_there_is():
    done = elemdist("bench")
    assert done.returncode == 0
    for name, told in bench.benchmarks().items():
        assert name in done.stdout
        assert told
        assert told in done.stdout


def test_mistakes_get_one_line(tmp_path, monkeypatch):
    expect_user_error(elemdist("bench", "lodaer"), "no benchmark 'lodaer'", "did you mean 'loader'")
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    with pytest.raises(UserError, match="come with the source code"):
        bench.run(["loader"])


def test_ratios_are_those_within_a_round():
    table = Rates("t", "MB/s", ["b"], [("a", "b", 3), ("a", "b", 2)])
    table.rates = {"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 1.0]}
    assert table.ratios("a", "b") == [2.0, 3.0, 4.0]
    text = "\n".join(table.lines())
    assert "x3.00 (2.00 to 4.00)" in text
    assert "at least x3 against b: x3.00, met" in text
    table.targets = [("a", "b", 3.5)]
    assert "MISSED" in table.lines()[-1]


def test_a_peer_is_measured_by_what_it_did():
    table = Rates("t", "MB/s", ["one"])
    calls: list[str] = []

    def peer(name: str, amount: float):
        return lambda: calls.append(name) or amount

    table.measure({"one": peer("one", 1.0), "two": peer("two", 2.0)}, rounds=3)
    assert calls == ["one", "two"] * 4  # warm up, then in turn
    assert all(len(rates) == 3 and min(rates) > 0 for rates in table.rates.values())


def test_training_steps_are_timed_and_their_memory_is_measured(tmp_path):
    # b is a of another shape.
    only = ["--only", "a", "c", "d", "--json", tmp_path / "figures.json"]
    done = elemdist("bench", "step", "--quick", *only)
    assert done.returncode == 0, done.stderr
    tables = json.loads((tmp_path / "figures.json").read_text())
    assert [table["title"].partition(":")[0] for table in tables] == ["a", "a", "c", "d"]
    for table in tables:
        assert table["title"] in done.stdout
        assert "ours" in table["rates"]
        assert len(table["rates"]) in (2, 3)
        assert all(rate > 0 for rates in table["rates"].values() for rate in rates)
    assert done.stdout.count("\ntarget: ours at ") == len(tables)


def test_what_is_measured_on_a_gpu_is_measured_on_a_cpu_in_small(tmp_path):
    script, out = REPOSITORY / "tests/bench/gpu_report.py", tmp_path / "gpu.jsonl"
    small = ["--device", "cpu", "--quick", "--out", out]
    only = ["environment", "attention", "throughput"]
    done = run_command(sys.executable, script, *small, "--only", *only)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert list(dict.fromkeys(row["part"] for row in rows)) == only
    for row in rows[1:]:
        assert row["tflops"] > 0
    told, _, tables = done.stdout.partition("\n\n")
    assert told == out.read_text().rstrip("\n")
    for title in ("what it ran on", "back ends side by side", "training on masked materials"):
        assert title in tables


def test_a_part_of_the_report_that_fails_or_hangs_says_so(tmp_path):
    found = io.StringIO()
    rows, error = gpu_report.run_part("environment", 20, ["--device", "nowhere"], found)
    assert rows == []
    assert "invalid choice: 'nowhere'" in error
    rows, error = gpu_report.run_part("throughput", 0.1 - gpu_report.GRACE_S, [], found)
    assert "not done after" in error
    assert found.getvalue() == ""
