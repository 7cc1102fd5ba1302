"""The micro-batch that is found: the largest that fits, on every rank, and no rank hangs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from elemdist.auto_micro_batch import expected, has_room
from elemdist.device_memory import available_bytes, left_bytes
from tests.engine_ranks import run_cases

MODEL = ["--model.layers", "4", "--model.width", "64", "--batch.global-samples", "64"]
N = 256
MB = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("found")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    def case(stage: int, memory_mb: list[int], *words: str, **options: Any) -> dict[str, Any]:
        argv = [*MODEL, "--zero.stage", str(stage), *words]
        return {"argv": argv, "n": N, "memory_mb": memory_mb, **options}

    cases = {
        "ample": case(1, [3000, 3000], "--batch.global-samples", "7"),
        "tight": case(1, [100, 100]),
        "unlike": case(2, [300, 60]),
        "stage 3": case(3, [60, 60]),
        "shared": case(1, [60, 60], "--sequence-parallel", "2"),
        "none": case(1, [1, 1]),
        "exhausted": case(
            0, [3000, 3000], "--batch.global-samples", "256", address_space_mb=[3000, 160]
        ),
    }
    return run_cases(cases, folder, timeout_s=500)


def tries(folder: Path, name: str) -> list[tuple[int, float, float]]:
    """(samples, MB taken, MB allowed) of what rank 0 printed about a case."""
    part = (folder / "rank-0.txt").read_text().split(f"== {name}\n")[1].split("==")[0]
    sizes = re.findall(r"(\d+) samples? a pass: ([\d.]+) (\wB) of ([\d.]+) (\wB)", part)
    return [(int(n), float(a) * MB[x], float(b) * MB[y]) for n, a, x, b, y in sizes]


def test_a_rank_takes_at_most_its_part_of_the_global_batch(found):
    assert found["ample"] == [4, 4]


@pytest.mark.parametrize("name", ["tight", "stage 3", "shared"])
def test_the_largest_that_fits(name, found, folder):
    (size, other), sizes = found[name], tries(folder, name)
    assert size == other
    assert 1 < size < 32
    fitting = [one for one in sizes if one[0] <= size]
    assert fitting[-1][0] == size
    for _, taken, allowed in fitting:
        assert taken <= allowed
    assert sizes[-1][0] <= 2 * size, "no size far above was tried"
    # By what a sample takes in the tries there is no room for many more.
    (first, low, _), (_, high, allowed) = fitting[0], fitting[-1]
    a_sample = (high - low) / (size - first)
    assert a_sample > 1, "the memory of a sample is to be seen"
    assert (allowed - high) / a_sample < 4


def test_the_rank_with_least_memory_decides(found, folder):
    (size, other) = found["unlike"]
    assert size == other
    assert size < found["tight"][0]
    taken, allowed = tries(folder, "unlike")[-1][1:]
    assert taken < allowed - 100, "rank 0 would have had room"


def test_nothing_fits(found):
    for message in found["none"]:
        assert "not even one sample" in message["error"]
        assert "--memory.checkpoint-every 1" in message["error"]


def test_a_rank_that_runs_out_of_memory_ends_no_other(found, folder):
    size, other = found["exhausted"]
    assert size == other
    assert 1 <= size < 128  # that many take a gigabyte
    assert "samples a pass: out of memory" in (folder / "rank-0.txt").read_text()


def test_running_out_of_memory_is_told_from_other_errors():
    assert has_room(lambda: None)
    assert not has_room(lambda: torch.empty(1 << 60, dtype=torch.uint8) and None)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        has_room(lambda: torch.mm(torch.ones(2, 3), torch.ones(2, 3)) and None)


def test_what_is_expected_of_the_next_size():
    assert expected([(0, 100), (1, 110)], limit=200) == 10
    assert expected([(0, 100), (1, 110), (2, 130)], limit=200) == 5  # as it grew at last
    assert expected([(0, 100), (1, 140), (2, 141)], limit=200) == 4  # as it grew in all
    assert expected([(0, 100), (1, 90)], limit=100) == 11  # noise makes no less than a byte
    assert expected([(0, 100), (4, 180)], limit=170) < 4


def test_a_limit_of_the_scheduler_counts_with_its_file_cache(tmp_path):
    assert left_bytes(tmp_path) is None
    for name, text in [
        ("max", "1000"),
        ("current", "700"),
        ("stat", "anon 500\ninactive_file 150"),
    ]:
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    assert left_bytes(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert left_bytes(tmp_path) is None
    assert available_bytes() > 1 << 20
