"""Shard sets into others and into text again, by whole runs."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from reference import SAMPLES

from data_prep import append_set, choose, convert, shard
from data_prep.choose import Choice
from data_prep.convert import ConvertSettings
from data_prep.mds_files import MdsFolder
from data_prep.settings import InputSettings, ShardSettings
from elemdist.errors import UserError
from elemdist.rows import documents
from elemdist.shards import ShardSet
from elemdist.streaming_compat import import_streaming
from tests.conftest import ELEMDIST, elemdist, expect_user_error

LABELS = ["news", "sport", "music", "rain", "art"]
DOCS = 8000
PIECES = [*sorted(SAMPLES.values()), "", "x" * 700, "ab " * 90]


def texts_of_seed(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(PIECES, k=rng.randrange(3))) + str(k) for k in range(count)]


def labels_of_seed(count: int, seed: int = 0) -> list[list[str]]:
    rng = random.Random(seed)
    return [sorted(rng.sample(LABELS, rng.randrange(3))) for _ in range(count)]


def write_jsonl(path: Path, texts: list[str], labels: list[list[str]] | None = None) -> Path:
    lines = []
    for k, text in enumerate(texts):
        record: dict[str, Any] = {"text": text}
        if labels is not None:
            record["labels"] = labels[k]
        lines.append(json.dumps(record, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def shards_of(
    path: Path, texts: list[str], labels: list[list[str]] | None = None, **more: Any
) -> Path:
    """A set made by the real run, out of a JSON Lines file beside it."""
    source = write_jsonl(path.with_suffix(".jsonl"), texts, labels)
    values: dict[str, Any] = {"n": 16, "v": 8, "processes": 1, "quiet": True} | more
    values.setdefault("input", InputSettings(labels_field=None if labels is None else "labels"))
    shard.run(ShardSettings([str(source)], str(path), **values))
    return path


def run(sets: list[Path] | Path | str, out: Path | str | None, **more: Any) -> Path:
    inputs = [str(path) for path in ([sets] if isinstance(sets, (Path, str)) else sets)]
    values: dict[str, Any] = {"processes": 1, "quiet": True} | more
    convert.run(ConvertSettings(inputs, None if out is None else str(out), **values))
    return Path(str(out))


def content(path: Path | str) -> tuple[list[bytes], list[list[str]] | None]:
    """Documents of a set and their labels, after all its hashes were compared."""
    shards = ShardSet(str(path))
    shards.verify()
    rows_BNV, labels_BL = shards.gather(np.arange(shards.samples))
    if labels_BL is None:
        return list(documents(rows_BNV)), None
    names = shards.labels or []
    begins = np.nonzero(rows_BNV[:, :, 0] == 0xFD)[0]
    found = [[names[bit] for bit in np.flatnonzero(labels_BL[at])] for at in begins]
    return list(documents(rows_BNV)), found


def samples(path: Path) -> np.ndarray:
    shards = ShardSet(str(path))
    return shards.blocks(np.arange(shards.samples))


def manifest(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return found


def same_shards(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.glob("shard.*"))
    assert names, one
    if names != sorted(path.name for path in other.glob("shard.*")):
        return False
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def check_counts(path: Path) -> None:
    """The manifest of a set that lost nothing says what its rows hold."""
    shards = ShardSet(str(path))
    rows_BNV, labels_BL = shards.gather(np.arange(shards.samples))
    first = rows_BNV[:, :, 0]
    counts = manifest(path)["counts"]
    text = int((rows_BNV < 0xFC).sum())
    assert counts["samples"] == shards.samples
    assert counts["documents"] == (first == 0xFD).sum()
    assert counts["padding_rows"] == (first == 0xFF).sum()
    assert counts["rows"] == (first != 0xFF).sum()
    assert counts["separator_rows"] == (first == 0xFC).sum()
    assert counts["text_bytes"] - counts["dropped_bytes"] == text
    begins = np.append(np.flatnonzero((first == 0xFD).any(axis=1)), shards.samples)
    if manifest(path)["packing"] == "document":
        assert counts["split_documents"] == (np.diff(begins) > 1).sum()
    used = text + counts["documents"] + counts["separator_rows"]
    assert manifest(path)["padding_share"] == round(1 - used / rows_BNV.size, 6)
    if labels_BL is not None:
        own = labels_BL[first[:, 0] == 0xFD].sum(0).tolist()
        assert manifest(path)["label_counts"] == dict(zip(shards.labels or [], own, strict=True))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DOCS documents, of which some go on in further samples; several shards and items."""
    path = tmp_path_factory.mktemp("plain") / "set"
    return shards_of(path, texts_of_seed(DOCS), labels_of_seed(DOCS), shard_mb=1, item_mb=1)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "set"
    return shards_of(path, texts_of_seed(DOCS), packing="packed", shard_mb=1, item_mb=1)


