"""Every benchmark runs on a tiny size and prints its table; nothing is asserted about its times."""

from __future__ import annotations

import io
import json
import re
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from elemdist import bench
from elemdist.errors import UserError
from tests.bench import bench_all, gpu_report
from tests.bench.rounds import Rates, write_figures
from tests.conftest import REPOSITORY, elemdist, expect_user_error, run_command

TABLES = {
    "checkpoint": {"ours, at once", "ours, in the background", "  until it is written"}
    | {"DeepSpeed's save_checkpoint"},
    "loader": {"ours, gathered", "ours, in training", "MappedDataset", "bare memmap gather"}
    | {"StreamingDataset", "TokensLoader"},
    "loop": {"elemdist's loop", "bare DeepSpeed"},
    "mixing": {"SlotMixing", "all units"},
    "segment": {"word", "char", "byte", "uax29", "sentence"}
    | {"words by re", "words by split", "char by numpy"},
    "shard": {"elemdist shard", "WordPiece to MDS", "our writer", "MDSWriter"},
    "table": {"F.embedding", "sorted_sums", "one_hot_product", "index_add_", "scatter_add_"}
    | {"sort, segment_reduce", "np.add.at"},
}


PNG = b"\x89PNG\r\n"


@dataclass
class Measured:
    """What a call of `elemdist bench all` printed of each benchmark and at its end, and wrote."""

    printed: dict[str, str]
    report: dict[str, Any]
    out: Path

    def tables(self, name: str) -> list[dict[str, Any]]:
        return self.report["benchmarks"][name]["tables"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    out = tmp_path_factory.mktemp("bench") / "made" / "out"
    names = ["table", "epoch", "growth", "memory", *(name for name in TABLES if name != "table")]
    done = elemdist("bench", "all", "--quick", "--out", out, "--only", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    _, *parts = f"\n{done.stdout}".split("\n== ")
    printed = dict(part.split("\n", 1) for part in parts)
    return Measured(printed, json.loads((out / "bench.json").read_text()), out)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_benchmark_runs_and_prints_its_table(name, measured):
    tables = measured.tables(name)
    assert set().union(*(table["rates"] for table in tables)) == TABLES[name]
    for table in tables:
        assert table["title"] in measured.printed[name]
        for peer, rates in table["rates"].items():
            assert len(rates) == 2
            assert f"\n{peer} " in measured.printed[name]


def test_memory_is_measured_for_every_kind_of_input(measured):
    tables = measured.tables("memory")
    assert len(tables) == 4
    for table in tables:
        assert table["less_is_better"]
        assert len(table["rates"]) == 2
        assert all(50 < peak < 2000 for peaks in table["rates"].values() for peak in peaks)


def test_growth_compares_windows_of_steps_per_remedy(measured):
    tables = measured.tables("growth")
    labels = ["memory, growth", "memory", "time, growth", "time"]
    assert [table["label"] for table in tables] == labels
    for table in tables:
        assert table["title"] in measured.printed["growth"]
        assert set(table["rates"]) == {"elemdist", "oneDNN's 1,024"}
        assert all(rates > [0] for rates in table["rates"].values())
    assert all(50 < peak < 3000 for peaks in tables[1]["rates"].values() for peak in peaks)


def test_the_epoch_plan_of_100_million_samples_is_known_at_once(measured):
    ours = measured.tables("epoch")[1]
    assert "100,000,000 samples" in ours["title"]
    assert ours["unit"] == "MB"
    assert ours["medians"]["ours"] < 50  # a plan of int64 would take 800
    (bound,) = ours["bounds"]
    assert (bound["target"], bound["met"]) == (50, True)


def test_all_benchmarks_make_one_report(measured):
    report = measured.report
    assert list(report["benchmarks"]) == sorted([*TABLES, "epoch", "growth", "memory"])
    assert report["quick"]
    environment = report["environment"]
    assert {"date", "cpu", "cpu_cores", "python", "packages", "gpus", "git"} <= set(environment)
    installed, *_ = environment["packages"]["torch"].split("+")  # not every build names itself
    assert installed == torch.__version__.split("+")[0]
    assert environment["packages"]["litdata"]
    *_, last = measured.printed.values()
    for name, done in report["benchmarks"].items():
        assert done["error"] is None
        assert 0 < done["seconds"] < report["seconds"]
        for table in done["tables"]:
            for one in table["compared"]:
                assert one["min"] <= one["ratio"] <= one["max"]
                rates, base = table["rates"][one["ours"]], table["rates"][one["peer"]]
                assert one["min"] == min(a / b for a, b in zip(rates, base, strict=True))
                assert re.search(rf"\n{name}\b.* {one['ours']} +{one['peer']} +x", last), last
    shard, writers = measured.tables("shard")
    assert [one["target"] for one in shard["compared"] + shard["bounds"]] == [20, 40]
    assert writers["compared"][0]["met"] is None
    assert re.search(r"\nshard .* >= x20 +(met|MISSED) ", last)
    assert (measured.out / "bench.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in measured.out.iterdir()) == [
        "bench.json",
        "bench.md",
        "bench.png",
    ]


SLOW = """
import os, signal, subprocess, time
print("process", subprocess.Popen(["sleep", "600"]).pid, flush=True)
os.kill(os.getppid(), signal.SIGINT)
time.sleep(600)
"""


@pytest.fixture
def made_up(tmp_path, monkeypatch) -> Iterator[Callable[..., int]]:
    """made_up(*names) -> the exit code of `elemdist bench all` on benchmarks that are made up."""
    table = Rates("t", "MB/s", [("a", "b", 3)], [("a", 1)], rates={"a": [6.0, 2.0], "b": [2.0] * 2})
    write_figures([table], tmp_path / "made.json")
    codes = {
        "good": f"import shutil, sys; shutil.copy({str(tmp_path / 'made.json')!r}, sys.argv[1])",
        "bad": "import sys; print('a hint'); sys.exit('elemdist bench: error: it broke')",
        "dead": "import os; os.abort()",
        "slow": SLOW,
    }
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*names: str) -> int:
        monkeypatch.setattr(bench_all, "benchmarks", lambda: dict.fromkeys(["all", *names]))
        monkeypatch.setattr(
            bench_all,
            "command_of",
            lambda name, quick, figures: [sys.executable, "-c", codes[name], str(figures)],
        )
        monkeypatch.setattr("sys.argv", ["bench", "--out", str(tmp_path / "out")])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return bench_all.main()

    yield run
    for number, handler in old.items():
        signal.signal(number, handler)


def test_a_benchmark_that_fails_is_named_and_the_others_run(made_up, tmp_path, capfd):
    assert made_up("bad", "dead", "good") == 1
    printed = capfd.readouterr()
    assert "FAILED: bad: it broke\n" in printed.err
    assert printed.err.endswith("FAILED: bad, dead\n")
    assert re.search(r"\nbad +FAILED +\d", printed.out)
    assert re.search(r"\ngood +a +b +x2.00 \(1.00 to 3.00\) +>= x3 +MISSED ", printed.out)
    assert re.search(r"\ngood +a +4 MB/s +>= 1 MB/s +met\n", printed.out)
    found = json.loads((tmp_path / "out/bench.json").read_text())["benchmarks"]
    assert [done["error"] for done in found.values()] == ["it broke", "exit code -6", None]
    assert found["bad"]["tables"] == []
    assert found["good"]["tables"][0]["compared"][0]["ratio"] == 2
    assert (tmp_path / "out/bench.png").read_bytes().startswith(PNG)


def test_what_is_done_before_an_interrupt_is_kept(made_up, tmp_path, capfd):
    assert made_up("good", "slow", "bad") == 130
    printed = capfd.readouterr()
    assert printed.err.endswith("interrupted; not done: slow, bad\n")
    assert list(json.loads((tmp_path / "out/bench.json").read_text())["benchmarks"]) == ["good"]
    (pid,) = re.findall(r"process (\d+)", printed.out)
    assert not is_running(int(pid))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_missing_package_of_a_peer_is_one_line(monkeypatch):
    def missing(*args: object, **options: object) -> None:
        raise ModuleNotFoundError("No module named 'litdata'")

    monkeypatch.setattr(runpy, "run_module", missing)
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(UserError, match=r"^loader compares with a package .* 'litdata'$"):
        bench.run(["loader"])


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
    done = elemdist("bench", "all", "--out", tmp_path / "out", "--only", "epoch", "tabel")
    expect_user_error(done, "--only: no benchmark 'tabel'; did you mean 'table'")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    with pytest.raises(UserError, match="come with the source code"):
        bench.run(["loader"])


def test_ratios_are_those_within_a_round():
    table = Rates("t", "MB/s", [("a", "b", 3), ("a", "b", 2)])
    table.rates = {"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 1.0]}
    assert table.ratios("a", "b") == [2.0, 3.0, 4.0]
    text = "\n".join(table.lines())
    assert "x3.00 (2.00 to 4.00)" in text
    assert "at least x3 against b: x3.00, met" in text
    table.compared = [("a", "b", 3.5)]
    assert "MISSED" in table.lines()[-1]
    table.less, table.bounds = True, [("a", 3)]
    of_peer, of_all = table.lines()[-2:]
    assert of_peer == "target: a at most x3.5 of b: x3.00, met"
    assert of_all == "target: a at most 3 MB/s: 4, MISSED"


def test_a_peer_is_measured_by_what_it_did():
    table = Rates("t", "MB/s", [("two", "one", None)])
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
