"""elemdist verify --repair: damaged shards come back byte for byte, or stay as they are."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from made_sets import Opened, mask_row

from data_prep import shard
from data_prep.convert import main as convert
from data_prep.convert.main import ConvertSettings
from data_prep.settings import InputSettings, ShardSettings
from data_prep.verify.main import Report, VerifySettings, verify
from tests.conftest import elemdist

WORDS = ["Regen", "cloud", "storm", "nuage", "ветер", "雨", "frost", "the", "of", "was", "👍"]


def write_records(path: Path, count: int, seed: int = 1) -> Path:
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = " ".join(rng.choices(WORDS, k=rng.randrange(1, 60)))
            record = {"id": number, "text": text, "labels": rng.sample("abcdefghijk", 2)}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def make(out: Path, inputs: list[Path], **more: Any) -> dict[str, bytes]:
    """A set of two shards and more for each of several items; its files' content by name."""
    values = {"n": 16, "v": 12, "item_mb": 1, "shard_mb": 1, "processes": 1, "quiet": True} | more
    shard.run(ShardSettings([str(path) for path in inputs], str(out), **values))
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def shards_of(whole: dict[str, bytes]) -> list[str]:
    return [name for name in whole if ".mds" in name]


def repair(folder: Path | str, **more: Any) -> Report:
    return verify(VerifySettings(str(folder), processes=1, repair=True, **more))


