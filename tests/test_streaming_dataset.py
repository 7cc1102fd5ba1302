from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from elemdist.errors import UserError
from elemdist.ports import free_port
from elemdist.streaming_dataset import MappedDataset, streaming
from tests.conftest import REPOSITORY
from tests.shard_sets import make_set
from tests.streaming_process import OPTIONS, both, same

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def folder(tmp_path) -> str:
    make_set(tmp_path / "set", 70, labels=True)
    return str(tmp_path / "set")


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": False},
        {"shuffle": True},
        {"shuffle": True, "shuffle_algo": "py1s", "batch_size": 7},
        {"shuffle": False, "epoch_size": 33, "sampling_method": "fixed"},
    ],
)
def test_two_epochs_are_those_of_streaming(folder, options):
    options = {"batch_size": 4, **options}
    stock = streaming.StreamingDataset(local=folder, **options)
    mapped = MappedDataset(local=folder, **options)
    first, second = same(stock, mapped), same(stock, mapped)
    assert len(set(first)) == options.get("epoch_size", 70)
    assert (first != second) == options.get("shuffle", False)


def test_whole_batches_hold_the_same_samples(folder):
    stock = list(streaming.StreamingDataset(local=folder, **OPTIONS))
    mapped = MappedDataset(local=folder, **OPTIONS, batched=True)
    loader = streaming.StreamingDataLoader(mapped, batch_size=None)
    batches = list(loader)
    assert [len(batch["rows"]) for batch in batches] == [4] * 17 + [2]
    for name in ("rows", "labels"):
        assert np.array_equal(
            np.concatenate([batch[name] for batch in batches]), np.stack([s[name] for s in stock])
        )


def test_several_streams_and_compressed_ones(tmp_path):
    make_set(tmp_path / "one", 40, seed=1)
    make_set(tmp_path / "two", 30, seed=2, compression="zstd")

    def streams() -> list[streaming.Stream]:
        return [
            streaming.Stream(local=str(tmp_path / "one"), repeat=2),
            streaming.Stream(local=str(tmp_path / "two"), repeat=0.5),
        ]

    mapped = MappedDataset(streams=streams(), **OPTIONS)
    got = list(mapped)
    assert list((tmp_path / "cache").rglob("*.mds"))
    stock = streaming.StreamingDataset(streams=streams(), **OPTIONS)
    assert len(same(stock, got)) >= 40 * 2 + 15


def test_a_remote_set_is_mapped_where_it_lies(tmp_path, folder):
    stock = streaming.StreamingDataset(local=folder, **OPTIONS)
    mapped = MappedDataset(remote=folder, local=str(tmp_path / "local"), **OPTIONS)
    assert len(same(stock, mapped)) == 70
    assert os.listdir(tmp_path / "local") == ["index.json"]


def test_a_new_epoch_ends_the_one_before(folder):
    mapped = MappedDataset(local=folder, **OPTIONS)
    early = iter(mapped)
    next(early)
    late = iter(mapped)
    next(late)
    assert list(early) == []
    assert len(list(late)) == 69


def run_ranks(folder: str, state: Path) -> list[dict]:
    """Two processes as the two ranks of a machine; what each found."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(free_port()), "PYTHONPATH": str(REPOSITORY)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.streaming_process", "ranks", folder, str(state)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_ranks_and_resumption_are_those_of_streaming(tmp_path, folder):
    """On two ranks; a state of one process resumed on two ranks, and one of two on one."""
    mapped = MappedDataset(local=folder, **OPTIONS)
    begun = [int.from_bytes(bytes(s["rows"][0]), "little") for s in itertools.islice(mapped, 20)]
    (tmp_path / "state.json").write_text(json.dumps(mapped.state_dict(20, True)))
    one, two = run_ranks(folder, tmp_path / "state.json")
    assert sorted(one["epoch"] + two["epoch"]) == list(range(70))
    assert sorted(begun + one["resumed"] + two["resumed"]) == list(range(70))

    stock, mapped = both(folder)
    for dataset in (stock, mapped):
        dataset.load_state_dict(one["state"])
    rest = same(stock, mapped)
    assert sorted(one["begun"] + two["begun"] + rest) == list(range(70))
    assert set(same(stock, mapped)) == set(range(70))  # the epoch after it is whole


def test_a_state_is_only_for_its_own_data(tmp_path, folder):
    make_set(tmp_path / "other", 70, seed=5, labels=True)
    mapped = MappedDataset(local=folder, **OPTIONS)
    next(iter(mapped))
    state = mapped.state_dict(1, True)
    other = MappedDataset(local=str(tmp_path / "other"), **OPTIONS)
    with pytest.raises(UserError) as caught:
        other.load_state_dict(state)
    for part in (
        folder,
        str(tmp_path / "other"),
        *(d.sets[0].fingerprint for d in (mapped, other)),
    ):
        assert part in str(caught.value)
    assert len(list(other)) == 70  # nothing of the state was taken
    stock = streaming.StreamingDataset(local=folder, **OPTIONS)
    next(iter(stock))
    mapped = MappedDataset(local=folder, **OPTIONS)
    with pytest.warns(UserWarning, match="does not say which data"):
        mapped.load_state_dict(stock.state_dict(10, True))
    assert len(list(mapped)) == 60


def test_damage_is_found_when_the_set_is_opened(tmp_path, folder):
    shard = Path(folder, "shard.00001.mds")
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    MappedDataset(local=folder, **OPTIONS)
    with pytest.raises(UserError, match=r"shard\.00001\.mds is damaged, its hash differs"):
        MappedDataset(local=folder, **OPTIONS, verify=True)
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"shard\.00001\.mds has .* bytes instead of"):
        MappedDataset(local=folder, **OPTIONS)


def test_sets_that_do_not_fit_are_refused(tmp_path, folder):
    make_set(tmp_path / "other", 20)
    streams = [streaming.Stream(local=path) for path in (folder, str(tmp_path / "other"))]
    with pytest.raises(UserError, match="has not the n, v and labels of"):
        MappedDataset(streams=streams, **OPTIONS)
    with pytest.raises(UserError, match="no cache_limit"):
        MappedDataset(local=folder, cache_limit="1gb", **OPTIONS)


def test_it_travels_to_worker_processes(folder):
    mapped = pickle.loads(pickle.dumps(MappedDataset(local=folder, **OPTIONS)))
    assert sorted(int.from_bytes(bytes(s["rows"][0]), "little") for s in mapped) == [*range(70)]


def test_workers_share_an_epoch(folder):
    mapped = MappedDataset(local=folder, **OPTIONS, batched=True)
    loader = streaming.StreamingDataLoader(mapped, batch_size=None, num_workers=2)
    rows = np.concatenate([batch["rows"] for batch in loader])
    assert sorted(rows[:, 0].copy().view("<u4").ravel().tolist()) == list(range(70))
