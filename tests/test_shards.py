from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from elemdist.errors import UserError
from elemdist.shards import ShardSet
from tests.shard_sets import N, V, all_ids, edit_json, flip, make_set


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ELEMDIST_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("labels", [False, True])
def test_gather_gives_the_samples_asked_for_in_their_order(tmp_path, labels):
    rows = make_set(tmp_path / "set", labels=labels)
    shards = ShardSet(str(tmp_path / "set"))
    assert len(list((tmp_path / "set").glob("*.mds"))) > 3
    ids = np.concatenate([all_ids(shards), [0, 0, 49], np.tile(all_ids(shards), 7)])
    for some in (ids, ids[:40], ids[:3], np.arange(5), np.array([7]), ids[:0]):
        rows_BNV, labels_BL = shards.gather(some)
        assert (rows_BNV == rows[some]).all()
        assert rows_BNV.flags.writeable
        if labels:
            expected = (some[:, None] % 8 >> np.array([7, 6, 5])) & 1
            assert (labels_BL == expected).all()
    for bad in (50, -1):
        with pytest.raises(IndexError):
            shards.gather(np.array([bad]))


def test_a_set_travels_to_worker_processes(tmp_path):
    rows = make_set(tmp_path / "set")
    shards = ShardSet(str(tmp_path / "set"))
    shards.gather(np.arange(50))
    packed = pickle.dumps(shards)
    assert len(packed) < 20_000  # no shard in it
    assert (pickle.loads(packed).gather(np.arange(50))[0] == rows).all()


@pytest.mark.parametrize(
    "hashes", [["sha1"], ["sha256", "xxh64"], ["md5", "xxh128"], ["blake2b", "sha3_256"]]
)
def test_any_hash_of_hashlib_and_xxhash_is_compared(tmp_path, hashes):
    make_set(tmp_path / "set", hashes=hashes)
    shards = ShardSet(str(tmp_path / "set"))
    shards.verify()
    flip(tmp_path / "set" / "shard.00002.mds")
    shards.verify(0, 2 * len(hashes) + 50)  # a part without it
    with pytest.raises(UserError, match=r"shard\.00002\.mds is damaged, its hash differs"):
        shards.verify()


@pytest.mark.parametrize("hashes", [{}, {"crc9": "00"}, {"shake_128": "00"}])
def test_without_a_known_hash_only_sizes_are_compared(tmp_path, hashes):
    make_set(tmp_path / "set", hashes=[])
    edit_json(
        tmp_path / "set" / "index.json",
        lambda index: [entry["raw_data"].update(hashes=hashes) for entry in index["shards"]],
    )
    shards = ShardSet(str(tmp_path / "set"))
    flip(tmp_path / "set" / "shard.00002.mds")
    shards.verify()
    with open(tmp_path / "set" / "shard.00002.mds", "ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"shard\.00002\.mds has \d+ bytes instead of"):
        shards.verify()


@pytest.mark.parametrize("name", ["../x.mds", "/etc/passwd", "a/../../b.mds", "..", "", "."])
@pytest.mark.parametrize("key", ["raw_data", "zip_data"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, key, name):
    make_set(tmp_path / "set", compression="zstd")
    edit_json(
        tmp_path / "set" / "index.json",
        lambda index: index["shards"][1][key].update(basename=name),
    )
    for path in (str(tmp_path / "set"), f"file://{tmp_path}/set"):
        with pytest.raises(UserError, match="names a file outside its folder"):
            ShardSet(path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("manifest.json", lambda m: m["counts"].update(samples=51), "disagree, 50 and 51 samples"),
        ("index.json", lambda i: i["shards"].pop(), "index.json and manifest.json disagree"),
        ("manifest.json", lambda m: m["counts"].pop("samples"), "is damaged"),
        ("manifest.json", lambda m: m.update(n=4), "is damaged"),
        ("manifest.json", lambda m: m.update(version=9), "reads elemdist-shards version 1"),
        ("index.json", lambda i: i["shards"][0].update(samples=-1), "is damaged"),
        ("index.json", lambda i: i["shards"][0]["raw_data"].update(bytes=1 << 40), "is damaged"),
        ("index.json", lambda i: i["shards"][0]["raw_data"].pop("hashes"), "is damaged"),
        ("index.json", lambda i: i.update(shards=3), "is damaged"),
    ],
)
def test_an_index_or_manifest_that_cannot_be_is_refused(tmp_path, file, change, message):
    make_set(tmp_path / "set")
    edit_json(tmp_path / "set" / file, change)
    with pytest.raises(UserError, match=message):
        ShardSet(str(tmp_path / "set"))


def test_sizes_are_compared_when_a_set_is_opened(tmp_path):
    make_set(tmp_path / "set")
    shard = tmp_path / "set" / "shard.00001.mds"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard\.00001\.mds has .* bytes instead of"):
        ShardSet(str(tmp_path / "set"))
    shard.unlink()
    with pytest.raises(UserError, match=r"shard\.00001\.mds is missing"):
        ShardSet(str(tmp_path / "set"))


def test_a_header_of_another_set_is_refused(tmp_path):
    make_set(tmp_path / "set", hashes=[])
    flip(tmp_path / "set" / "shard.00001.mds", 9)
    shards = ShardSet(str(tmp_path / "set"))
    with pytest.raises(UserError, match="its header is not that of the set"):
        shards.gather(np.arange(50))


def test_a_folder_without_an_index_says_why(tmp_path):
    for path in (str(tmp_path / "none"), f"file://{tmp_path}/none"):
        with pytest.raises(UserError, match="make one with `elemdist shard`"):
            ShardSet(path)
    make_set(tmp_path / "both" / "train")
    (tmp_path / "half" / ".elemdist").mkdir(parents=True)
    for start in (str(tmp_path), f"file://{tmp_path}"):
        with pytest.raises(UserError, match=f"name {start}/both/train"):
            ShardSet(f"{start}/both")
        with pytest.raises(UserError, match="is unfinished: run the same `elemdist shard` command"):
            ShardSet(f"{start}/half")
        with pytest.raises(UserError, match=r"half/train is unfinished"):
            ShardSet(f"{start}/half/train")
    (tmp_path / "both" / "train" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        ShardSet(str(tmp_path / "both" / "train"))


def test_no_secret_of_a_url_is_told(tmp_path):
    with pytest.raises(UserError) as caught:
        ShardSet("memory://user:secret@bucket/none?signature=secret")
    assert "secret" not in str(caught.value)


def test_the_shapes_are_those_of_the_manifest(tmp_path):
    make_set(tmp_path / "set", labels=True)
    shards = ShardSet(str(tmp_path / "set"))
    assert (shards.n, shards.v, len(shards), shards.labels) == (N, V, 50, ["a", "b", "c"])
    assert shards.some_rows(10).shape == (60, V)
    assert shards.label_shares() == [1 / 50] * 3
    assert json.loads((tmp_path / "set/manifest.json").read_text()) == shards.manifest
