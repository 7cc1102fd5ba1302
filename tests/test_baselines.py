"""The statistics that a run is compared with: probabilities, hand-made cases, the same masks."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.evaluate import evaluate
from elemdist.model import Model
from elemdist.model_config import model_config
from elemdist.model_settings import ModelSettings
from elemdist.rows import DOC, ELEMENTS, PAD
from elemdist.shards import ShardSet
from tests.bench import bench_baselines
from tests.bench.ngrams import (
    BYTES,
    MATERIALS,
    SLOTS,
    TRIGRAM,
    Predictors,
    Statistics,
    Symbols,
    Trigram,
    material_keys,
    witten_bell,
)
from tests.conftest import TINY, elemdist

A, B = ord("a"), ord("b")


def rows_of(*materials: bytes, v: int = 3) -> np.ndarray:
    return np.array([list(m.ljust(v, bytes([PAD]))) for m in materials], np.uint8)


def counted(*rows_TV: np.ndarray) -> Predictors:
    found = Statistics(rows_TV[0].shape[1])
    for some in rows_TV:
        found.add(some)
    return Predictors(found)


def text_of(rows_TV: np.ndarray) -> np.ndarray:
    return rows_TV[:, 0] != DOC


DOCUMENT = rows_of(bytes([DOC]), b"a", b"ab", b"abb", b"a")


def test_the_symbols_of_rows_are_their_bytes_and_one_end_mark():
    symbols = Symbols.of(DOCUMENT)
    assert symbols.value_K.tolist() == [DOC, PAD, A, PAD, A, B, PAD, A, B, B, A, PAD]
    assert symbols.row_K.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]
    assert symbols.slot_K.tolist() == [0, 1, 0, 1, 0, 1, 2, 0, 1, 2, 0, 1]
    stream = [PAD, PAD, *symbols.value_K.tolist()]
    assert symbols.before_K.tolist() == [
        ELEMENTS * stream[k] + stream[k + 1] for k in range(len(stream) - 2)
    ]
    chosen = symbols.of_rows(np.array([False, False, False, True, False]))
    assert chosen.value_K.tolist() == [A, B, B]
    assert chosen.before_K[0] == ELEMENTS * B + PAD  # what stood before stays, chosen or not


def test_witten_bell_by_hand():
    # Behind the context stood x three times and y once; z never did. Two kinds in four.
    shorter = np.array([0.5, 0.3, 0.2])
    got = witten_bell(np.array([3, 1, 0]), np.int64(4), np.int64(2), shorter)
    np.testing.assert_allclose(got, [(3 + 1.0) / 6, (1 + 0.6) / 6, 0.4 / 6])
    np.testing.assert_allclose(witten_bell(np.zeros(3), np.int64(0), np.int64(0), shorter), shorter)


def test_every_distribution_sums_to_one():
    rows_TV = np.random.default_rng(0).integers(97, 100, (300, 3)).astype(np.uint8)
    rows_TV[::3, 1:] = PAD
    rows_TV[::50] = rows_of(bytes([DOC]))
    predictors = counted(rows_TV)
    np.testing.assert_allclose(predictors.slot_VE.sum(1), 1)
    assert predictors.byte_E.sum() == pytest.approx(1)
    every = np.arange(ELEMENTS)
    seen, half_seen, unseen = (A, B), (1, A), (1, 2)
    for two, one in (seen, half_seen, unseen):
        before_K = np.full(ELEMENTS, ELEMENTS * two + one)
        assert predictors.trigram.shares(before_K, every).sum() == pytest.approx(1)


def test_materials_share_out_all_that_there_is():
    # Over an alphabet of one byte, v = 2: the materials are "", "a" and "aa".
    rows_TV = rows_of(b"a", b"aa", b"a", b"a", v=2)
    predictors = counted(rows_TV)
    every = rows_of(b"", b"a", b"aa", v=2)
    spelt_M = np.array([0.2, 0.5, 0.3])  # any distribution over them
    np.testing.assert_allclose(
        predictors.material(every, spelt_M), [0.4 / 6, (3 + 1.0) / 6, (1 + 0.6) / 6]
    )
    assert predictors.material(every, spelt_M).sum() == pytest.approx(1)


def test_slots_and_single_bytes_by_hand():
    nats = counted(DOCUMENT).nats(rows_of(b"ab"), np.array([True]))
    # Slot 0: a four times of four. Slot 1: b twice, the end twice. Slot 2: b once, the end once.
    slots = (5 / 260) * (3 / 260) * (2 / 258)
    assert nats[SLOTS] == pytest.approx(-math.log(slots))
    # All slots: a four times, b three, the end three.
    assert nats[BYTES] == pytest.approx(-math.log((5 / 266) * (4 / 266) * (4 / 266)))


def test_the_slot_statistics_are_what_a_model_starts_from():
    config = model_config(
        TrainSettings(model=ModelSettings(layers=1, width=12)), n=8, v=3, labels=None
    )
    model = Model(config)
    text_TV = DOCUMENT[text_of(DOCUMENT)]
    model.expect_elements(torch.from_numpy(text_TV))
    expected_VE = torch.from_numpy(counted(DOCUMENT).slot_VE).float().log()
    torch.testing.assert_close(model.head.bias_VE.detach(), expected_VE)


def test_the_trigram_sees_what_stood_before():
    # The symbol behind "a a" is always b, behind "b a" always c.
    stream = rows_of(bytes([DOC]), *[b"aab", b"bac"] * 50)
    predictors = counted(stream)
    context = np.array([ELEMENTS * A + A, ELEMENTS * B + A])
    value = np.array([B, ord("c")])
    assert (predictors.trigram.shares(context, value) > 0.95).all()
    assert (predictors.trigram.shares(context, value[::-1]) < 0.05).all()
    last = np.zeros(len(stream), bool)
    last[-1] = True
    assert predictors.nats(stream, last)[TRIGRAM] < counted(stream).nats(stream, last)[SLOTS]


def test_a_material_that_was_never_seen_is_spelt():
    rows_TV = rows_of(bytes([DOC]), *[b"ab", b"ba"] * 20)
    predictors = counted(rows_TV)
    strange = np.concatenate([rows_TV, rows_of(b"bb")])
    only = np.zeros(len(strange), bool)
    only[-1] = True
    nats = predictors.nats(strange, only)
    # Two of the 42 shares are left for what was never seen.
    assert nats[MATERIALS] == pytest.approx(nats[TRIGRAM] - math.log(2 / 42))
    known = np.arange(len(strange)) == 1
    assert predictors.nats(strange, known)[MATERIALS] == pytest.approx(-math.log(0.5), rel=0.1)


def test_counting_in_parts_is_counting():
    rows_TV = np.random.default_rng(1).integers(97, 100, (400, 3)).astype(np.uint8)
    rows_TV[:, 2] = PAD
    rows_TV[::100] = rows_of(bytes([DOC]))
    whole = Statistics(3)
    whole.add(rows_TV)
    parts = Statistics(3)
    for part in np.split(rows_TV, 4):  # each begins with its DOC row, as segments do
        parts.add(part)
        parts.merge()
    whole.merge()
    for name in ("slots_VE", "keys", "times"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    # Only the DOC row of a part sees another beginning, and it is not counted.
    np.testing.assert_array_equal(parts.trigrams_EEE, whole.trigrams_EEE)
    assert whole.times.sum() == 396
    assert len(whole.keys) == len(np.unique(rows_TV[text_of(rows_TV)], axis=0))


@pytest.mark.parametrize("v", [1, 8, 12, 16])
def test_materials_have_keys_of_their_own(v):
    rows_TV = np.random.default_rng(v).integers(0, 256, (20_000, v)).astype(np.uint8)
    different = len(np.unique(rows_TV, axis=0))
    assert len(np.unique(material_keys(rows_TV))) == different


def test_a_trigram_without_text_knows_nothing():
    trigram = Trigram(np.zeros((ELEMENTS,) * 3, np.int64))
    np.testing.assert_allclose(trigram.shares(np.array([5]), np.array([7])), 1 / ELEMENTS)


def test_the_benchmark_asks_what_an_evaluation_asks(packed, tmp_path):
    done = elemdist(
        "bench", "baselines", "--train", packed / "train", "--eval", packed / "val",
        "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())[0]["details"]
    assert list(figures) == [SLOTS, BYTES, TRIGRAM, MATERIALS]
    shards = ShardSet(str(packed / "val"))
    settings = TrainSettings(model=ModelSettings(layers=1, width=16))
    model = Model(model_config(settings, shards.n, shards.v)).eval()
    asked = evaluate(model, model.config, shards, settings, torch.device("cpu"), 4)
    for name, one in figures.items():
        assert (one["materials"], one["bytes"]) == (asked["materials"], asked["bytes"])
        assert f"\n{name} " in done.stdout
    # Made text of some dozen words: knowing them helps most, knowing the slots helps.
    bits = [figures[name]["bits_per_byte"] for name in (MATERIALS, TRIGRAM, SLOTS, BYTES)]
    assert bits == sorted(bits)
    assert bits[0] < 0.7 * bits[-1]


def test_a_run_stands_beside_them_and_starts_at_the_slot_statistics(packed, tmp_path):
    run, out = tmp_path / "run", tmp_path / "figures.json"
    small = [*TINY, "--steps", "1", "--optim.lr", "1e-9"]
    done = elemdist("train", "--run-dir", run, "--data.train", packed / "train", *small)
    assert done.returncode == 0, done.stderr
    shards = ["--train", packed / "train", "--eval", packed / "val"]
    done = elemdist("bench", "baselines", *shards, "--run", run, "--json", out)
    assert done.returncode == 0, done.stderr
    (table,) = json.loads(out.read_text())
    figures = table["details"]
    same = {(one["materials"], one["bytes"]) for one in figures.values()}
    assert len(same) == 1
    started = figures[str(run)]["bits_per_byte"]
    assert started == pytest.approx(figures[SLOTS]["bits_per_byte"], rel=0.02)
    assert started < 0.95 * figures[BYTES]["bits_per_byte"]
    assert [one["peer"] for one in table["compared"]] == [SLOTS, BYTES, TRIGRAM, MATERIALS]
    assert table["compared"][0]["ratio"] == started / figures[SLOTS]["bits_per_byte"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--train", "SHARDS"], "go together"),
        (["--run", "x"], "add --train and --eval"),
        (["--train", "SHARDS", "--eval", "SHARDS", "--run", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_get_one_line(words, told, packed, monkeypatch):
    shards = str(packed / "val")
    monkeypatch.setattr("sys.argv", ["bench", *(word.replace("SHARDS", shards) for word in words)])
    with pytest.raises(UserError, match=told) as caught:
        bench_baselines.main()
    assert "\n" not in str(caught.value)
