from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from elemdist.batch import Batch
from elemdist.batch_plan import plan_batch
from elemdist.data import Order, training_steps
from elemdist.mixture import open_mixture
from elemdist.objectives import mask_materials, next_materials
from elemdist.rows import DOC, FIRST_SPECIAL, PAD
from elemdist.run_settings import BatchSettings, DataSettings, Source
from elemdist.source_loss import bytes_by_source, labels_by_source, nats_by_source
from tests.shard_sets import N, V, make_set


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Samples of three sources in one batch, cut into documents."""
    root = tmp_path_factory.mktemp("sets")
    for seed, name in enumerate("abc"):
        make_set(root / name, 20, seed=seed, labels=True)
    mixture = open_mixture(DataSettings(mixture=[Source(str(root / name)) for name in "abc"]))
    gather = mixture.gather

    def with_documents(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        rows_BNV, labels_BL = gather(ids)
        rows_BNV[np.arange(len(ids)) % 4 > 0, 0] = [DOC, PAD, PAD, PAD]  # the others go on
        rows_BNV[::2, 3] = [DOC, PAD, PAD, PAD]
        rows_BNV[1::3, 5] = PAD
        rows_BNV[:, 1, 2:] = PAD
        return rows_BNV, labels_BL

    mixture.gather = with_documents  # type: ignore[method-assign]
    plan = plan_batch(BatchSettings(24, 0, 24), N * V, 1)
    found = next(iter(training_steps(mixture, Order(plan, 0, 1), range(1))))[0]
    assert found.source_B is not None
    assert set(found.source_B.tolist()) == {0, 1, 2}
    return found


def as_tokens(batch: Batch) -> Batch:
    """The same as input subword has it: a number a row, and the bytes of each, some none."""
    rows_T1 = torch.arange(len(batch.rows_TV), dtype=torch.int32)[:, None]
    bytes_T = (torch.arange(len(rows_T1)) % 5).int()
    bytes_T[~batch.text_T()] = 0
    bytes_T[batch.segments.cu_lengths[:-1].long() + 1] = 3
    return replace(batch, rows_TV=rows_T1, bytes_T=bytes_T)


def looped(batch: Batch, rows: list[int], values: list[float]) -> list[float]:
    """What the values of these rows sum up to for each source, row by row."""
    assert batch.source_B is not None
    owner = [s for s, length in enumerate(batch.segments.lengths) for _ in range(length)]
    sums = [0.0, 0.0, 0.0]
    for row, value in zip(rows, values, strict=True):
        sums[int(batch.source_B[batch.sample_S[owner[row]]])] += value
    return sums


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("following", [False, True])
def test_sums_by_source_are_those_of_a_loop(batch, tokens, following):
    some = as_tokens(batch) if tokens else batch
    targets = next_materials(some) if following else mask_materials(some, 0.4, 1)
    nats_M = torch.rand(len(targets.select_M), requires_grad=True)
    rows = targets.select_M.tolist()
    found = nats_by_source(nats_M, targets.select_M, some, 3)
    assert found.tolist() == pytest.approx(looped(some, rows, nats_M.tolist()))
    assert (found.dtype, found.requires_grad) == (torch.float64, False)

    target = [row + following for row in rows]
    if some.bytes_T is None:
        sizes = [sum(x < FIRST_SPECIAL for x in row) for row in targets.target_MV.tolist()]
    else:
        ends = set(some.segments.cu_lengths.tolist())
        told = some.bytes_T.tolist()
        sizes = [0 if following and row in ends else told[row] for row in target]
    found = bytes_by_source(targets.target_MV, targets.select_M, some, 3, following)
    assert found.tolist() == looped(some, rows, sizes)
    assert found.sum() == targets.text_bytes
    assert (found > 0).all()


def test_ranks_that_share_a_sequence_add_up_to_the_whole(batch):
    for some in (batch, as_tokens(batch)):
        targets = next_materials(some)
        nats_M = torch.rand(len(targets.select_M))
        whole = [
            nats_by_source(nats_M, targets.select_M, some, 3),
            bytes_by_source(targets.target_MV, targets.select_M, some, 3, True),
        ]
        parts = [torch.zeros(3, dtype=torch.float64) for _ in whole]
        for rows in (slice(0, 0), slice(0, 17), slice(17, None)):
            select_M, target_MV = targets.select_M[rows], targets.target_MV[rows]
            parts[0] += nats_by_source(nats_M[rows], select_M, some, 3)
            parts[1] += bytes_by_source(target_MV, select_M, some, 3, True)
        for part, one in zip(parts, whole, strict=True):
            assert part.tolist() == pytest.approx(one.tolist())


def test_segments_of_a_classification_count_for_their_source(batch):
    assert batch.source_B is not None
    source_S = batch.source_B[batch.sample_S]
    nats_S = torch.rand(len(source_S))
    for part in (slice(0, len(source_S)), slice(3, 9), torch.tensor([5, 1])):
        nats_K, count_K = labels_by_source(nats_S[part], part, batch, 3)
        for source in range(3):
            here = source_S[part] == source
            assert nats_K[source].item() == pytest.approx(nats_S[part][here].sum().item())
            assert count_K[source] == here.sum()


def test_a_source_without_a_row_in_the_batch_has_nothing(batch):
    targets = mask_materials(batch, 0.4, 1)
    nats_M = torch.rand(len(targets.select_M))
    assert nats_by_source(nats_M, targets.select_M, batch, 5)[3:].tolist() == [0, 0]
