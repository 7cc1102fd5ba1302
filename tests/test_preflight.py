"""What the preflight makes of the nodes' answers; the real thing: tests/cluster."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from elemdist.ports import free_port
from launcher.blame import to_blame
from launcher.preflight import SCRIPT, by_node, problems, report_lines, summary
from tests.conftest import run_command

NODES = ["n1", "n2", "n3"]


def answer(node: str, **more: Any) -> dict[str, Any]:
    return {
        "node": node, "time_s": 1000.0, "versions": {"torch": "2.13.0", "numpy": "2.3.0"},
        "available_bytes": 200 << 30, "free_bytes": 500 << 30, "write_mb_per_s": 900.0,
        "reduce_gb_per_s": 12.5, "gpus": [gpu(0), gpu(1)],
    } | more  # fmt: skip


def gpu(index: int, **more: str) -> dict[str, str]:
    return {
        "index": str(index), "name": "H100", "driver_version": "580", "memory.total": "81559",
        "memory.used": "12", "ecc.errors.uncorrected.volatile.total": "0",
    } | {name.replace("__", "."): value for name, value in more.items()}  # fmt: skip


def test_nodes_that_are_alike_are_fit():
    assert problems({node: answer(node) for node in NODES}, NODES, 2) == {}


@pytest.mark.parametrize("run_folder", ["there", "missing"])
def test_a_node_that_cannot_write_its_report_prints_it(run_folder, tmp_path):
    """As on a full disk, or where a file system is mounted on other nodes only."""
    (tmp_path / "there").mkdir()
    group = json.dumps([{"nodes": ["n2"], "address": "127.0.0.1", "port": free_port()}])
    words = [tmp_path / "no-folder", tmp_path / run_folder, group, "0", "5"]
    task = {"SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}
    done = run_command(sys.executable, SCRIPT, *words, SLURMD_NODENAME="n2", **task)
    assert done.returncode == 0, done.stderr
    printed = ["what a container says\n", '"and"\n', "2\n", *done.stdout.splitlines()]
    found = by_node([json.dumps(answer("n1")).encode(), *(line.encode() for line in printed)])
    assert sorted(found) == ["n1", "n2"]
    assert found["n2"]["versions"]
    assert found["n2"]["problem"].startswith("the run folder cannot be written: [Errno 2] ")
    path = "write-test" if run_folder == "missing" else "n2.0.json"
    assert path in found["n2"]["problem"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (
            {"problem": "port 20000 of n1 cannot be used: refused"},
            "port 20000 of n1 cannot be used",
        ),
        (
            {"versions": {"torch": "2.12.0", "numpy": "2.3.0"}},
            "its torch is 2.12.0, that of others",
        ),
        ({"versions": {"torch": "2.13.0"}}, "its numpy is missing, that of others 2.3.0"),
        ({"time_s": 1060.0}, "its clock is +60 s off"),
        ({"free_bytes": 1 << 20}, "the run folder has only 0.0 GB free"),
        ({"available_bytes": 1 << 20}, "only 0.0 GB of memory are free"),
        ({"gpus": [gpu(0)]}, "the driver shows 1 GPU instead of 2"),
        ({"gpus": []}, "the driver shows 0 GPUs instead of 2"),
        ({"gpus": [gpu(0), gpu(1, memory__used="40000")]}, "somebody else has 40000 of 81559 MiB"),
        (
            {"gpus": [gpu(0), gpu(1, ecc__errors__uncorrected__volatile__total="3")]},
            "GPU 1 has 3 uncorrected memory errors",
        ),
    ],
)
def test_a_node_that_is_not_fit_is_named_with_the_reason(more, reason):
    found = {node: answer(node) for node in NODES} | {"n2": answer("n2", **more)}
    wrong = problems(found, NODES, 2)
    assert list(wrong) == ["n2"]
    assert reason in wrong["n2"]

    lines = report_lines(found, wrong)
    assert [line.split(":")[0] for line in lines if line.endswith(", fit")] == ["n1", "n3"]


def cluster_with(*broken: frozenset[str]) -> tuple[Callable[[list[list[str]]], set[str]], list]:
    """A check of groups that fails where one holds all the nodes of an entry of `broken`: {n2} for
    a node that cannot even add up by itself. And the groups that it was asked for."""
    asked = []

    def fails(groups: list[list[str]]) -> set[str]:
        asked.append(groups)
        flat = [node for group in groups for node in group]
        assert len(flat) == len(set(flat)), "a node is in one group at a time"
        bad = [group for group in groups if any(entry <= set(group) for entry in broken)]
        return {node for group in bad for node in group}

    return fails, asked


def cannot_reach(node: str, others: Iterable[str]) -> list[frozenset[str]]:
    return [frozenset({node, other}) for other in others if other != node]


@pytest.mark.parametrize("count", [3, 4, 5, 8, 33])
def test_a_node_that_no_other_can_reach_is_to_blame(count):
    nodes = [f"n{number}" for number in range(count)]
    for bad in nodes:
        assert to_blame(cluster_with(*cannot_reach(bad, nodes))[0], nodes, []) == {bad}


def test_two_bad_nodes_of_many_are_both_found():
    nodes = [f"n{number}" for number in range(16)]
    for pair in itertools.combinations(nodes, 2):
        broken = [entry for bad in pair for entry in cannot_reach(bad, nodes)]
        assert to_blame(cluster_with(*broken)[0], nodes, []) == set(pair)


def test_a_node_that_fails_alone_is_to_blame_and_no_pair_is_tried():
    fails, asked = cluster_with(frozenset({"n2"}))
    assert to_blame(fails, NODES, []) == {"n2"}
    assert len(asked) == 1


def test_a_spare_node_tells_which_of_two_is_to_blame():
    fails, _ = cluster_with(*cannot_reach("n1", ["n2", "n3"]))
    assert to_blame(fails, ["n1", "n2"], ["n3"]) == {"n1"}
    assert to_blame(fails, ["n1", "n2"], []) == {"n1", "n2"}, "nobody can tell"
    assert to_blame(fails, ["n2", "n3"], ["n1"]) == set(), "it did not happen again"


def test_a_node_that_is_silent_is_named():
    wrong = problems({"n1": answer("n1"), "n3": answer("n3")}, NODES, 2)
    assert wrong == {"n2": "it does not answer"}
    assert problems({}, NODES, 0).keys() == set(NODES)


def test_the_line_says_the_slowest_disk_and_the_bandwidth(tmp_path):
    for node, speed in zip(NODES, (900.0, 120.0, 800.0), strict=True):
        report = answer(node, write_mb_per_s=speed)
        (tmp_path / f"{node}.0.json").write_text(json.dumps(report))
    assert summary(tmp_path) == "3 nodes answer, write 120 MB/s, all-reduce 12.50 GB/s"
