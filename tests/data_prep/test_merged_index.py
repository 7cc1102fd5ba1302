"""Indexes that streaming's own tools write: merged, of kept or unpacked files, of any hashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_sets import make_set

from data_prep import shard
from data_prep.convert import main as convert
from data_prep.settings import ShardSettings
from data_prep.verify import main as verify
from elemdist.errors import UserError
from elemdist.shards import ShardSet

CONFIG: dict[str, Any] = {
    "version": 2,
    "format": "mds",
    "hashes": [],
    "size_limit": None,
    "column_names": ["text"],
    "column_encodings": ["str"],
    "column_sizes": [None],
}


def mds_of(texts: list[str]) -> bytes:
    """One shard as streaming writes it."""
    config = json.dumps(CONFIG, sort_keys=True).encode()
    samples = [np.uint32(len(text.encode())).tobytes() + text.encode() for text in texts]
    begin = 4 + 4 * (len(texts) + 1) + len(config)
    ends = begin + np.cumsum([0, *map(len, samples)])
    return b"".join(
        [np.uint32(len(texts)).tobytes(), ends.astype("<u4").tobytes(), config, *samples]
    )


def write_set(folder: Path, *names: str, **more: Any) -> None:
    """A set of text with a document in each shard."""
    shards = []
    for name in names:
        content = mds_of([f"text of {name}"])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        info = {"basename": name, "bytes": len(content), "hashes": {}}
        shards.append({"raw_data": info, "zip_data": None, "compression": None, **CONFIG, **more})
        shards[-1]["samples"] = 1
    folder.mkdir(exist_ok=True)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))


def edit(folder: Path, change: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index["shards"][0])
    (folder / "index.json").write_text(json.dumps(index))


def sharded(folder: Path, out: Path, **more: Any) -> dict[str, Any]:
    settings = ShardSettings([str(folder)], str(out), n=16, v=8, processes=1, quiet=True, **more)
    (manifest,) = shard.run(settings).manifests
    return manifest


@pytest.mark.parametrize(
    "names", [("0/a.mds", "1/a.mds"), ("a/b/c.mds",), ("x.mds",), ("é ü/a b.mds", "z.mds")]
)
def test_names_in_folders(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_set(tmp_path / "set", *names)
    assert sharded(tmp_path / "set", tmp_path / "o1")["counts"]["documents"] == len(names)
    convert.run(convert.ConvertSettings([str(tmp_path / "set")], str(tmp_path / "o2"), quiet=True))
    assert len(ShardSet(str(tmp_path / "o2"))) == len(names)
    report = verify.verify(verify.VerifySettings(str(tmp_path / "set")))
    assert report.good
    assert report.samples == len(names)


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry["raw_data"].update(hashes=None),
        lambda entry: entry["raw_data"].update(hashes={"sha512_256": None}),
        lambda entry: entry.update(zip_data=None, compression=None, size_limit="64mb"),
        lambda entry: entry.update(  # the compressed file is gone, the unpacked one is there
            zip_data={"basename": "0/a.mds.zstd", "bytes": 9, "hashes": {}}, compression="zstd"
        ),
        lambda entry: entry.pop("zip_data"),
    ],
    ids=["no hashes", "hash of none", "limit", "unpacked", "no zip_data"],
)
def test_what_other_tools_write_is_read(tmp_path: Path, change: Any) -> None:
    write_set(tmp_path / "set", "0/a.mds")
    edit(tmp_path / "set", change)
    assert sharded(tmp_path / "set", tmp_path / "out")["counts"]["documents"] == 1


OUTSIDE = [
    "../x.mds", "0/../../x.mds", "/x.mds", "0//x.mds", "./x.mds", "0/./x.mds", "", ".", "..",
    "C:x.mds", "c:\\x.mds", "0\\x.mds", "..\\x.mds", "x\0.mds", "0/", 7, None,
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=map(repr, OUTSIDE))
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: Any) -> None:
    write_set(tmp_path / "set", "0/a.mds")
    (tmp_path / "x.mds").write_bytes(mds_of(["secret"]))
    edit(tmp_path / "set", lambda entry: entry["raw_data"].update(basename=name))
    with pytest.raises(UserError, match="outside its folder"):
        sharded(tmp_path / "set", tmp_path / "out")
    report = verify.verify(verify.VerifySettings(str(tmp_path / "set")))
    assert any("outside the folder" in problem.text for problem in report.problems)


@pytest.mark.parametrize("link", ["0/a.mds", "0"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, link: str) -> None:
    write_set(tmp_path / "set", "0/a.mds")
    (tmp_path / "set" / link).rename(tmp_path / "moved")
    (tmp_path / "set" / link).symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match="is a link out of the shard set's folder"):
        sharded(tmp_path / "set", tmp_path / "out")
    report = verify.verify(verify.VerifySettings(str(tmp_path / "set")))
    assert "link out of the folder" in report.problems[0].text


def test_the_links_of_a_hub_cache_stay_within(tmp_path: Path) -> None:
    write_set(tmp_path / "snapshots" / "abc", "0/a.mds")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots/abc/0/a.mds").rename(tmp_path / "blobs" / "1f")
    (tmp_path / "snapshots/abc/0/a.mds").symlink_to("../../../blobs/1f")
    assert sharded(tmp_path / "snapshots/abc", tmp_path / "out")["counts"]["documents"] == 1


def test_a_merged_set_of_rows_is_read_by_the_loader(tmp_path: Path) -> None:
    for compression in (None, "zstd"):
        folder = tmp_path / str(compression)
        make_set(folder, [b"one", b"two"], packing="document", samples=2, compression=compression)
        index = json.loads((folder / "index.json").read_text())
        (folder / "0").mkdir()
        for entry in index["shards"]:
            for info in (entry["raw_data"], entry["zip_data"]):
                if info is not None:
                    name, info["basename"] = info["basename"], f"0/{info['basename']}"
                    if (folder / name).exists():
                        (folder / name).rename(folder / info["basename"])
        (folder / "index.json").write_text(json.dumps(index))
        shards = ShardSet(str(folder), cache=str(tmp_path / "cache"))
        assert len(shards.gather(np.arange(len(shards)))[0]) == 2


def test_files_beside_a_set_and_an_empty_set(tmp_path: Path) -> None:
    write_set(tmp_path / "set", "0/a.mds")
    (tmp_path / "set" / "1").mkdir()
    (tmp_path / "set" / "1" / "b.mds").write_bytes(mds_of(["lost"]))
    left = sharded(tmp_path / "set", tmp_path / "out")["left_out"]
    assert left == {"files beside the shards of a data set": 1}
    with pytest.raises(UserError, match="strict: files beside the shards"):
        sharded(tmp_path / "set", tmp_path / "out2", strict=True)
    write_set(tmp_path / "empty")
    with pytest.raises(UserError, match="empty, there is nothing to convert"):
        sharded(tmp_path / "empty", tmp_path / "out3")
