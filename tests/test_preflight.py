"""What the preflight makes of the nodes' answers; the real thing: tests/cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.preflight import problems, report_lines, summary

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
        ({"gpus": [gpu(0)]}, "the driver shows 1 GPUs instead of 2"),
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


def met(*apart: str) -> dict[str, dict[str, Any]]:
    """The answers where these nodes could not meet the others."""
    return {node: answer(node, **({"apart": "no"} if node in apart else {})) for node in NODES}


def test_who_is_to_blame_where_nodes_do_not_meet():
    assert list(problems(met("n1", "n3"), NODES, 2)) == ["n3"], "n1 has waited for it"
    assert list(problems(met("n1", "n2", "n3"), NODES, 2)) == ["n1"], "nobody comes to it"
    assert list(problems(met("n2", "n3"), NODES, 2)) == ["n1"]
    assert list(problems(met("n1"), NODES, 2)) == ["n1"]
    silent = {node: report for node, report in met("n1", "n2").items() if node != "n3"}
    assert list(problems(silent, NODES, 2)) == ["n3"], "for which all others have waited"


def test_a_node_that_is_silent_is_named():
    wrong = problems({"n1": answer("n1"), "n3": answer("n3")}, NODES, 2)
    assert wrong == {"n2": "it does not answer"}
    assert problems({}, NODES, 0).keys() == set(NODES)


def test_the_line_says_the_slowest_disk_and_the_bandwidth(tmp_path):
    for node, speed in zip(NODES, (900.0, 120.0, 800.0), strict=True):
        report = answer(node, write_mb_per_s=speed)
        (tmp_path / f"{node}.0.json").write_text(json.dumps(report))
    assert summary(tmp_path) == "3 nodes answer, write 120 MB/s, all-reduce 12.50 GB/s"
