"""Shard sets added to others, and runs that are killed on the way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from converted_sets import (
    as_sorted,
    check_counts,
    content,
    labels_of_seed,
    manifest,
    run,
    shards_of,
    texts_of_seed,
)

from data_prep.convert import append_set
from elemdist.errors import UserError


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
