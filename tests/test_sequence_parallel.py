"""Ranks that share sequences compute what one rank computes: losses and all gradients.

The ranks are real processes with gloo, started once for all tests of this file.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from itertools import pairwise
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from elemdist.attention import Segments, attention, starts
from elemdist.batch import Batch, Reading, unpad
from elemdist.errors import UserError
from elemdist.inputs import ByteReading, CanineReading
from elemdist.model import Model
from elemdist.model_config import ModelConfig, Symbols
from elemdist.objectives import Targets, label_loss, share_batch, targets_of
from elemdist.rows import DOC, PAD
from elemdist.run_settings import MemorySettings
from elemdist.sequence_parallel import Fetch, Share, check_split, once, open_groups
from tests.test_model import VARIANTS, build, config

Call = Callable[..., Any]


class Ranks:
    """Processes of one process group that run functions of the tests, all the same at a time."""

    def __init__(self, count: int, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imported once, not by every rank
        self.processes = []
        self.pipes: list[Any] = []
        for rank in range(count):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, rank, count, str(folder)))
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def __call__(self, function: Call, *arguments: Any, timeout_s: float = 60) -> list[Any]:
        """What each rank's function returns; an exception of any of them fails the test."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers: dict[Any, Any] = {}
        while len(answers) < len(self.pipes):
            ready = wait([pipe for pipe in self.pipes if pipe not in answers], timeout_s)
            assert ready, "a rank hangs"
            for pipe in ready:
                done, answers[pipe] = pipe.recv()
                assert done, answers[pipe]
        return [answers[pipe] for pipe in self.pipes]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            process.kill()
            process.join()


def serve(pipe: Any, rank: int, count: int, folder: str) -> None:
    """A rank: runs what comes through the pipe until it is closed."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*arguments)))
        except Exception:
            pipe.send((False, f"rank {rank}: {traceback.format_exc()}"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    started = Ranks(4, tmp_path_factory.mktemp("ranks"))
    yield started
    started.close()


@cache
def share_of(size: int) -> Share | None:
    return open_groups(size)


class TokenReading:
    """Every material is a token, as a tokenizer with so large a vocabulary would have it."""

    def positions(self, rows_BNV: np.ndarray, cut: Any) -> Any:
        from elemdist.batch import Positions

        rows_RV = rows_BNV.reshape(-1, rows_BNV.shape[-1])
        special_R = rows_RV[:, 0] == DOC
        ids_R = np.where(special_R, TOKENS.doc, rows_RV[:, 0].astype(np.int32) * 2)
        bytes_R = np.where(special_R, 0, (rows_RV != PAD).sum(1)).astype(np.int32)
        ids_R1 = ids_R[:, None].astype(np.int32)
        return Positions(ids_R1, cut.start_S, cut.rows_S, cut.key_S, cut.ended_S, None, bytes_R)


TOKENS = Symbols(doc=300, sep=301, mask=302, vocabulary=303)
READINGS: dict[str, Reading] = {
    "byte": ByteReading(), "canine": CanineReading(), "subword": TokenReading(),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """What is computed, and from which documents, cut into samples of 12 rows."""

    variant: str = "bert"
    objective: str = ""
    pooling: str = "none"
    input: str = "elementwise"
    memory: MemorySettings = dataclasses.field(default_factory=MemorySettings)
    lengths: tuple[int, ...] = (1, 3, 2, 12, 5, 4, 1, 9, 12)
    size: int = 2

    def shape(self) -> ModelConfig:
        made = config(self.objective, input=self.input, **VARIANTS[self.variant])
        symbols = TOKENS if self.input == "subword" else None
        return dataclasses.replace(made, pooling=self.pooling, symbols=symbols)

    def batch(self, seed: int) -> Batch:
        """Documents of these lengths back to back, the last sample padded."""
        rng = np.random.default_rng(seed)
        rows = np.full((-(-sum(self.lengths) // 12) * 12, 4), PAD, np.uint8)
        rows[: sum(self.lengths)] = rng.integers(32, 127, (sum(self.lengths), 4))
        rows[::2, 3:] = PAD
        rows[sum(self.lengths) :] = PAD
        for start in starts(list(self.lengths))[:-1]:
            rows[start] = [DOC, PAD, PAD, PAD]
        rows_BNV = rows.reshape(-1, 12, 4)
        labels_BL = rng.integers(0, 2, (len(rows_BNV), 3))
        return unpad(rows_BNV, labels_BL, np.arange(len(rows_BNV)), READINGS.get(self.input))


def loss_of(model: Any, batch: Batch, share: Share | None) -> tuple[Tensor, Targets]:
    """This rank's share of the summed loss of a batch."""
    shape = getattr(model, "module", model).config
    targets = targets_of(batch, shape, 0.3, seed=1)
    rows_TV, position_T, segments, select_M, target_MV = share_batch(batch, targets, share)
    if shape.objective != "classify":
        nats_M, _ = model(rows_TV, position_T, segments, select_M, target_MV)
        return nats_M.sum(), targets
    assert batch.labels_BL is not None
    truth_SL = batch.labels_BL[batch.sample_S[segments.own]]
    return label_loss(model(rows_TV, position_T, segments), truth_SL), targets