# ---- copying ----


@pytest.mark.parametrize("source", ["plain", "packed"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_copies_keep_every_sample(
    source: str, compression: str | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    original: Path = request.getfixturevalue(source)
    first = run(original, tmp_path / "a", compression=compression, hashes="sha1,xxh64")
    assert np.array_equal(samples(first), samples(original))
    check_counts(first)
    counts = manifest(original)["counts"]
    assert {key: manifest(first)["counts"][key] for key in counts} == counts
    for key in ("n", "v", "segmenter", "packing", "labels", "label_counts", "padding_share"):
        assert manifest(first)[key] == manifest(original)[key]
    entries = json.loads((first / "index.json").read_text())["shards"]
    assert {tuple(entry["raw_data"]["hashes"]) for entry in entries} == {("sha1", "xxh64")}
    # Back again, by two processes, in full shards.
    second = run(first, tmp_path / "b", shard_mb=1, item_mb=1, processes=2)
    assert np.array_equal(samples(second), samples(original))
    sizes = [one.samples for one in MdsFolder(str(second)).shards]
    assert len(sizes) > 1
    assert len(set(sizes[:-1])) == 1
    assert sizes[-1] <= sizes[0]
    check_counts(second)


def test_the_origin_stands_in_the_manifest(plain: Path, tmp_path: Path) -> None:
    first = run(plain, tmp_path / "a")
    second = run(first, tmp_path / "b", n=8)
    (origin,) = manifest(second)["converted_from"]
    assert origin["fingerprint"] == ShardSet(str(first)).fingerprint
    assert (origin["n"], origin["samples"]) == (16, ShardSet(str(first)).samples)
    assert origin["converted_from"][0]["fingerprint"] == ShardSet(str(plain)).fingerprint


def test_merged_sets_are_one_after_the_other(tmp_path: Path) -> None:
    texts, labels = texts_of_seed(300), labels_of_seed(300)
    sets = [
        shards_of(
            tmp_path / str(k), texts[100 * k : 100 * k + 100], labels[100 * k : 100 * k + 100]
        )
        for k in range(3)
    ]
    merged = run(sets, tmp_path / "merged")
    assert content(merged) == ([text.encode() for text in texts], as_sorted(labels, merged))
    check_counts(merged)
    whole = shards_of(tmp_path / "whole", texts, labels)
    assert same_shards(merged, whole)
    assert manifest(merged)["counts"] == manifest(whole)["counts"]


def as_sorted(labels: list[list[str]], path: Path) -> list[list[str]]:
    names = manifest(path)["labels"]
    return [sorted(some, key=names.index) for some in labels]


def test_sets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    texts = texts_of_seed(30)
    a = shards_of(tmp_path / "a", texts)
    for name, more, words in (
        ("b", {"n": 8}, "n 16.*n 8.*--n shards all of them anew"),
        ("c", {"segmenter": "char"}, "segmenter word.*char.*--segmenter"),
        ("d", {"packing": "packed"}, "packing document.*packed.*--packing"),
        ("e", {"labels": labels_of_seed(30)}, "other labels: --keep-labels false"),
    ):
        other = shards_of(tmp_path / name, texts, **more)
        with pytest.raises(UserError, match=words.replace("n 8", "8").replace("n 16", "n 16")):
            run([a, other], tmp_path / "out")
        assert not (tmp_path / "out").exists()
    merged = run([a, tmp_path / "b"], tmp_path / "out", n=12)
    assert content(merged)[0] == [text.encode() for text in texts] * 2
    assert manifest(merged)["n"] == 12
    bare = run([a, tmp_path / "e"], tmp_path / "bare", keep_labels=False)
    assert content(bare) == ([text.encode() for text in texts] * 2, None)
    check_counts(bare)


@pytest.mark.parametrize("shard_mb", [1, 64])
def test_selections_take_whole_documents(shard_mb: int, plain: Path, tmp_path: Path) -> None:
    texts, labels = content(plain)
    assert labels is not None
    first = samples_of_documents(plain)
    more = {"shard_mb": shard_mb, "item_mb": 1}

    def check(name: str, wanted: list[int], **options: Any) -> None:
        path = run(plain, tmp_path / name, **more, **options)
        found = content(path)
        assert found == ([texts[k] for k in wanted], [labels[k] for k in wanted]), name
        check_counts(path)

    numbers = range(len(texts))
    assert max(first) > len(texts), "no document goes on in a second sample"
    check("range", [k for k in numbers if 100 <= first[k] < 2111], samples="100:2111")
    check("from", [k for k in numbers if first[k] >= 3000], samples="3000:")
    check("every", [k for k in numbers if first[k] % 7 == 0], every=7)
    check("labels", [k for k in numbers if set(labels[k]) & {"art", "rain"}],
          with_labels=["art", "rain"])  # fmt: skip
    both = [k for k in numbers if first[k] < 3000 and first[k] % 2 == 0 and "art" in labels[k]]
    check("both", both, samples=":3000", every=2, with_labels=["art"])


def samples_of_documents(path: Path) -> list[int]:
    """The first sample of each document of a set without packing."""
    shards = ShardSet(str(path))
    rows_BNV, _ = shards.gather(np.arange(shards.samples))
    return np.flatnonzero(rows_BNV[:, 0, 0] == 0xFD).tolist()


def test_shares_are_repeatable_and_about_right(plain: Path, tmp_path: Path) -> None:
    texts = content(plain)[0]
    tenth = content(run(plain, tmp_path / "a", share=0.1))[0]
    assert 0.07 < len(tenth) / len(texts) < 0.13
    assert set(tenth) <= set(texts)
    assert tenth == content(run(plain, tmp_path / "b", share=0.1, shard_mb=1, item_mb=1))[0]
    half = content(run(plain, tmp_path / "c", share=0.5))[0]
    assert set(tenth) <= set(half)
    other = content(run(plain, tmp_path / "d", share=0.1, seed=1))[0]
    assert len(set(other) & set(tenth)) < 0.3 * len(tenth)


def test_nothing_chosen(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sample is chosen"):
        run(plain, tmp_path / "out", samples="5:5")
    with pytest.raises(UserError, match=r"no label 'nwes'; did you mean 'news'"):
        run(plain, tmp_path / "out", with_labels=["nwes"])
    with pytest.raises(UserError, match="FIRST:END"):
        run(plain, tmp_path / "out", samples="5")


def test_shuffle(tmp_path: Path, plain: Path) -> None:
    texts = [str(k) for k in range(9000)]
    labels = labels_of_seed(9000)
    path = shards_of(tmp_path / "set", texts, labels, shard_mb=1, item_mb=1)
    orders = []
    for name, seed, mb in (("a", 0, 1), ("b", 0, 1), ("c", 1, 1), ("d", 0, 64)):
        out = run(path, tmp_path / name, shuffle=seed, shard_mb=mb, item_mb=1)
        found, own = content(out)
        order = [int(text) for text in found]
        assert sorted(order) == [*range(9000)]
        assert own == as_sorted([labels[k] for k in order], out)
        check_counts(out)
        orders.append(order)
    assert orders[0] == orders[1] == orders[3] != orders[2]
    assert abs(np.corrcoef(orders[0], range(9000))[0, 1]) < 0.05
    two = run([path, path], tmp_path / "two", shuffle=3)
    assert sorted(content(two)[0]) == sorted([text.encode() for text in texts] * 2)
    with pytest.raises(UserError, match="go on in a second sample"):
        run(plain, tmp_path / "x", shuffle=0)
    squeezed = run(path, tmp_path / "squeezed", compression="zstd")
    with pytest.raises(UserError, match="local and not compressed"):
        run(squeezed, tmp_path / "x", shuffle=0)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 64, 1000, 1025])
def test_a_shuffle_is_a_permutation(total: int) -> None:
    for seed in (0, 1, 2**63, -5):
        found = choose.shuffled(np.arange(total), total, seed)
        assert sorted(found.tolist()) == [*range(total)]
        parts = [choose.shuffled(np.arange(k, k + 1), total, seed) for k in range(total)]
        assert np.concatenate(parts).tolist() == found.tolist()


def test_packed_sets_are_torn_only_when_told(packed: Path, tmp_path: Path) -> None:
    for more in ({"shuffle": 0}, {"every": 2}, {"samples": "5:50"}):
        with pytest.raises(UserError, match="torn apart: --tear"):
            run(packed, tmp_path / "x", **more)
    torn = run(packed, tmp_path / "torn", shuffle=0, tear=True)
    rows, original = (sorted(map(bytes, samples(path))) for path in (torn, packed))
    assert rows == original
    assert manifest(torn)["torn"] is True
    half = run(packed, tmp_path / "half", every=2, tear=True)
    assert np.array_equal(samples(half), samples(packed)[::2])
    with pytest.raises(UserError, match="documents were torn apart"):
        run(torn, tmp_path / "x.jsonl", to="jsonl")
    again = run(torn, tmp_path / "again")
    assert manifest(again)["torn"] is True


def test_damage_is_not_copied(tmp_path: Path) -> None:
    path = shards_of(tmp_path / "set", texts_of_seed(DOCS), shard_mb=1)
    victim = sorted(path.glob("shard.*"))[1]
    good = victim.read_bytes()
    victim.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    for more in ({}, {"every": 5}, {"n": 8}):
        with pytest.raises(UserError, match="is damaged, its hash differs"):
            run(path, tmp_path / "out", **more)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    run(path, tmp_path / "out", verify=False)


def test_what_truncation_lost_stays_told(tmp_path: Path) -> None:
    path = shards_of(tmp_path / "set", texts_of_seed(300), overlong="truncate", segmenter="byte")
    before = manifest(path)["counts"]
    lost = before["truncated_documents"], before["dropped_bytes"]
    assert lost[0] > 10
    copied = manifest(run(path, tmp_path / "copied"))
    assert copied["counts"] == before
    assert copied["converted_from"][0]["truncated_documents"] == 0
    anew = manifest(run(tmp_path / "copied", tmp_path / "anew", overlong="split", n=8))
    origin = anew["converted_from"][0]
    assert anew["counts"]["truncated_documents"] == 0
    assert (origin["truncated_documents"], origin["dropped_bytes"]) == lost
    some = manifest(run(tmp_path / "anew", tmp_path / "some", every=2))
    origin = some["converted_from"][0]
    assert (origin["truncated_documents"], origin["dropped_bytes"]) == lost


# ---- sharding anew ----


@pytest.mark.parametrize(
    "more",
    [
        {"n": 9, "v": 5},
        {"segmenter": "char"},
        {"segmenter": "byte", "n": 64},
        {"overlong": "truncate"},
    ],
)
def test_sharded_anew_is_as_sharded_from_the_text(
    more: dict[str, Any], plain: Path, tmp_path: Path
) -> None:
    anew = run(plain, tmp_path / "anew", **more)
    texts, labels = texts_of_seed(DOCS), labels_of_seed(DOCS)
    wanted = shards_of(tmp_path / "wanted", texts, labels, **({"n": 16, "v": 8} | more))
    assert same_shards(anew, wanted)
    assert manifest(anew)["counts"] == manifest(wanted)["counts"]
    assert manifest(anew)["label_counts"] == manifest(wanted)["label_counts"]


def test_packed_and_back(packed: Path, tmp_path: Path) -> None:
    back = run(packed, tmp_path / "back", packing="document", item_mb=1, processes=2)
    wanted = shards_of(tmp_path / "wanted", texts_of_seed(DOCS))
    assert content(back) == content(wanted)
    again = run(back, tmp_path / "again", packing="packed")
    whole = shards_of(tmp_path / "whole", texts_of_seed(DOCS), packing="packed")
    assert same_shards(again, whole)


def test_labels_keep_their_order_and_their_names(tmp_path: Path) -> None:
    texts = texts_of_seed(30)
    train = shards_of(tmp_path / "train", texts, [["b"], ["a"], ["unused"]] * 10)
    input = InputSettings(labels_field="labels")
    test = shards_of(tmp_path / "test", texts, [["b"]] * 30, input=input, labels_from=str(train))
    anew = run(test, tmp_path / "anew", n=8)
    assert manifest(anew)["labels"] == ["a", "b", "unused"]
    assert content(anew)[1] == [["b"]] * 30
    with pytest.raises(UserError, match="--keep-labels false"):
        run(test, tmp_path / "packed", packing="packed")
    packed = run(test, tmp_path / "packed", packing="packed", keep_labels=False)
    assert manifest(packed)["labels"] is None
    with pytest.raises(UserError, match="do that first"):
        run(test, tmp_path / "x", n=4, every=2)


def test_text_sets_of_streaming(tmp_path: Path) -> None:
    streaming = import_streaming()
    texts, labels = texts_of_seed(2000), labels_of_seed(2000)
    columns = {"text": "str", "tags": "json", "n": "int"}
    with streaming.MDSWriter(
        columns=columns, out=str(tmp_path / "text"), compression="zstd", size_limit=50_000
    ) as writer:
        for k, text in enumerate(texts):
            writer.write({"text": text, "tags": labels[k], "n": k})
    out = run(tmp_path / "text", tmp_path / "out", labels_field="tags", n=16, v=8)
    assert same_shards(out, shards_of(tmp_path / "wanted", texts, labels))
    bare = run(tmp_path / "text", tmp_path / "bare", n=16, v=8)
    assert content(bare) == ([text.encode() for text in texts], None)
    assert manifest(bare)["converted_from"][0]["samples"] == 2000


def test_the_same_command_again_does_nothing(plain: Path, tmp_path: Path) -> None:
    out = run(plain, tmp_path / "out", every=2)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    run(plain, out, every=2)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(UserError, match="not empty"):
        run(plain, out, every=3)


def test_sets_in_an_object_store(plain: Path, tmp_path: Path) -> None:
    url = f"file://{plain}"
    out = run(url, f"file://{tmp_path}/out", compression="gz")
    assert np.array_equal(samples(tmp_path / "out"), samples(plain))
    anew = run(out, tmp_path / "anew", n=8)
    assert content(anew) == content(plain)
    with pytest.raises(UserError, match="local and not compressed"):
        run(url, tmp_path / "x", shuffle=1)


@pytest.mark.parametrize("more", [[], ["--every", "2"], ["--n", "8"]])
def test_a_killed_run_goes_on(more: list[str], plain: Path, tmp_path: Path) -> None:
    def start(out: Path) -> subprocess.Popen[bytes]:
        words = ["convert", str(plain), "--out", str(out), "--shard-mb", "1", "--item-mb", "1"]
        return subprocess.Popen(
            [ELEMDIST, *words, "--processes", "1", *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert start(tmp_path / "whole").wait() == 0
    killed = start(tmp_path / "killed")
    while killed.poll() is None and not list(tmp_path.glob("killed/shard.*.mds")):
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed" / "index.json").exists(), "too late to be killed"
    assert start(tmp_path / "killed").wait() == 0
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in (tmp_path / "killed").iterdir()} == names
    for name in names:
        one, other = ((tmp_path / run / name).read_bytes() for run in ("whole", "killed"))
        assert one == other, name


def test_a_damaged_copy_is_made_anew_from_its_source(plain: Path, tmp_path: Path) -> None:
    out = run(plain, tmp_path / "out", shard_mb=1, item_mb=1)
    victim = sorted(out.glob("shard.*"))[1]
    good = victim.read_bytes()
    victim.write_bytes(good[:-9] + b"?" + good[-8:])
    done = elemdist("verify", out, "--repair")
    assert done.returncode == 0, done.stdout + done.stderr
    assert victim.read_bytes() == good


# ---- text ----


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize("source", ["plain", "packed"])
def test_text_and_back_are_the_same_shards(
    suffix: str, source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    original: Path = request.getfixturevalue(source)
    path = run(original, tmp_path / f"text.{suffix}", to="jsonl")
    raw = path.read_bytes()
    if suffix.endswith("gz"):
        raw = gzip.decompress(raw)
    if suffix.endswith("zst"):
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    records = [json.loads(line) for line in raw.splitlines()]
    assert [record["text"] for record in records] == texts_of_seed(DOCS)
    labelled = source == "plain"
    assert all(("labels" in record) == labelled for record in records)
    settings = ShardSettings([str(path)], str(tmp_path / "again"), n=16, v=8, processes=1)
    settings = dataclasses.replace(settings, quiet=True, packing=manifest(original)["packing"])
    settings.input.labels_field = "labels" if labelled else None
    shard.run(settings)
    packing = manifest(original)["packing"]
    labels = labels_of_seed(DOCS) if labelled else None
    wanted = shards_of(tmp_path / "wanted", texts_of_seed(DOCS), labels, packing=packing)
    assert same_shards(tmp_path / "again", wanted)
    assert [entry.name for entry in tmp_path.iterdir() if ".tmp" in entry.name] == []


def test_parquet(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("data_prep.export_text.GROUP_BYTES", 100_000)
    path = run(plain, tmp_path / "text.parquet", to="parquet")
    file = pq.ParquetFile(path)
    assert file.num_row_groups > 5
    table = file.read()
    assert table["text"].to_pylist() == texts_of_seed(DOCS)
    assert table["labels"].to_pylist() == labels_of_seed(DOCS)
    input = InputSettings(labels_field="labels")
    shard.run(ShardSettings([str(path)], str(tmp_path / "b"), input, n=16, v=8, quiet=True))
    assert content(tmp_path / "b") == content(plain)


def test_a_range_as_text_on_standard_output(plain: Path) -> None:
    first = samples_of_documents(plain)
    done = elemdist("convert", plain, "--to", "jsonl", "--out", "-", "--samples", "50:99")
    assert done.returncode == 0, done.stderr
    wanted = [text for text, at in zip(texts_of_seed(DOCS), first, strict=True) if 50 <= at < 99]
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == wanted


def test_lost_ends_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shards_of(tmp_path / "set", texts_of_seed(30), overlong="truncate")
    run(path, tmp_path / "a.jsonl", to="jsonl")
    count = manifest(path)["counts"]["truncated_documents"]
    assert f"{count} documents had lost their end" in capsys.readouterr().err


def test_text_refuses_what_it_cannot_do(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").touch()
    for out, more, words in (
        (tmp_path / "there.jsonl", {}, "is there already"),
        (tmp_path, {}, "is a folder"),
        (tmp_path / "x.jsonl", {"n": 4}, "n is for shards"),
        (tmp_path / "x.jsonl", {"every": 4}, "every is for shards"),
        ("-", {"to": "parquet"}, "name a file"),
    ):
        with pytest.raises(UserError, match=words):
            run(plain, out, **({"to": "jsonl"} | more))
    with pytest.raises(UserError, match="cannot write"):
        run(plain, tmp_path / "no" / "x.jsonl", to="jsonl")


# ---- appending ----


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    texts, labels = texts_of_seed(900), labels_of_seed(900)
    return [
        shards_of(
            tmp_path / name,
            texts[300 * k : 300 * k + 300],
            labels[300 * k : 300 * k + 300],
            compression="zstd" if k == 0 else None,
            hashes="xxh64,sha1",
        )
        for k, name in enumerate("abc")
    ]


def appended(three: list[Path]) -> None:
    """Checks that the first set holds all three, whole."""
    wanted = [content(path) for path in three[1:]]
    texts, labels = texts_of_seed(900), labels_of_seed(900)
    found = content(three[0])
    assert found == ([text.encode() for text in texts], as_sorted(labels, three[0]))
    assert wanted[0][0] + wanted[1][0] == found[0][300:]
    check_counts(three[0])
    assert not list(three[0].glob(".append*"))
    entries = json.loads((three[0] / "index.json").read_text())["shards"]
    assert {entry["compression"] for entry in entries} == {"zstd"}
    assert all(set(entry["raw_data"]["hashes"]) == {"xxh64", "sha1"} for entry in entries)
    assert len(manifest(three[0])["converted_from"]) == 2
    assert len(manifest(three[0])["sources"]) == 3
    names = {path.name for path in three[0].iterdir()}
    known = {entry["zip_data"]["basename"] for entry in entries}
    assert names == known | {"index.json", "manifest.json", "journal.jsonl"}
    lines = [json.loads(line) for line in (three[0] / "journal.jsonl").read_text().splitlines()]
    assert [name for line in lines[1:] for name in line["shards"]] == [
        entry["zip_data"]["basename"] for entry in entries
    ]


def test_append(three: list[Path]) -> None:
    before = {path.name: path.read_bytes() for path in three[0].glob("shard.*")}
    run(three[1:], None, append=str(three[0]))
    appended(three)
    assert all((three[0] / name).read_bytes() == raw for name, raw in before.items())
    state = {path: path.stat().st_mtime_ns for path in three[0].iterdir()}
    run(three[1:], None, append=str(three[0]))
    run(three[2], None, append=str(three[0]))
    assert {path: path.stat().st_mtime_ns for path in three[0].iterdir()} == state


def test_append_one_after_the_other(three: list[Path]) -> None:
    for path in three[1:]:
        run(path, None, append=str(three[0]))
    appended(three)


class KilledError(BaseException):
    pass


def test_append_killed_anywhere(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before every single change of a file, the set stays as it was or is complete."""
    calls = 0
    stop_at = -1

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise KilledError
            return function(*arguments, **more)

        return call

    backup = three[0].with_name("backup")
    shutil.copytree(three[0], backup)
    old = content(three[0])
    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(os, "unlink", counted(os.unlink))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    run(three[1:], None, append=str(three[0]))
    total = calls
    assert total > 10
    torn = 0
    for stop in range(1, total + 1):
        shutil.copytree(backup, three[0].with_name("work"))
        os.rename(three[0], three[0].with_name("old"))
        os.rename(three[0].with_name("work"), three[0])
        calls, stop_at = 0, stop
        with pytest.raises(KilledError):
            run(three[1:], None, append=str(three[0]))
        stop_at = -1
        try:
            now = content(three[0])
            assert now == old or len(now[0]) == 900
        except UserError:
            torn += 1  # between the manifest and the index, the two cannot be opened
        run(three[1:], None, append=str(three[0]))
        appended(three)
        shutil.rmtree(three[0].with_name("old"))
    assert torn == 1


def test_append_refuses(three: list[Path], tmp_path: Path) -> None:
    target = str(three[0])
    other = shards_of(tmp_path / "other", texts_of_seed(9), labels_of_seed(9), n=8)
    with pytest.raises(UserError, match=r"has n 16.*has 8: convert it first"):
        run(other, None, append=target)
    bare = shards_of(tmp_path / "bare", texts_of_seed(9))
    with pytest.raises(UserError, match="other labels"):
        run(bare, None, append=target)
    with pytest.raises(UserError, match="added to itself"):
        run(three[0], None, append=target)
    with pytest.raises(UserError, match="whole sets"):
        run(three[1], None, append=target, every=2)
    with pytest.raises(UserError, match="leave out"):
        run(three[1], tmp_path / "x", append=target)
    with append_set.locked(target), pytest.raises(UserError, match="another append"):
        run(three[1], None, append=target)


# ---- the command ----


def test_the_command(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = elemdist("convert", plain, "--out", out, "--with-labels", '["art"]', "--n", "16")
    assert done.returncode == 0, done.stderr
    assert "documents" in done.stdout
    texts, labels = content(plain)
    wanted = [text for text, some in zip(texts, labels or [], strict=True) if "art" in some]
    assert content(out)[0] == wanted
    expect_user_error(elemdist("convert", plain), "--out names what to write")
    expect_user_error(elemdist("convert", tmp_path / "no", "--out", "x"), "no shard folder")
    expect_user_error(elemdist("convert", plain, "--out", "x", "--shufle", "1"), "did you mean")


def test_choices_as_text() -> None:
    assert Choice().to_text() == "copy"
    choice = Choice(start=3, end=9, share=0.25, labels=["a b"], tear=True)
    assert Choice.of_text(choice.to_text()) == choice
