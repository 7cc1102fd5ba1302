"""The shares and the order of the samples of a mixture."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elemdist.batch_plan import plan_batch
from elemdist.data import Order, training_steps
from elemdist.errors import UserError
from elemdist.mixture import as_mixture, open_mixture, quotas
from elemdist.run_settings import BatchSettings, DataSettings, Source
from elemdist.shards import ShardSet
from elemdist.shuffle import sample_ids, stream
from tests.mixed_sets import SIZES, Sets, make_sets, opened, repeated, weighted
from tests.shard_sets import N, V


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """Sets that tests only read."""
    return make_sets(tmp_path_factory.mktemp("sets"))


def test_a_single_set_keeps_the_order_it_always_had(sets):
    """Numbers of the version before there were mixtures: runs that it began can be resumed."""
    first = [2, 1, 3, 8, 5, 0, 4, 6, 9, 7, 8, 1, 2, 7, 6, 4, 3, 9, 5, 0, 9, 7, 6, 4, 2, 8]
    assert sample_ids(np.arange(26), 10, 5).tolist() == first
    far = np.array([0, 1, 999_999, 1_000_000, 12_345_678_901])
    assert sample_ids(far, 1000, 7).tolist() == [28, 992, 310, 820, 549]
    assert sample_ids(far[[0]], 4097, 123_456).tolist() == [3724]
    shards = ShardSet(str(sets["wiki"][0]))
    for one in (
        as_mixture(shards),
        open_mixture(DataSettings(train=shards.path)),
        opened(sets, wiki={"weight": 3.0}),
        opened(sets, wiki={"repeat": 2.5}),
    ):
        assert one.fingerprint == shards.fingerprint
        places = np.arange(10**6, 10**6 + 120)
        assert (one.sample_ids(places, 9) == sample_ids(places, 50, 9)).all()


@given(
    st.lists(st.tuples(st.integers(50, 10**6), st.floats(1e-1, 10)), min_size=1, max_size=6),
)
@settings(max_examples=100, deadline=None)
def test_quotas_by_weight_are_the_exact_shares_rounded_and_add_up(parts):
    sizes = [size for size, _ in parts]
    found = quotas(sizes, [Source("a", weight=weight) for _, weight in parts])
    total = sum(Fraction(weight) for _, weight in parts)
    assert sum(found) == sum(sizes)
    for quota, (_, weight) in zip(found, parts, strict=True):
        assert abs(quota - sum(sizes) * Fraction(weight) / total) < 1


def test_quotas_by_repeat_are_the_sizes_times_the_repeats():
    sources = [Source("a", repeat=0.5), Source("b", repeat=2.3), Source("c")]
    assert quotas([50, 20, 33], sources) == [25, 46, 33]
    assert quotas([7, 7, 7], [Source(name, weight=1.0) for name in "abc"]) == [7, 7, 7]
    # 10 / 3 each: the first one gets what is left
    assert quotas([4, 4, 2], [Source(name, weight=5.0) for name in "abc"]) == [4, 3, 3]
    with pytest.raises(UserError, match=r"data\.mixture: b with its 20 samples would not get one"):
        quotas([5000, 20], [Source("a"), Source("b", repeat=0.01)])


@pytest.mark.parametrize("make", [weighted, repeated])
def test_every_epoch_has_the_exact_shares_and_no_sample_comes_twice_as_often(sets, make):
    mixture = make(sets)
    size = mixture.epoch_samples
    assert size == sum(mixture.quotas)
    ids = mixture.sample_ids(np.arange(12 * size), seed=3)
    times = np.zeros(mixture.samples, np.int64)
    for epoch in ids.reshape(12, size):
        assert np.bincount(mixture.source_of(epoch)).tolist() == mixture.quotas
        times += np.bincount(epoch, minlength=mixture.samples)
        for source in range(3):
            of = times[mixture.source_of(np.arange(mixture.samples)) == source]
            assert of.max() - of.min() <= 1


def test_the_order_is_random_and_depends_on_seed_epoch_and_source(sets, tmp_path):
    mixture = weighted(sets)
    size = mixture.epoch_samples
    one, two = (mixture.sample_ids(np.arange(2 * size), seed) for seed in (1, 2))
    assert (one != two).mean() > 0.8
    sources = mixture.source_of(one).reshape(2, size)
    assert (sources[0] != sources[1]).mean() > 0.3
    # No source waits for its turn: each has its share of both halves, within five deviations.
    for source, quota in enumerate(mixture.quotas):
        half = int((sources[0][: size // 2] == source).sum())
        assert abs(half - quota / 2) < 5 * (quota / 4) ** 0.5


@pytest.mark.parametrize("make", [weighted, repeated])
def test_the_order_is_what_a_loop_over_the_places_gives(sets, make):
    mixture, seed = make(sets), 11
    size = mixture.epoch_samples

    def one(place: int, samples: int, seed: int) -> int:
        return int(sample_ids(np.array([place]), samples, seed)[0])

    for place in [*range(0, 5 * size, 7), 10**9 + 1]:
        slot, source = one(place, size, stream(seed, 0)), 0
        while slot >= mixture.quotas[source]:
            slot -= mixture.quotas[source]
            source += 1
        running = place // size * mixture.quotas[source] + slot
        number = one(running, mixture.sets[source].samples, stream(seed, source + 1))
        expected = sum(list(SIZES.values())[:source]) + number
        assert mixture.sample_ids(np.array([place]), seed).tolist() == [expected]


def test_the_order_of_a_mixture_stays_as_it_is_from_version_to_version(sets):
    """A run that is resumed by a later version must go on with the samples to come."""
    assert len({stream(seed, number) for seed in range(30) for number in range(30)}) == 900
    places = np.array([0, 1, 2, 3, 4, 5, 102, 103, 104, 10**9])
    assert weighted(sets).sample_ids(places, 1).tolist() == [19, 100, 46, 74, 69, 43, 12, 3, 7, 71]
    assert repeated(sets).sample_ids(places, 1).tolist() == [
        53,
        101,
        46,
        97,
        50,
        43,
        58,
        36,
        65,
        59,
    ]


def test_a_place_gives_its_sample_whatever_is_asked_beside_it(sets):
    mixture = repeated(sets)
    places = np.random.default_rng(0).integers(0, 10**7, 300)
    together = mixture.sample_ids(places, 4)
    assert together.tolist() == [
        int(mixture.sample_ids(places[k : k + 1], 4)[0]) for k in range(300)
    ]
    ends = mixture.sample_ids(np.array([10**15]), 4)
    assert 0 <= ends[0] < mixture.samples
    for bad in (-1, mixture.samples):
        with pytest.raises(IndexError):
            mixture.source_of(np.array([bad]))


@pytest.mark.parametrize(
    ("ranks", "micro", "first"), [(1, 12, 0), (2, 3, 0), (3, 2, 7), (4, 1, 19)]
)
def test_any_number_of_ranks_and_any_first_step_give_the_same_samples(sets, ranks, micro, first):
    mixture = weighted(sets)
    expected = mixture.sample_ids(np.arange(12 * 25), 5)
    rows = np.concatenate([sets[name][1] for name in SIZES])
    plan = plan_batch(BatchSettings(12, 0, micro), N * V, ranks)
    seen = Counter()
    for rank in range(ranks):
        for batches in training_steps(mixture, Order(plan, rank, 5), range(first, 25)):
            for batch in batches:
                assert batch.source_B is not None
                samples = batch.rows_TV.numpy().reshape(-1, N, V)
                places, of = batch.place_S.tolist(), batch.source_B[batch.sample_S].tolist()
                for place, source, sample in zip(places, of, samples, strict=True):
                    assert (sample == rows[expected[place]]).all()
                    assert source == mixture.source_of(expected[[place]])[0]
                    seen[place] += 1
    assert seen == Counter(range(first * 12, 25 * 12))


def test_a_mixture_describes_itself(sets):
    expected = (
        "wiki 25.0% (50 samples, 0.50 x an epoch), code 45.0% (20 samples, 2.25 x an epoch),"
        " law 30.0% (33 samples, 0.91 x an epoch)"
    )
    mixture = opened(sets, wiki={"repeat": 0.5}, code={"repeat": 2.25}, law={"repeat": 0.9})
    assert mixture.quotas == [25, 45, 30]
    assert mixture.describe() == expected
