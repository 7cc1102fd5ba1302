"""Bytes and seconds of collectives: three gloo ranks, and DeepSpeed on two."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from elemdist.communication import COLLECTIVES, Meter
from elemdist.deepspeed_import import import_deepspeed
from tests.conftest import elemdist

RANKS = 3
LATE_S = 0.5
CPU = torch.device("cpu")


def filled(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, float(dist.get_rank()), dtype=dtype)


def call_all(pair: dist.ProcessGroup) -> dict[str, Any]:
    """Every collective once, in a fixed way; what the results were."""
    rank, six = dist.get_rank(), filled(6)
    gathered, whole = [torch.empty(6) for _ in range(RANKS)], torch.empty(RANKS * 6)
    dist.all_reduce(filled(100))
    dist.all_reduce(filled(10, dtype=torch.float64), op=dist.ReduceOp.MAX)
    dist.reduce(filled(30, dtype=torch.bfloat16), 1)
    dist.broadcast(tensor=filled(7), src=0)
    dist.all_gather(gathered, six)
    dist.all_gather_into_tensor(whole, six)
    dist.reduce_scatter_tensor(part := torch.empty(2), filled(6))
    dist.all_to_all_single(exchanged := torch.empty(6), six, None, None)
    dist.all_gather_object(told := [None] * RANKS, f"rank {rank}")
    if rank < 2:
        dist.all_reduce(filled(50), dist.ReduceOp.SUM, pair)
    return {
        "gathered": torch.cat(gathered).tolist(),
        "whole": whole.tolist(),
        "part": part.tolist(),
        "exchanged": exchanged.tolist(),
        "told": told,
    }


def late_calls(meter: Meter, rank: int) -> dict[str, float]:
    """Rank 2 comes late to a call, and to one that returns at once; the seconds counted."""
    found = {}
    for kind in ("blocking", "asynchronous"):
        dist.barrier()
        meter.take()
        if rank == 2:
            time.sleep(LATE_S)
        work = dist.all_reduce(filled(4), async_op=kind == "asynchronous")
        if work is not None:
            assert not work.is_completed() or rank == 2
            found["before the wait"] = meter.clocks["all_reduce"].take()
            work.wait()
            assert work.is_completed()
        found[kind] = meter.take().total.seconds
    return found


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    pair = dist.new_group([0, 1])
    before = {name: getattr(dist, name, None) for name in COLLECTIVES}
    with Meter(CPU) as meter:
        results = call_all(pair)
        traffic = meter.take()
        counts = {name: vars(count) for name, count in traffic.by_operation.items()}
        assert meter.take().by_operation == {}
        seconds = late_calls(meter, rank)
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            dist.all_reduce("no tensor")
        dist.all_reduce(filled(1))  # is counted after an error, too
        assert meter.take().total.calls == 1
    for home in (dist, dist.distributed_c10d):
        assert {name: getattr(home, name, None) for name in COLLECTIVES} == before
    dist.all_reduce(filled(100))
    assert meter.take().total.calls == 0
    found = {"results": results, "counts": counts, "total": vars(traffic.total), **seconds}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    spawn(run_rank, (str(folder),), RANKS)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def test_collectives_do_what_they_did(found):
    for rank, one in enumerate(found):
        results = one["results"]
        assert results["gathered"] == results["whole"] == [0.0] * 6 + [1.0] * 6 + [2.0] * 6
        assert results["part"] == [3.0, 3.0]
        assert results["exchanged"] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
        assert results["told"] == ["rank 0", "rank 1", "rank 2"], rank


def test_calls_and_bytes_are_counted(found):
    share = 2 / 3  # (p - 1) / p
    expected = {  # calls, payload, sent
        "all_reduce": (2, 400 + 80, 2 * share * 480),
        "reduce": (1, 60, share * 60),
        "broadcast": (1, 28, share * 28),
        "all_gather_into_tensor": (1, 72, share * 72),
        "reduce_scatter_tensor": (1, 24, share * 24),
        "all_to_all_single": (1, 24, share * 24),
    }
    for rank, one in enumerate(found):
        counts = one["counts"]
        of_a_pair = (3, 480 + 200, 2 * share * 480 + 2 * 0.5 * 200)
        expected["all_reduce"] = of_a_pair if rank < 2 else (2, 480, 2 * share * 480)
        for name, (calls, payload, sent) in expected.items():
            assert counts[name]["calls"] == calls, name
            assert counts[name]["payload_bytes"] == payload, name
            assert counts[name]["sent_bytes"] == pytest.approx(sent), name
            assert 0 < counts[name]["seconds"] < 5, name
        # The objects travel by all_gather, too: a size and the bytes of each.
        assert counts["all_gather"]["calls"] == 3
        assert counts["all_gather"]["payload_bytes"] > 72
        assert set(counts) == {*expected, "all_gather"}
        for figure in ("calls", "payload_bytes", "sent_bytes", "seconds"):
            assert one["total"][figure] == pytest.approx(sum(c[figure] for c in counts.values()))


def test_seconds_are_those_of_the_call_and_of_the_wait(found):
    for one in found[:2]:
        assert LATE_S * 0.8 < one["blocking"] < LATE_S * 4
        assert one["before the wait"] < LATE_S / 2
        assert LATE_S * 0.7 < one["asynchronous"] < LATE_S * 4
    assert found[2]["blocking"] < LATE_S / 2


def test_a_meter_costs_little_beside_a_collective():
    def wrapped(tensor: Tensor, op: Any = None, group: Any = None, async_op: bool = False) -> None:
        return None

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        meter = Meter(CPU)
        call, tensor = meter.metered("all_reduce", wrapped), torch.zeros(10)
        best = float("inf")
        for _ in range(50):  # the least: other processes only ever add to it
            start = time.perf_counter()
            for _ in range(200):
                call(tensor)
            best = min(best, (time.perf_counter() - start) / 200)
        assert meter.take().total.calls == 50 * 200
        assert best < 20e-6
    finally:
        dist.destroy_process_group()


def test_the_functions_that_deepspeed_keeps_are_seen_and_put_back(monkeypatch):
    deepspeed = import_deepspeed()
    from deepspeed.comm.torch import TorchBackend

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    original = dist.all_gather_into_tensor
    try:
        first = Meter(CPU).install()
        backend = TorchBackend("gloo", timedelta(seconds=10), None)  # keeps what it finds
        monkeypatch.setattr(deepspeed.comm.comm, "cdb", backend)
        second = Meter(CPU)
        for meter in (first, second):
            backend.all_gather_into_tensor(torch.empty(4), torch.zeros(4))
            backend.reduce_scatter_tensor(torch.empty(3), torch.zeros(3), dist.ReduceOp.SUM)
            counts = meter.take().by_operation
            assert counts["all_gather_into_tensor"].payload_bytes == 16
            assert counts["reduce_scatter_tensor"].payload_bytes == 12
            assert len(counts) == 2
            meter.remove()
            assert backend.all_gather_function is dist.all_gather_into_tensor is original
            second.install()
        second.remove()
    finally:
        dist.destroy_process_group()


def test_deepspeed_sends_what_the_formula_says(tmp_path):
    """`elemdist bench communication`: under each stage, for both models."""
    done = elemdist("bench", "communication", "--quick", "--json", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    tables = json.loads((tmp_path / "figures.json").read_text())
    assert [table["label"] for table in tables] == ["ZeRO 1", "ZeRO 2", "ZeRO 3"]
    rows = sorted((row for table in tables for row in table["details"]), key=lambda r: r["model"])
    measured = [row for row in rows if row["measured_bytes"] is not None]
    assert [(row["model"], row["stage"]) for row in measured] == [
        (model, stage) for model in ("elementwise", "subword") for stage in (1, 2, 3)
    ]
    for row in measured:
        # Norms, losses and what fills a bucket up come on top.
        assert row["measured_bytes"] == pytest.approx(row["formula_bytes"], rel=0.01), row
        assert row["operations"]["all_gather_into_tensor"] > 0.3 * row["formula_bytes"]
        assert f"{row['measured_bytes'] / 1e6:,.1f}" in done.stdout
    base = {row["model"]: row for row in rows if row["layers"] == 12}
    assert base["elementwise"]["embedding"] / base["elementwise"]["parameters"] < 0.0005
    assert base["subword"]["embedding"] / base["subword"]["parameters"] > 0.2
