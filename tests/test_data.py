from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elemdist.batch_plan import BatchPlan, plan_batch
from elemdist.data import (
    Order,
    evaluation_batches,
    sample_ids,
    shuffled,
    training_steps,
    unpad,
)
from elemdist.rows import DOC, PAD, documents, rows_to_bytes
from elemdist.run_settings import BatchSettings
from elemdist.shards import ShardSet


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000, 4097])
def test_shuffled_is_a_permutation_and_depends_on_the_seed(size):
    one, two = (shuffled(np.arange(size), size, seed) for seed in (1, 2))
    assert sorted(one.tolist()) == list(range(size))
    if size >= 1000:
        assert (one != two).mean() > 0.9
        assert (one != np.arange(size)).mean() > 0.9


def test_shuffled_is_uniform():
    size, trials = 8, 4000
    first = np.concatenate([shuffled(np.arange(1), size, seed) for seed in range(trials)])
    counts = np.bincount(first, minlength=size)
    expected = trials / size
    # chi squared with 7 degrees of freedom: beyond 24.3 once in a thousand
    assert ((counts - expected) ** 2 / expected).sum() < 24.3


def test_shuffling_billions_costs_nothing_up_front():
    ids = shuffled(np.arange(1000), 10**10, 7)
    assert len(set(ids.tolist())) == 1000
    assert ids.min() >= 0
    assert ids.max() < 10**10


def test_every_epoch_holds_every_sample_once_in_another_order():
    ids = sample_ids(np.arange(30), 10, seed=5)
    epochs = ids.reshape(3, 10)
    assert (np.sort(epochs, 1) == np.arange(10)).all()
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize(("world_size", "micro"), [(1, 12), (2, 3), (3, 4), (4, 1)])
def test_a_global_batch_is_the_same_on_any_number_of_ranks(world_size, micro):
    plan = plan_batch(BatchSettings(12, 0, micro), 6, world_size)
    for step in (0, 7):
        places = [
            place
            for rank in range(world_size)
            for places in Order(plan, rank, 1).places(step)
            for place in places.tolist()
        ]
        assert sorted(places) == list(range(step * 12, step * 12 + 12))


def sample(*documents_of: list[bytes], n: int, v: int = 4) -> np.ndarray:
    rows = [row for document in documents_of for row in ([bytes([DOC]), *document])]
    out = np.full((n, v), PAD, np.uint8)
    for row, material in zip(out, rows, strict=False):
        row[: len(material)] = list(material)
    return out


def test_unpad_keeps_every_row_once_and_sorts_segments_by_length():
    one = sample([b"a", b"b", b"c"], [b"d"], n=8)
    two = sample([b"e", b"f"], n=8)
    batch = unpad(np.stack([one, two]), np.array([[1, 0], [0, 1]], np.uint8), np.array([5, 9]))
    assert batch.segments.lengths == [2, 3, 4]
    assert batch.segments.cu_lengths.tolist() == [0, 2, 5, 9]
    assert batch.position_T.tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3]
    assert rows_to_bytes(batch.rows_TV.numpy()) == b"defabc"
    assert batch.sample_S.tolist() == [0, 1, 0]
    assert batch.place_S.tolist() == [5, 9, 5]
    # place in the run * n + row
    assert batch.key_T.tolist() == [44, 45, 72, 73, 74, 40, 41, 42, 43]
    assert batch.text_bytes == 6
    assert batch.bytes_T is None
    assert batch.text_T().tolist() == [False, True, False, True, True, False, True, True, True]
    assert batch.labels_BL is not None
    assert batch.labels_BL.tolist() == [[1, 0], [0, 1]]


def test_a_sample_that_continues_a_document_is_a_segment_of_its_own():
    continued = np.full((3, 4), PAD, np.uint8)
    continued[:, 0] = list(b"xyz")
    batch = unpad(continued[None], None, np.array([0]))
    assert batch.segments.lengths == [3]


