"""Shard sets copied into others, by whole runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted_sets import (
    DOCS,
    as_sorted,
    check_counts,
    content,
    labels_of_seed,
    manifest,
    run,
    same_shards,
    samples,
    samples_of_documents,
    shards_of,
    texts_of_seed,
)

from data_prep.convert import choose
from data_prep.convert.choose import Choice
from data_prep.readers.mds_files import MdsFolder
from elemdist.errors import UserError
from elemdist.shards import ShardSet
from tests.conftest import elemdist, expect_user_error


@pytest.mark.parametrize("source", ["document_set", "packed_set"])
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


def test_the_origin_stands_in_the_manifest(document_set: Path, tmp_path: Path) -> None:
    first = run(document_set, tmp_path / "a")
    second = run(first, tmp_path / "b", n=8)
    (origin,) = manifest(second)["converted_from"]
    assert origin["fingerprint"] == ShardSet(str(first)).fingerprint
    assert (origin["n"], origin["samples"]) == (16, ShardSet(str(first)).samples)
    assert origin["converted_from"][0]["fingerprint"] == ShardSet(str(document_set)).fingerprint


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
def test_selections_take_whole_documents(shard_mb: int, document_set: Path, tmp_path: Path) -> None:
    texts, labels = content(document_set)
    assert labels is not None
    first = samples_of_documents(document_set)
    more = {"shard_mb": shard_mb, "item_mb": 1}

    def check(name: str, wanted: list[int], **options: Any) -> None:
        path = run(document_set, tmp_path / name, **more, **options)
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


def test_shares_are_repeatable_and_about_right(document_set: Path, tmp_path: Path) -> None:
    texts = content(document_set)[0]
    tenth = content(run(document_set, tmp_path / "a", share=0.1))[0]
    assert 0.07 < len(tenth) / len(texts) < 0.13
    assert set(tenth) <= set(texts)
    assert tenth == content(run(document_set, tmp_path / "b", share=0.1, shard_mb=1, item_mb=1))[0]
    half = content(run(document_set, tmp_path / "c", share=0.5))[0]
    assert set(tenth) <= set(half)
    other = content(run(document_set, tmp_path / "d", share=0.1, seed=1))[0]
    assert len(set(other) & set(tenth)) < 0.3 * len(tenth)


def test_nothing_chosen(document_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sample is chosen"):
        run(document_set, tmp_path / "out", samples="5:5")
    with pytest.raises(UserError, match=r"no label 'nwes'; did you mean 'news'"):
        run(document_set, tmp_path / "out", with_labels=["nwes"])
    with pytest.raises(UserError, match="FIRST:END"):
        run(document_set, tmp_path / "out", samples="5")


def test_shuffle(tmp_path: Path, document_set: Path) -> None:
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
    copied = Path(shutil.copytree(path, tmp_path / "copied"))
    two = run([path, copied], tmp_path / "two", shuffle=3)
    assert sorted(content(two)[0]) == sorted([text.encode() for text in texts] * 2)
    with pytest.raises(UserError, match="4,865 documents cut across samples"):
        run(document_set, tmp_path / "x", shuffle=0)
    squeezed = run(path, tmp_path / "squeezed", compression="zstd")
    with pytest.raises(UserError, match="local and not compressed"):
        run(squeezed, tmp_path / "x", shuffle=0)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 64, 1000, 1025])
def test_a_shuffle_is_a_permutation(total: int) -> None:
    for seed in (0, 1, 2**63, -5):
        found = choose.shuffled(np.arange(total), total, seed)
        assert sorted(found.tolist()) == [*range(total)]
        pieces = np.array_split(np.arange(total), 7)
        parts = [choose.shuffled(piece, total, seed) for piece in pieces]
        assert np.concatenate(parts).tolist() == found.tolist()


def test_packed_sets_are_torn_only_when_told(packed_set: Path, tmp_path: Path) -> None:
    for more in ({"shuffle": 0}, {"every": 2}, {"samples": "5:50"}):
        with pytest.raises(UserError, match="torn apart: --tear"):
            run(packed_set, tmp_path / "x", **more)
    torn = run(packed_set, tmp_path / "torn", shuffle=0, tear=True)
    rows, original = (sorted(map(bytes, samples(path))) for path in (torn, packed_set))
    assert rows == original
    assert manifest(torn)["torn"] is True
    half = run(packed_set, tmp_path / "half", every=2, tear=True)
    assert np.array_equal(samples(half), samples(packed_set)[::2])
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


def test_the_command(document_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = elemdist("convert", document_set, "--out", out, "--with-labels", '["art"]', "--n", "16")
    assert done.returncode == 0, done.stderr
    assert "documents" in done.stdout
    texts, labels = content(document_set)
    wanted = [text for text, some in zip(texts, labels or [], strict=True) if "art" in some]
    assert content(out)[0] == wanted
    expect_user_error(elemdist("convert", document_set), "--out names what to write")
    expect_user_error(elemdist("convert", tmp_path / "no", "--out", "x"), "no shard folder")
    expect_user_error(
        elemdist("convert", document_set, "--out", "x", "--shufle", "1"), "did you mean"
    )


def test_choices_as_text() -> None:
    assert Choice().to_text() == "copy"
    choice = Choice(start=3, end=9, share=0.25, labels=["a b"], tear=True)
    assert Choice.of_text(choice.to_text()) == choice
