"""Reading the sets of a mixture, and what is told when they do not go together or are lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

from elemdist import shard_maps
from elemdist.batch_plan import plan_batch
from elemdist.config import TrainSettings
from elemdist.data import Order, training_steps
from elemdist.errors import UserError
from elemdist.file_info import FileInfo
from elemdist.geometry import check_geometry, config_for
from elemdist.mixture import Mixture, open_mixture
from elemdist.run_settings import BatchSettings, DataSettings, Source
from elemdist.shards import ShardSet
from tests.mixed_sets import SIZES, Sets, make_sets, weighted
from tests.shard_sets import LABELS, N, V, edit_json, flip, make_set


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """Sets that tests only read."""
    return make_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture
def in_store(tmp_path, monkeypatch) -> str:
    """The URL of a set in an object store, and a cache of its own for what comes from there."""
    monkeypatch.setenv("ELEMDIST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tests.shard_sets.LABELS", list("abcdefgh"))  # a bit each: see make_set
    make_set(tmp_path / "far", 40, seed=9, labels=True)
    files = fsspec.filesystem("memory")
    files.store.clear()
    for path in (tmp_path / "far").iterdir():
        files.pipe_file(f"/bucket/far/train/{path.name}", path.read_bytes())
    return "memory://bucket/far/train"


def test_sets_on_this_machine_and_in_a_store_are_read_as_one(tmp_path, in_store):
    rows = np.concatenate([make_set(tmp_path / "near", 30, labels=True), np.zeros((40, N, V))])
    rows[30:] = ShardSet(str(tmp_path / "far")).gather(np.arange(40))[0]
    mixture = open_mixture(DataSettings(mixture=[Source(str(tmp_path / "near")), Source(in_store)]))
    assert mixture.names == ["near", "far"]
    cache = tmp_path / "cache" / mixture.sets[1].fingerprint
    mixture.prefetch(np.arange(30))
    assert not cache.exists()
    ids = np.random.default_rng(1).permutation(np.tile(np.arange(70), 2))
    for some in (ids, ids[:5], np.array([3, 2]), np.array([69, 30]), ids[:0]):
        rows_BNV, labels_BL = mixture.gather(some)
        assert rows_BNV.dtype == np.uint8
        assert (rows_BNV == rows[some]).all()
        numbers = np.where(some < 30, some, some - 30)
        assert labels_BL is not None
        assert (labels_BL == (numbers[:, None] % 8 >> np.arange(8)[::-1]) & 1).all()
    assert len(list(cache.glob("*.mds"))) == len(list((tmp_path / "far").glob("*.mds")))
    shutil.rmtree(cache)
    again = open_mixture(DataSettings(mixture=[Source(str(tmp_path / "near")), Source(in_store)]))
    steps = training_steps(again, Order(plan_batch(BatchSettings(4), N * V, 1), 0, 1), range(60))
    assert sum(1 for _ in steps) == 60
    fsspec.filesystem("memory").rm("/bucket/far/train/shard.00001.mds")
    shutil.rmtree(cache)
    again = open_mixture(DataSettings(mixture=[Source(str(tmp_path / "near")), Source(in_store)]))
    steps = training_steps(again, Order(plan_batch(BatchSettings(4), N * V, 1), 0, 1), range(60))
    with pytest.raises(UserError, match=r"far/train/shard\.00001\.mds is missing"):
        list(steps)


@pytest.mark.parametrize("harm", ["removed", "cut short", "emptied"])
def test_a_shard_that_is_lost_during_training_is_named(tmp_path, sets, harm):
    for name in ("wiki", "code"):
        shutil.copytree(sets[name][0], tmp_path / name)
    sources = [Source(str(tmp_path / "wiki")), Source(str(tmp_path / "code"))]
    mixture = open_mixture(DataSettings(mixture=sources))
    mixture.gather(np.arange(50))  # so that these are mapped
    for path in (tmp_path / "wiki").glob("*.mds"):
        path.unlink()
    lost = tmp_path / "code" / "shard.00000.mds"
    content = lost.read_bytes()
    lost.unlink() if harm == "removed" else lost.write_bytes(
        content[:-30] if harm == "cut short" else b""
    )
    assert (mixture.gather(np.arange(50))[0] == sets["wiki"][1]).all()
    steps = training_steps(mixture, Order(plan_batch(BatchSettings(8), N * V, 1), 0, 1), range(99))
    with pytest.raises(UserError, match=str(tmp_path / "code")) as caught:
        list(steps)
    assert "\n" not in str(caught.value)
    lost.write_bytes(content)  # mended, it is read again
    assert (mixture.gather(np.arange(50, 70))[0] == sets["code"][1]).all()


def test_no_more_shards_are_mapped_than_of_a_single_set(sets, monkeypatch):
    monkeypatch.setattr(shard_maps, "_most", 5)
    mixture = weighted(sets)
    rows = np.concatenate([sets[name][1] for name in SIZES])
    ids = np.random.default_rng(2).integers(0, mixture.samples, (9, 20))
    for some in ids:
        assert (mixture.gather(some)[0] == rows[some]).all()
        assert 0 < sum(map(len, shard_maps.open_maps())) <= 5


def test_the_ranks_share_the_verification_of_all_sets(tmp_path, sets, monkeypatch):
    for name in SIZES:
        shutil.copytree(sets[name][0], tmp_path / name)
    mixture = open_mixture(DataSettings(mixture=[Source(str(tmp_path / name)) for name in SIZES]))
    checked = []
    monkeypatch.setattr(FileInfo, "check", lambda self, path: checked.append(path))
    for part in range(3):
        mixture.verify(part, 3)
    assert sorted(checked) == sorted(str(path) for path in tmp_path.rglob("*.mds"))
    monkeypatch.undo()
    for path in sorted(tmp_path.rglob("*.mds")):
        flip(path)
        with pytest.raises(UserError, match=f"{path} is damaged"):
            _ = [mixture.verify(part, 3) for part in range(3)]
        flip(path)


def test_the_fingerprint_is_of_the_sets_and_their_shares(sets, tmp_path):
    def told(*sources: Source) -> str:
        return open_mixture(DataSettings(mixture=list(sources))).fingerprint

    wiki, code = (str(sets[name][0]) for name in ("wiki", "code"))
    shutil.copytree(wiki, tmp_path / "elsewhere")
    one = told(Source(wiki), Source(code, repeat=2.0))
    assert told(Source(str(tmp_path / "elsewhere"), name="other"), Source(code, repeat=2.0)) == one
    others = [
        told(Source(wiki), Source(code)),
        told(Source(code, repeat=2.0), Source(wiki)),
        told(Source(wiki)),
    ]
    assert len({one, *others}) == 4


def alike(
    tmp_path: Path, objective: str = "mlm", **change: object
) -> tuple[Mixture, TrainSettings]:
    """Two sets with labels, of which the second one's manifest is changed, and settings."""
    for name in ("one", "two"):
        make_set(tmp_path / name, 20, labels=True)
        edit_json(tmp_path / name / "manifest.json", lambda m: m.update(segmenter="word"))
    edit_json(tmp_path / "two" / "manifest.json", lambda m: m.update(change))
    wanted = TrainSettings(objective=objective)
    wanted.model.width = 32
    sources = [Source(str(tmp_path / name), repeat=k) for k, name in ((3.0, "one"), (1.0, "two"))]
    return open_mixture(DataSettings(mixture=sources)), wanted