def gradients(model: Model) -> dict[str, np.ndarray]:
    return {
        name: np.zeros(tuple(p.shape)) if p.grad is None else p.grad.double().numpy()
        for name, p in model.named_parameters()
    }


def summed(amounts: Any) -> Any:
    """The sum over all ranks."""
    total = torch.as_tensor(amounts, dtype=torch.float64).clone()
    dist.all_reduce(total)
    return total.numpy()


def in_a_rank(case: Case) -> tuple[Any, ...]:
    """Summed over the ranks: loss, bytes of text, selected rows and gradients of the batches of all
    groups; and how many rows and parameters without gradient this rank has."""
    share = share_of(case.size)
    assert share is not None
    batch = case.batch(seed=dist.get_rank() // case.size)
    model = build(case.shape(), case.memory)
    loss, targets = loss_of(model, batch, share)
    loss.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    counted = summed([loss.item(), float(once(targets.text_bytes, share))])
    grads = {name: summed(grad) for name, grad in gradients(model).items()}
    return counted, grads, len(share.part(len(batch.rows_TV))), idle


def on_one_rank(case: Case) -> tuple[Any, ...]:
    """The same without any other rank."""
    model = build(case.shape(), case.memory)
    counted = np.zeros(2)
    for group in range(4 // case.size):
        loss, targets = loss_of(model, case.batch(seed=group), None)
        loss.backward()
        counted += [loss.item(), float(targets.text_bytes)]
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    return counted, gradients(model), idle


def check_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        error = np.linalg.norm(found[name] - grad)
        assert error <= 1e-5 * np.linalg.norm(grad), (name, error, np.linalg.norm(grad))


def check(ranks: Ranks, case: Case) -> list[int]:
    """Compares the shared computation with that of one rank; the rows of each rank."""
    answers = ranks(in_a_rank, case)
    counted, grads, idle = on_one_rank(case)
    np.testing.assert_allclose(answers[0][0], counted, rtol=1e-5)
    check_close(answers[0][1], grads)
    for *_, without in answers:
        assert without == idle  # every rank takes part in every gradient, or ZeRO waits for it
    return [rows for _, _, rows, _ in answers]


FOUR = ["bert", "canine", "modern canine", "window decoder", "autoregressive decoder"]


@pytest.mark.parametrize(
    ("variant", "size"), [*((name, 2) for name in VARIANTS), *((name, 4) for name in FOUR)]
)
def test_every_model_has_the_gradients_of_one_rank(ranks, variant, size):
    rows = check(ranks, Case(variant, size=size))
    assert sum(rows) == 49 * 4 // size


@pytest.mark.parametrize("input", ["byte", "canine", "subword"])
@pytest.mark.parametrize("variant", ["bert", "canine", "decoder"])
def test_every_input(ranks, variant, input):
    check(ranks, Case(variant, input=input))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("pooling", ["doc", "last", "mean", "max"])
@pytest.mark.parametrize("variant", ["bert", "canine", "decoder"])
def test_classification(ranks, variant, pooling, size):
    if (variant, pooling) == ("decoder", "doc"):
        pytest.skip("the DOC row of a decoder sees nothing")
    check(ranks, Case(variant, "classify", pooling, size=size))


@pytest.mark.parametrize("pooling", ["doc", "last", "mean", "max"])
def test_a_rank_that_no_segment_belongs_to(ranks, pooling):
    """A document over three cuts: three of the four ranks own nothing."""
    check(ranks, Case("bert", "classify", pooling, lengths=(12,), size=4))


TILED = MemorySettings(checkpoint_every=1, tile_rows=3, tile_loss_rows=2)


@pytest.mark.parametrize("variant", ["bert", "albert", "canine", "window decoder"])
def test_less_memory(ranks, variant):
    check(ranks, Case(variant, memory=TILED))


@pytest.mark.parametrize("lengths", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("variant", ["bert", "canine", "decoder", "autoregressive decoder"])
def test_fewer_rows_than_ranks(ranks, variant, lengths):
    for case in (
        Case(variant, lengths=lengths, size=4),
        Case(variant, lengths=lengths, size=4, memory=TILED),
        Case("bert", "classify", "mean", lengths=lengths, size=4),
    ):
        assert 0 in check(ranks, case)


def with_keys(size: int, backbone: str) -> np.ndarray:
    """A model's output for segments of which only some rows are seen, of all rows."""
    share = share_of(size) if size > 1 else None
    lengths, keys = [3, 4, 9, 12], [2, 0, 5, 12]
    cu_lengths = torch.tensor(starts(lengths), dtype=torch.int32)
    segments = Segments(cu_lengths, lengths, keys, share)
    model = build(config(backbone=backbone)).eval()
    torch.manual_seed(3)
    rows_TV = torch.randint(32, 127, (28, 4), dtype=torch.uint8)
    position_T = torch.cat([torch.arange(length) for length in lengths])
    mine = segments.mine
    with torch.no_grad():
        return np.asarray(model.encoder(rows_TV[mine], position_T[mine], segments))


@pytest.mark.parametrize("backbone", ["bert", "canine"])
def test_rows_that_are_not_seen(ranks, backbone):
    (*parts,) = ranks(with_keys, 4, backbone)
    np.testing.assert_allclose(np.concatenate(parts), with_keys(1, backbone), atol=2e-6)


def attended(dtype: torch.dtype, size: int) -> np.ndarray:
    share = share_of(size) if size > 1 else None
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 13, 4, 6).to(dtype)
    segments = Segments(torch.tensor([0, 2, 13], dtype=torch.int32), [2, 11], None, share)
    mine = segments.mine
    out = attention(q[mine], k[mine], v[mine], segments)
    assert out.dtype == dtype
    return out.float().numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_that_of_one_rank_to_the_bit(ranks, dtype):
    np.testing.assert_array_equal(np.concatenate(ranks(attended, dtype, 4)), attended(dtype, 1))


def fetched(cuts: list[int], wanted: list[range]) -> tuple[np.ndarray, np.ndarray]:
    """What this rank fetches of 11 rows, and the gradient, of all rows, of a weighted sum of it."""
    share = share_of(4)
    assert share is not None
    x_RX = torch.arange(22, dtype=torch.float64).view(11, 2)
    mine_RX = x_RX[cuts[share.rank] : cuts[share.rank + 1]].requires_grad_()
    out_RX = Fetch(share, cuts, wanted)(mine_RX)
    weight_RX = torch.full_like(out_RX, 10.0**share.rank)
    (grad_RX,) = torch.autograd.grad((out_RX.square() * weight_RX).sum(), mine_RX)
    return out_RX.detach().numpy(), grad_RX.numpy()


@pytest.mark.parametrize("cuts", [[0, 2, 5, 8, 11], [0, 0, 11, 11, 11], [0, 3, 3, 4, 11]])
def test_fetched_rows_and_their_gradient(ranks, cuts):
    """Ranges that overlap, that lie elsewhere, that are empty, and that are all there is."""
    wanted = [range(1, 6), range(8, 11), range(4, 4), range(11)]
    answers = ranks(fetched, cuts, wanted)
    x_RX = np.arange(22.0).reshape(11, 2)
    weight_R = np.zeros(11)
    for rank, (out_RX, _) in enumerate(answers):
        np.testing.assert_array_equal(out_RX, x_RX[wanted[rank].start : wanted[rank].stop])
        weight_R[wanted[rank].start : wanted[rank].stop] += 10.0**rank
    grad_RX = np.concatenate([grad for _, grad in answers])
    np.testing.assert_array_equal(grad_RX, 2 * x_RX * weight_R[:, None])


def groups() -> list[tuple[int, int]]:
    shares = [share_of(size) for size in (2, 4)]
    assert open_groups(1) is None
    return [(share.rank, share.size) for share in shares if share is not None]


def test_groups_are_consecutive_ranks(ranks):
    assert ranks(groups) == [
        [(0, 2), (0, 4)], [(1, 2), (1, 4)], [(0, 2), (2, 4)], [(1, 2), (3, 4)],
    ]  # fmt: skip


def test_a_share_is_contiguous_and_even():
    for count in (0, 1, 3, 4, 1001):
        parts = [Share(None, rank, 4).part(count) for rank in range(4)]
        assert [row for part in parts for row in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        cuts = Share(None, 0, 4).cuts(count)
        assert parts == [range(*pair) for pair in pairwise(cuts)]


def test_heads_must_divide():
    check_split(12, 4)
    with pytest.raises(
        UserError, match=r"12 heads cannot be split over 5 ranks; 1, 2, 3, 4, 6, 12"
    ):
        check_split(12, 5)
