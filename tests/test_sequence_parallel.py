"""Ranks that share sequences compute what one rank computes: losses and all gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from elemdist.attention import Segments, attention, starts
from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.evaluate import evaluate
from elemdist.model import Model
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import ModelSettings
from elemdist.sequence_parallel import Fetch, Share, check_split, once, open_groups
from elemdist.shards import ShardSet
from tests.sequence_ranks import TILED, Case, Ranks, check_close, loss_of, share_of
from tests.test_model import VARIANTS, build, config


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    started = Ranks(4, tmp_path_factory.mktemp("ranks"))
    yield started
    started.close()


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


def check(ranks: Ranks, case: Case) -> list[int]:
    """Compares the shared computation with that of one rank; the rows of each rank."""
    answers = ranks(in_a_rank, case)
    counted, grads, idle = on_one_rank(case)
    np.testing.assert_allclose(answers[0][0], counted, rtol=1e-5)
    check_close(answers[0][1], grads)
    for *_, without in answers:
        assert without == idle  # every rank takes part in every gradient, or ZeRO waits for it
    return [rows for _, _, rows, _ in answers]


ROW_WISE = {
    "shuffled slots",
    "mixing",
    "untied",
    "per-slot tables",
    "other heads",
}  # no matter here
TWO = [name for name in VARIANTS if name not in ROW_WISE]
FOUR = ["bert", "canine", "modern canine", "window decoder", "autoregressive decoder"]


@pytest.mark.parametrize(
    ("variant", "size"), [*((name, 2) for name in TWO), *((name, 4) for name in FOUR)]
)
def test_every_model_has_the_gradients_of_one_rank(ranks, variant, size):
    case = Case(variant, size=size)
    rows = check(ranks, case)
    assert sum(rows) == 50 * 4 // size
    # A document lies on two ranks.
    assert not {*accumulate(rows[: size - 1])} <= {*starts(case.batch(0).segments.lengths)}


@pytest.mark.parametrize("input", ["byte", "canine", "subword"])
@pytest.mark.parametrize("variant", ["bert", "canine", "decoder"])
def test_every_input(ranks, variant, input):
    check(ranks, Case(variant, input=input))


POOLED = [
    (variant, pooling)
    for variant in ("bert", "canine", "decoder")
    for pooling in ("doc", "last", "mean", "max")
    if (variant, pooling) != ("decoder", "doc")  # which sees nothing of its document
]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("variant", "pooling"), POOLED)
def test_classification(ranks, variant, pooling, size):
    check(ranks, Case(variant, "classify", pooling, size=size))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("input", ["elementwise", "subword"])
def test_a_wide_part(ranks, input, size):
    variant = "mixing" if input == "elementwise" else "bert"
    case = Case(variant, "classify", "max", input, size=size, wide=True)
    check(ranks, case)
    check(ranks, dataclasses.replace(case, lengths=(12,)))  # most ranks own no document


@pytest.mark.parametrize("pooling", ["doc", "last", "mean", "max"])
def test_a_rank_that_no_segment_belongs_to(ranks, pooling):
    """A document over three cuts: three of the four ranks own nothing."""
    check(ranks, Case("bert", "classify", pooling, lengths=(12,), size=4))


@pytest.mark.parametrize("variant", ["bert", "albert", "canine", "window decoder"])
def test_less_memory(ranks, variant):
    check(ranks, Case(variant, memory=TILED))


@pytest.mark.parametrize("lengths", [(1,), (1, 2)])
@pytest.mark.parametrize(
    ("variant", "pooling"),
    [("bert", ""), ("canine", ""), ("autoregressive decoder", ""), ("bert", "mean")],
)
def test_fewer_rows_than_ranks(ranks, variant, pooling, lengths):
    objective = "classify" if pooling else ""
    case = Case(variant, objective, pooling or "none", memory=TILED, lengths=lengths, size=4)
    assert 0 in check(ranks, case)


def with_keys(size: int, backbone: str) -> np.ndarray:
    """A model's output for segments of which only some rows are seen, of all rows."""
    share = share_of(size) if size > 1 else None
    lengths, keys = [3, 4, 9, 12], [2, 0, 5, 12]
    cu_lengths = torch.tensor(starts(lengths), dtype=torch.int32)
    segments = Segments(cu_lengths, lengths, keys, share)
    # in fp64: what fp32 rounds hangs on the processor's matrix kernels
    model = build(config(backbone=backbone)).eval().double()
    torch.manual_seed(3)
    rows_TV = torch.randint(32, 127, (28, 4), dtype=torch.uint8)
    position_T = torch.cat([torch.arange(length) for length in lengths])
    mine = segments.mine
    with torch.no_grad():
        return np.asarray(model.encoder(rows_TV[mine], position_T[mine], segments))


@pytest.mark.parametrize("backbone", ["bert", "canine"])
def test_rows_that_are_not_seen(ranks, backbone):
    (*parts,) = ranks(with_keys, 4, backbone)
    np.testing.assert_allclose(np.concatenate(parts), with_keys(1, backbone), atol=1e-12)


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
def test_attention_keeps_the_dtype(ranks, dtype):
    found = np.concatenate(ranks(attended, dtype, 4))
    # In bf16, too, only the sums in fp32 are in another order.
    atol = 1e-6 if dtype == torch.float32 else 1e-2
    np.testing.assert_allclose(found, attended(dtype, 1), atol=atol)


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


def evaluated(folder: str, shape: ModelConfig, size: int) -> dict[str, Any]:
    """The figures of a new model on some shards. Batches of three samples leave the last group of
    ranks without one that counts."""
    share, rank, groups = None, 0, 1
    if size > 1:
        share, rank, groups = share_of(size), dist.get_rank() // size, 4 // size
    settings, model = TrainSettings(), build(shape).eval()
    cpu = torch.device("cpu")
    return evaluate(model, shape, ShardSet(folder), settings, cpu, 3, 15, rank, groups, share)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("objective", ["mlm", "classify"])
def test_an_evaluation_counts_everything_once(ranks, packed, labelled, objective, size):
    classify = objective == "classify"
    folder = str((labelled if classify else packed) / "val")
    model = resolved(ModelSettings(layers=2, width=32), 8)
    shape = ModelConfig(
        n=32, v=8, objective=objective, model=model,
        pooling="mean" if classify else "none",
        labels=ShardSet(folder).labels if classify else None,
    )  # fmt: skip
    expected = evaluated(folder, shape, 1)
    assert expected["documents" if classify else "materials"] > 10
    labels = expected.pop("labels", None)
    for rank, figures in enumerate(ranks(evaluated, folder, shape, size)):
        if classify and rank:  # only the first rank reports them
            assert figures == pytest.approx({"loss": expected["loss"]}, rel=1e-5)
            continue
        assert figures.pop("labels", None) == labels
        assert figures == pytest.approx(expected, rel=1e-5)