def test_labels_are_those_of_the_sets_and_their_shares_count_by_quota(tmp_path):
    counts = {"a": 20, "b": 10, "c": 0}
    mixture, wanted = alike(tmp_path, "classify", label_counts=counts)
    assert config_for(wanted, mixture).labels == mixture.labels == LABELS
    # of set one a twentieth each, at three quarters of the mixture
    assert mixture.label_shares() == pytest.approx([0.2875, 0.1625, 0.0375])


def test_other_labels_do_not_matter_without_classification(tmp_path):
    mixture, wanted = alike(tmp_path, labels=["c", "b", "a"])
    config_for(wanted, mixture)
    assert (mixture.labels, mixture.label_shares()) == (None, [])
    for ids in (np.arange(30), np.arange(5)):
        assert mixture.gather(ids)[1] is None
    wanted.objective = "classify"
    with pytest.raises(UserError, match=r"two has other labels than .*one, .* --labels-from .*one"):
        config_for(wanted, mixture)


def test_a_set_that_is_cut_otherwise_than_the_model_reads_is_refused(tmp_path):
    """That of an evaluation, too, whose figures would be of something else."""
    mixture, wanted = alike(tmp_path)
    config, two = config_for(wanted, mixture), tmp_path / "two"
    edit_json(two / "manifest.json", lambda m: m.update(segmenter="char"))
    told = r"two: its segmenter is char, but the model was made for word; .* --segmenter word --out"
    with pytest.raises(UserError, match=told):
        check_geometry(config, ShardSet(str(two)))
    wanted.model.input = "byte"
    check_geometry(config_for(wanted, mixture), ShardSet(str(two)))


def test_sets_of_different_tokenizers_are_refused(tmp_path):
    alike(tmp_path)
    for number, name in enumerate(("one", "two")):
        libraries = {"tokenizer_xxh3_128": str(number)}
        change = {"segmenter": "subword", "libraries": libraries}
        edit_json(tmp_path / name / "manifest.json", lambda m, change=change: m.update(change))
    wanted = TrainSettings()
    wanted.model.width = 32
    sources = [Source(str(tmp_path / name)) for name in ("one", "two")]
    mixture = open_mixture(DataSettings(mixture=sources))
    with pytest.raises(UserError, match=r"two was cut by another tokenizer than .*one"):
        config_for(wanted, mixture)


def test_sets_that_do_not_go_together_are_refused_with_the_remedy(tmp_path, monkeypatch):
    mixture, wanted = alike(tmp_path, segmenter="byte")
    with pytest.raises(UserError, match=r"two is of segmenter byte, .*elemdist convert .*two --s"):
        config_for(wanted, mixture)
    wanted.model.input = "byte"  # reads the text, not the rows
    config_for(wanted, mixture)
    monkeypatch.setattr("tests.shard_sets.N", 4)
    make_set(tmp_path / "short")
    sources = [Source(str(tmp_path / "one")), Source(str(tmp_path / "short"))]
    expected = r"short has n=4, v=4, but .*one n=6, v=4; .* convert .*short --n 6 --v 4 --out DIR"
    with pytest.raises(UserError, match=expected):
        open_mixture(DataSettings(mixture=sources))
    missing = DataSettings(mixture=[Source(str(tmp_path / "one")), Source(str(tmp_path / "none"))])
    with pytest.raises(UserError, match=r"no shard folder .*none"):
        open_mixture(missing)