def spoil(path: Path) -> None:
    """Another byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("source") / "a.jsonl", 11_000)


BY_ID = {"split_by": "id", "input": InputSettings(id_field="id")}
MADE: dict[str, dict[str, Any]] = {
    "packed": {"packing": "packed"},
    "truncated": {"overlong": "truncate", "segmenter": "byte"},
    "labelled": {"input": InputSettings(labels_field="labels")},
    "compressed": {"compression": "zstd", "hashes": "sha256,xxh64", "packing": "packed"},
    "split": {
        "split": "train=0.7,val=0.3",
        "split_by": "id",
        "input": InputSettings(id_field="id"),
    },
    "held out": {"holdout_last": 3000},
    "without duplicates": {"dedup": "exact"},
}


@pytest.mark.parametrize("kind", sorted(MADE))
def test_damaged_shards_come_back(tmp_path: Path, source: Path, kind: str) -> None:
    inputs = [source, source] if kind == "without duplicates" else [source]
    whole = make(tmp_path / "set", inputs, **MADE[kind])
    (tmp_path / "set" / ".hidden").write_text("mine")
    whole[".hidden"] = b"mine"
    for folder in sorted({name.rpartition("/")[0] for name in shards_of(whole)}):
        place = tmp_path / "set" / folder
        names = [os.path.basename(name) for name in shards_of(whole) if name.startswith(folder)]
        assert len(names) > 2
        assert verify(VerifySettings(str(place), processes=1)).good
        (place / names[0]).unlink()
        spoil(place / names[-1])
        report = repair(place)
        assert report.good, report.problems
        assert report.repaired == [names[0], names[-1]]
        assert report.not_repaired == {}
    assert contents(tmp_path / "set") == whole
    assert not (tmp_path / "set" / ".elemdist-repair").exists()


def test_many_files_in_an_item_some_compressed_one_rejected(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(30):
        text = "\n".join(random.Random(number).choices(WORDS, k=4000))
        (tmp_path / "in" / f"{number}.txt").write_text(text)
        (tmp_path / "in" / f"{number}.md.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "in" / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "in" / "empty.txt").write_bytes(b"")
    whole = make(tmp_path / "set", [tmp_path / "in"], packing="packed", on_error="skip")
    assert "rejects.jsonl" in whole
    for name in shards_of(whole):
        (tmp_path / "set" / name).unlink()
    assert repair(tmp_path / "set").good
    assert contents(tmp_path / "set") == whole


def test_the_time_of_change_of_a_source_does_not_matter(tmp_path: Path, source: Path) -> None:
    own = Path(shutil.copy(source, tmp_path / "a.jsonl"))
    whole = make(tmp_path / "set", [own])
    spoil(tmp_path / "set" / shards_of(whole)[0])
    os.utime(own, (1, 1))
    assert repair(tmp_path / "set").good
    assert contents(tmp_path / "set") == whole


def change_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"cloud", b"clowd", 1))


def make_longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (change_byte, "which it was made from, has changed"),
        (make_longer, "has changed: it has"),
        (Path.unlink, "no such file"),
    ],
)
def test_a_changed_source_is_refused(
    tmp_path: Path, source: Path, change: Callable[[Path], None], text: str
) -> None:
    first = Path(shutil.copy(source, tmp_path / "a.jsonl"))
    second = write_records(tmp_path / "b.jsonl", 20_000, seed=2)
    whole = make(tmp_path / "set", [first, second])
    names = [shards_of(whole)[0], shards_of(whole)[-1]]
    for name in names:
        spoil(tmp_path / "set" / name)
    bad = (tmp_path / "set" / names[0]).read_bytes()
    change(first)
    report = repair(tmp_path / "set")
    assert report.repaired == [names[1]]  # of the other source
    assert list(report.not_repaired) == [names[0]]
    assert text in report.not_repaired[names[0]]
    assert str(first) in report.not_repaired[names[0]]
    assert {problem.file for problem in report.problems} == {names[0]}
    assert contents(tmp_path / "set") == whole | {names[0]: bad}


def test_what_comes_out_otherwise_is_left(tmp_path: Path, source: Path) -> None:
    whole = make(tmp_path / "set", [source])
    name = shards_of(whole)[1]
    index = json.loads(whole["index.json"])
    index["shards"][1]["raw_data"]["hashes"]["xxh3_128"] = "0" * 32
    (tmp_path / "set" / "index.json").write_text(json.dumps(index))
    report = repair(tmp_path / "set")
    assert "it is not the shard of the index" in report.not_repaired[name]
    assert not report.good
    assert (tmp_path / "set" / name).read_bytes() == whole[name]
    index["shards"][1]["raw_data"]["hashes"] = {}
    (tmp_path / "set" / "index.json").write_text(json.dumps(index))
    (tmp_path / "set" / name).unlink()
    assert "no hash" in repair(tmp_path / "set").not_repaired[name]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (None, "no journal.jsonl"),
        (lambda lines: lines.clear(), "journal.jsonl is damaged"),
        (lambda lines: lines[0].update(version=2), "is no elemdist-journal version 1"),
        (lambda lines: lines[0].update(sets=["../x"], set="../x"), "a set named '../x'"),
        (lambda lines: lines[0].update(set="other"), "the set 'other'"),
        (lambda lines: lines[0]["settings"].update(color=1), "journal.jsonl is damaged"),
        (lambda lines: lines[0]["settings"].update(n=0), "n: 0 is below 2"),
        (lambda lines: lines[1].update(parts=[{}]), "journal.jsonl is damaged"),
        (lambda lines: lines[1].update(dropped="zz"), "journal.jsonl is damaged"),
        (lambda lines: lines[1]["parts"][0].update(path=5), "it cannot be made from what"),
        (
            lambda lines: lines[0]["settings"]["input"].update(text_field=[]),
            "text_field is [], not text",
        ),
        (lambda lines: lines[1].update(shards=[]), "does not tell what it was made from"),
    ],
)
def test_a_journal_that_cannot_be_used(
    tmp_path: Path, source: Path, change: Callable[[Any], Any] | None, text: str
) -> None:
    whole = make(tmp_path / "set", [source])
    journal = tmp_path / "set" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    if change is None:
        journal.unlink()
    else:
        change(lines)
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    name = shards_of(whole)[0]
    (tmp_path / "set" / name).unlink()
    report = repair(tmp_path / "set")
    assert text in report.not_repaired[name]
    assert [problem.text for problem in report.problems] == ["it is missing"]
    assert not (tmp_path / "set" / ".elemdist-repair").exists()


COPIED: dict[str, dict[str, Any]] = {
    "joined": {"shard_mb": 2, "item_mb": 2},
    "selected": {"every": 2, "compression": "zstd"},
    "shuffled": {"shuffle": 1, "tear": True},
    "torn": {"every": 3, "tear": True},
    "sharded anew": {"n": 8, "shard_mb": 1},
}


@pytest.mark.parametrize("kind", sorted(COPIED))
def test_sets_made_of_sets(tmp_path: Path, source: Path, kind: str) -> None:
    # Rows that cut characters, so that torn samples begin and end within one.
    torn = {"packing": "packed", "segmenter": "byte"} if "tear" in COPIED[kind] else {}
    make(tmp_path / "from", [source], **torn)
    out = tmp_path / "set"
    sets = [str(tmp_path / "from")]
    convert.run(ConvertSettings(sets, str(out), quiet=True, processes=1, **COPIED[kind]))
    whole = contents(out)
    assert verify(VerifySettings(str(out), processes=1)).good
    for name in shards_of(whole):
        spoil(out / name)
    report = repair(out)
    assert report.good, report
    assert report.repaired == shards_of(whole)
    assert contents(out) == whole
    spoil(out / shards_of(whole)[0])
    spoil(tmp_path / "from" / shards_of(contents(tmp_path / "from"))[0])
    report = repair(out)
    assert not report.good
    assert "its hash differs" in report.not_repaired[shards_of(whole)[0]]


def test_sound_shards_with_bad_rows_are_not_touched(tmp_path: Path, source: Path) -> None:
    """Of a shard that was written so, nothing better can be made: the journal is not asked."""
    make(tmp_path / "set", [source], v=4, n=8, packing="packed")
    opened = Opened(tmp_path / "set", 0)
    mask_row(opened, 2)
    opened.write()
    before = contents(tmp_path / "set")
    report = repair(tmp_path / "set")
    assert report.repaired == []
    assert report.not_repaired == {}
    assert [problem.sample for problem in report.problems if problem.sample is not None] == [2]
    assert contents(tmp_path / "set") == before


def test_a_set_in_an_object_store(tmp_path: Path, source: Path) -> None:
    store = fsspec.filesystem("memory")
    whole = make(tmp_path / "set", [source])
    for name, content in whole.items():
        store.pipe_file(f"/bucket/repair/{name}", content)
    name = shards_of(whole)[1]
    store.rm(f"/bucket/repair/{name}")
    report = repair("memory://bucket/repair")
    assert report.good
    assert report.repaired == [name]
    there = {path.rpartition("/")[2] for path in store.find("/bucket/repair")}
    assert there == set(whole)
    assert store.cat_file(f"/bucket/repair/{name}") == whole[name]


def test_the_command_with_several_processes(tmp_path: Path, source: Path) -> None:
    whole = make(tmp_path / "set", [source])
    names = shards_of(whole)
    for name in (names[0], names[-1]):
        (tmp_path / "set" / name).unlink()
    done = elemdist("verify", tmp_path / "set", "--repair", "--processes", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"repaired: {names[0]}\nrepaired: {names[-1]}\n" in done.stdout
    assert contents(tmp_path / "set") == whole
    spoil(tmp_path / "set" / names[0])
    (tmp_path / "set" / "journal.jsonl").unlink()
    done = elemdist("verify", tmp_path / "set", "--repair")
    assert done.returncode == 1
    assert f"not repaired: {names[0]}: no journal.jsonl" in done.stdout