def test_a_document_has_ended_where_another_or_padding_follows():
    full = sample([b"a"], [b"b", b"c", b"d"], [b"e", b"f"], n=9)
    padded = sample([b"g", b"h", b"i", b"j"], n=9)
    batch = unpad(np.stack([full, padded]), None, np.array([0, 1]))
    assert batch.segments.lengths == [2, 3, 4, 5]
    assert batch.ended_S.tolist() == [True, False, True, True]


@given(
    st.lists(st.lists(st.sampled_from([b"", b"a", b"bc", b"def"]), max_size=9), min_size=1),
    st.integers(1, 7),
)
@settings(max_examples=100, deadline=None)
def test_unpadding_is_what_a_loop_over_the_rows_gives(documents, n):
    """Packed samples of any length; an empty word stands for the start of a document."""
    words = [word for document in documents for word in [b"", *document]]
    rows = np.full((-(-len(words) // n) * n, 3), PAD, np.uint8)
    for row, word in zip(rows, words, strict=False):
        row[: max(1, len(word))] = list(word or [DOC])
    places = np.arange(len(rows) // n)[::-1] * 3
    found: list[list[tuple[int, bytes]]] = []
    for number, row in enumerate(rows.tolist()):
        if row[0] == DOC or number % n == 0:
            found.append([])
        if row[0] != PAD:
            found[-1].append((int(places[number // n]) * n + number % n, bytes(row)))
    expected = sorted(found, key=len)
    batch = unpad(rows.reshape(-1, n, 3), None, places)
    assert batch.segments.lengths == [len(segment) for segment in expected]
    assert batch.segments.cu_lengths.tolist() == [0, *np.cumsum(batch.segments.lengths)]
    keys = zip(batch.key_T.tolist(), (row.tobytes() for row in batch.rows_TV.numpy()), strict=True)
    assert list(keys) == [row for segment in expected for row in segment]
    assert batch.position_T.tolist() == [k for part in expected for k in range(len(part))]
    assert batch.place_S.tolist() == [segment[0][0] // n for segment in expected]
    assert batch.text_bytes == sum(len(word) for word in words)


def test_a_sample_of_padding_has_no_segment():
    rows = np.stack([sample([b"a"], n=3), sample(n=3)])
    batch = unpad(rows, None, np.array([0, 1]))
    assert batch.segments.lengths == [2]
    assert batch.sample_S.tolist() == [0]


def test_training_batches_hold_the_whole_set_once_an_epoch(packed):
    shards = ShardSet(str(packed / "train"))
    steps = -(-shards.samples // 4)
    got = []
    for rank in range(2):
        order = Order(BatchPlan(4, 2, 1, 1), rank, seed=3)
        for batches in training_steps(shards, order, range(steps)):
            got += [batch.key_T for batch in batches]
    places = torch.cat(got).div(shards.n, rounding_mode="floor").unique()
    assert places.tolist() == list(range(4 * steps))
    ids = sample_ids(np.arange(shards.samples), shards.samples, 3)
    text = b"".join(documents(shards.gather(np.sort(ids))[0]))
    assert text == b"".join(documents(shards.gather(np.arange(shards.samples))[0]))
    assert text.count(b".") >= 350


def test_an_error_in_the_loader_thread_reaches_the_training_loop(packed):
    shards = ShardSet(str(packed / "train"))
    shards.samples += 10_000  # numbers that gather() refuses
    with pytest.raises(IndexError):
        for _ in training_steps(shards, Order(BatchPlan(64, 1, 1, 1), 0, 1), range(1000)):
            pass


def test_evaluation_gives_every_rank_as_many_batches_and_every_sample_once(packed):
    shards = ShardSet(str(packed / "val"))
    seen, passes = [], set()
    for rank in range(3):
        batches = list(evaluation_batches(shards, 2, rank, 3))
        passes.add(len(batches))
        for batch, counted in batches:
            ids = batch.key_T.div(shards.n, rounding_mode="floor").unique().tolist()
            assert counted in (0, len(ids))
            seen += ids if counted else []
    assert len(passes) == 1
    assert sorted(seen) == list(range(shards.samples))
