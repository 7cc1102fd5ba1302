"""elemdist verify: files, headers, hashes, index and manifest, and the command."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from made_sets import Opened, check, gap, index_of, labelled, mask_row, names_of, packed

from data_prep.verify.check_rows import BEGINNING, BEHIND, EXTRA_LABELS, MEANING, PADDING, TEXT
from data_prep.verify.main import VerifySettings, verify
from elemdist.errors import UserError
from elemdist.rows import DOC, PAD
from tests.conftest import elemdist, expect_user_error


def test_good_sets_are_good(tmp_path: Path) -> None:
    good = [packed(tmp_path / "packed"), labelled(tmp_path / "labelled", n=6)]
    for number, algorithm in enumerate(("zstd:7", "gz", "bz2")):
        more = {"compression": algorithm, "hashes": ("sha1", "xxh64")}
        good.append(packed(tmp_path / str(number), **more))
    good.append(packed(tmp_path / "no hash", hashes=()))
    for path in good:
        for quick in (False, True):
            report = check(path, quick=quick)
            assert report.problems == []
            assert report.warnings == []
        assert report.shards == len(index_of(path)["shards"]) > 5
        assert (
            report.samples == json.loads((path / "manifest.json").read_text())["counts"]["samples"]
        )


def test_every_flipped_bit_of_a_shard_is_found(tmp_path: Path) -> None:
    path = labelled(tmp_path / "set", n=6)
    name = names_of(path)[2]
    whole = (path / name).read_bytes()
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(whole), 60):
        bad = bytearray(whole)
        bad[place] ^= 1 << int(rng.integers(8))
        (path / name).write_bytes(bad)
        for quick in (True, False):
            report = check(path, quick=quick)
            assert any(p.file == name and "hash differs" in p.text for p in report.problems)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("document row", MEANING[BEGINNING]),
        ("text", MEANING[TEXT]),
        ("padding in a row", MEANING[BEHIND]),
        ("padding row", MEANING[PADDING]),
        ("labels", MEANING[EXTRA_LABELS]),
    ],
)
def test_a_flipped_bit_is_found_in_its_sample(tmp_path: Path, place: str, text: str) -> None:
    path = labelled(tmp_path / "set", n=200, samples=3)
    shard = Opened(path, 2)
    rows = shard.rows[1]
    assert rows[0, 0] == DOC
    assert rows[-2, 0] == PAD
    if place == "document row":
        rows[0, 0] ^= 0x80
    elif place == "text":
        rows[np.flatnonzero(rows[:, 0] < 0x80)[0], 0] ^= 0x80
    elif place == "padding in a row":
        rows[0, 3] ^= 1
    elif place == "padding row":
        rows[-1] ^= np.array([0x80, 0, 0, 0], np.uint8)
    else:
        shard.block[1, 1] ^= 1
    shard.write(matching=False)
    told = [p for p in check(path).problems if p.file == shard.name]
    assert [p.sample for p in told] == [None, 1]
    assert "hash differs" in told[0].text
    assert text in told[1].text


def test_header(tmp_path: Path) -> None:
    path = packed(tmp_path / "set")
    for place, text in (
        (0, "header: it says 4 samples, the index 5"),
        (4 + 4 * 3, "header: sample 3 starts at byte"),
        (4 + 4 * 6 + 5, "header: its columns are not those of the index"),
    ):
        shard = Opened(path, 2)
        shard.raw[place] ^= 1
        shard.write()
        for quick in (True, False):
            told = [(p.file, p.text) for p in check(path, quick=quick).problems]
            assert len(told) == 1
            assert told[0][0] == shard.name
            assert told[0][1].startswith(text)
        shard.raw[place] ^= 1
        shard.write()


def test_missing_short_and_swapped_files(tmp_path: Path) -> None:
    path = packed(tmp_path / "set")
    names = names_of(path)
    (path / names[0]).unlink()
    whole = (path / names[2]).read_bytes()
    (path / names[2]).write_bytes(whole[:-1])
    os.rename(path / names[3], path / "x")
    os.rename(path / names[4], path / names[3])
    os.rename(path / "x", path / names[4])
    told = {(p.file, p.text) for p in check(path).problems if p.sample is None}
    assert told == {
        (names[0], "it is missing"),
        (names[2], f"it has {len(whole) - 1:,} bytes instead of {len(whole):,}"),
        (names[3], "its xxh3_128 hash differs"),
        (names[4], "its xxh3_128 hash differs"),
    }


def test_damaged_compressed_shard(tmp_path: Path) -> None:
    path = packed(tmp_path / "set", compression="zstd")
    name = names_of(path)[1]
    bad = bytearray((path / name).read_bytes())
    bad[len(bad) // 2] ^= 4
    (path / name).write_bytes(bad)
    told = [p.text for p in check(path, quick=True).problems]
    assert told[0] == "its xxh3_128 hash differs"
    assert "it cannot be unpacked" in told[1]
    shard = Opened(path, 3)
    index = index_of(path)
    index["shards"][3]["raw_data"]["hashes"]["xxh3_128"] = "0" * 32
    index["shards"][4]["raw_data"]["bytes"] -= 1
    (path / "index.json").write_text(json.dumps(index))
    told = [(p.file, p.text) for p in check(path, quick=True).problems][2:]
    assert told[0] == (shard.name, "unpacked, its xxh3_128 hash differs")
    assert "it unpacks to more than" in told[1][1]


def test_counts_of_the_manifest(tmp_path: Path) -> None:
    path = labelled(tmp_path / "set", n=6)
    whole = json.loads((path / "manifest.json").read_text())

    def told(change: Callable[[dict[str, Any]], Any]) -> list[str]:
        manifest = json.loads(json.dumps(whole))
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))
        problems = check(path).problems
        assert {p.file for p in problems} == {"manifest.json"}
        return [p.text for p in problems]

    counts = whole["counts"]
    for name in ("samples", "documents", "rows", "padding_rows", "separator_rows"):
        wrong = told(lambda manifest, name=name: manifest["counts"].update({name: 7_777}))
        assert wrong == [f"{name} is 7,777, the shards hold {counts[name]:,}"]
    assert "text_bytes - dropped_bytes is" in told(lambda m: m["counts"].update(text_bytes=1))[0]
    assert told(lambda m: m["label_counts"].update({"label 3": 99})) == [
        f"label_counts['label 3'] is 99, the shards hold {whole['label_counts']['label 3']}"
    ]
    assert "padding_share is 0.5" in told(lambda m: m.update(padding_share=0.5))[0]
    assert told(lambda m: m.update(counts=None)) == ["its counts are damaged"]
    assert told(lambda m: m.update(labels=["a", "a"])) == ["labels is no list of different names"]
    assert told(lambda m: m.update(n=True)) == ["n is True"]
    assert told(lambda m: m.update(packing="loose")) == ["packing is 'loose'"]
    assert "it is 'other' version 1" in told(lambda m: m.update(format="other"))[0]


def test_other_columns(tmp_path: Path) -> None:
    path = packed(tmp_path / "set")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"n": 16}))
    problems = check(path).problems
    assert {p.file for p in problems} == set(names_of(path))
    assert all("other columns" in p.text for p in problems)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"raw_data": {"basename": "../x.mds", "bytes": 1, "hashes": {}}}, "outside the folder"),
        ({"raw_data": {"basename": "a/../x.mds", "bytes": 1, "hashes": {}}}, "outside the folder"),
        ({"raw_data": {"basename": "..", "bytes": 1, "hashes": {}}}, "outside the folder"),
        ({"raw_data": {"basename": "x", "bytes": -1, "hashes": {}}}, "'x' has -1 bytes"),
        ({"raw_data": {"basename": "x", "bytes": 1, "hashes": {"md6": ""}}}, "unknown 'md6'"),
        ({"raw_data": None}, "it names no file"),
        ({"samples": True}, "samples is True"),
        ({"format": "xds"}, "it is no MDS shard"),
        ({"column_sizes": []}, "its columns are damaged"),
        (
            {"zip_data": {"basename": "x", "bytes": 1, "hashes": {}}, "compression": "rar"},
            "unknown compression 'rar'",
        ),
    ],
)
def test_index_entries_that_cannot_be(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    path = packed(tmp_path / "set")
    (tmp_path / "x.mds").write_bytes(b"secret")
    index = index_of(path)
    index["shards"][1].update(change)
    (path / "index.json").write_text(json.dumps(index))
    problems = check(path).problems
    assert [(p.file, p.sample) for p in problems] == [("index.json", None)]
    assert problems[0].text.startswith("entry 1: ")
    assert text in problems[0].text


def test_index_that_lists_a_file_twice(tmp_path: Path) -> None:
    path = packed(tmp_path / "set")
    index = index_of(path)
    index["shards"].append(index["shards"][0])
    (path / "index.json").write_text(json.dumps(index))
    assert "as one before does" in check(path).problems[0].text


@pytest.mark.parametrize("name", ["index.json", "manifest.json"])
@pytest.mark.parametrize("content", [None, b"{", b"[]", b"[" * 100_000, b"\xff\xfe"])
def test_damaged_json(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = packed(tmp_path / "set")
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    bad = names_of(path)[1] if name == "manifest.json" else None
    if bad:
        (path / bad).unlink()
    problems = check(path).problems
    assert problems[0].file == name
    assert ("it is missing" if content is None else "damaged") in problems[0].text
    if bad:  # all that can be checked without the manifest
        assert problems[1:] == [(bad, None, "it is missing")]


def test_strangers_are_only_warned_of(tmp_path: Path) -> None:
    path = packed(tmp_path / "set")
    strangers = ["notes.txt", "shard.00099.00000.mds"]
    for name in (*strangers, "rejects.jsonl", "journal.jsonl"):
        (path / name).write_bytes(b"")
    report = check(path)
    assert report.good
    assert report.warnings == [f"{name} is no part of the set" for name in strangers]


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    path = packed(tmp_path / "set")
    for number in (1, 3):
        shard = Opened(path, number)
        mask_row(shard, number)
        shard.write()
    one = check(path)
    assert len(one.problems) >= 2
    assert verify(VerifySettings(str(path), processes=2)) == one


def test_the_command(tmp_path: Path) -> None:
    path = packed(tmp_path / "set")
    done = elemdist("verify", path, "--processes", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{path}: ")
    assert done.stdout.endswith("MB: all good\n")
    shard = Opened(path, 1)
    gap(shard, 3)
    shard.write(matching=False)
    done = elemdist("verify", path, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["good"] is False
    assert told["problems"][:2] == [
        {"file": shard.name, "sample": None, "text": "its xxh3_128 hash differs"},
        {"file": shard.name, "sample": 3, "text": MEANING[BEHIND]},
    ]
    done = elemdist("verify", path)
    assert done.returncode == 1
    assert f"{shard.name}: sample 3: {MEANING[BEHIND]}\n" in done.stdout


def test_mistakes(tmp_path: Path) -> None:
    expect_user_error(elemdist("verify", tmp_path / "no"), "no shard folder", str(tmp_path / "no"))
    packed(tmp_path / "both" / "train")
    expect_user_error(elemdist("verify", tmp_path / "both"), f"name {tmp_path}/both/train")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    expect_user_error(elemdist("verify", tmp_path / "text"), "no shard set")
    (tmp_path / "both/train/index.json").unlink()
    (tmp_path / "both/train/.elemdist").mkdir()
    with pytest.raises(UserError, match="is unfinished"):
        check(tmp_path / "both/train")


def test_a_set_in_an_object_store(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    path = packed(tmp_path / "set", compression="zstd")
    for name in os.listdir(path):
        store.pipe_file(f"/bucket/verify/{name}", (path / name).read_bytes())
    bad = names_of(path)[2]
    url = "memory://bucket/verify"
    assert verify(VerifySettings(url, processes=1)).good
    store.rm(f"/bucket/verify/{bad}")
    report = verify(VerifySettings(url, processes=1))
    assert report.problems == [(bad, None, "it is missing")]
