"""Whole runs: text in, shard set out."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from reference import SAMPLES

from data_prep import plan, shard
from data_prep.inspect import main as show
from data_prep.readers.sources import find_sources
from data_prep.settings import InputSettings, ShardSettings
from elemdist.rows import documents
from elemdist.shards import ShardSet

TEXTS = sorted(SAMPLES.values())


def settings_for(inputs: list[Path | str], out: Path, **more: Any) -> ShardSettings:
    values = {"n": 16, "v": 8, "processes": 1, "quiet": True} | more
    return ShardSettings([str(path) for path in inputs], str(out), **values)


def texts_of(folder: str | Path) -> list[str]:
    shards = ShardSet(str(folder))
    shards.verify()
    rows_BNV, _ = shards.gather(np.arange(shards.samples))
    return [document.decode() for document in documents(rows_BNV)]


def write_jsonl(path: Path, texts: list[str], labels: list[Any] | None = None) -> Path:
    records: list[dict[str, Any]] = [{"id": k, "text": text} for k, text in enumerate(texts)]
    for record, label in zip(records, labels or [], strict=False):
        record["labels"] = label
    lines = [json.dumps(record, ensure_ascii=bool(k % 2)) for k, record in enumerate(records)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("packing", ["document", "packed"])
def test_jsonl(tmp_path: Path, suffix: str, packing: str) -> None:
    plain = write_jsonl(tmp_path / "a.jsonl", [*TEXTS, "", "x" * 3000])
    path = Path(f"{plain}{suffix}")
    if suffix == ".gz":  # several members, and zeros behind them, as tapes and tools leave them
        raw = plain.read_bytes()
        path.write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]) + b"\0" * 100)
    if suffix == ".zst":
        raw = plain.read_bytes()
        pack = zstandard.ZstdCompressor().compress
        path.write_bytes(pack(raw[:1000]) + pack(raw[1000:]))
    summary = shard.run(settings_for([path], tmp_path / "out", packing=packing))
    assert texts_of(tmp_path / "out") == [*TEXTS, "", "x" * 3000]
    source = summary.manifests[0]["sources"][0]
    assert (source["start"], source["end"]) == (0, path.stat().st_size)
    assert summary.manifests[0]["counts"]["documents"] == len(TEXTS) + 2


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ("file", ["\n\none\ntwo\r\n \t\n\nthree  \n\n"]),
        ("line", ["", "", "one", "two\r", " \t", "", "three  ", ""]),
        ("block", ["one\ntwo\r", "three  "]),
    ],
)
def test_text_documents(tmp_path: Path, document: Any, wanted: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\none\ntwo\r\n \t\n\nthree  \n\n")
    input = InputSettings(document=document)
    shard.run(settings_for([path], tmp_path / "out", input=input))
    assert texts_of(tmp_path / "out") == wanted


def test_blocks_and_lines_over_the_ends_of_pieces(tmp_path: Path) -> None:
    blocks = [f"block {k}\n" + "line\n" * (k % 7) + "y" * (k * 37 % 5000 + 1) for k in range(900)]
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(blocks))
    for document, wanted in (("block", blocks), ("line", path.read_text().split("\n"))):
        input = InputSettings(document=document)  # type: ignore[arg-type]
        out = tmp_path / document
        shard.run(settings_for([path], out, input=input, packing="packed"))
        assert texts_of(out) == wanted


def test_folder_glob_and_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "a/9.txt", "c.txt", "no.pdf", ".hidden.txt", ".git/x.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    shard.run(settings_for([tmp_path / "in"], tmp_path / "folder"))
    assert texts_of(tmp_path / "folder") == ["c.txt", "a/9.txt", "b/1.txt", "b/2.txt"]
    shard.run(settings_for([f"{tmp_path}/in/**/*.txt"], tmp_path / "glob"))
    assert sorted(texts_of(tmp_path / "glob")) == ["a/9.txt", "b/1.txt", "b/2.txt", "c.txt"]
    every = InputSettings(format="text")
    shard.run(settings_for([tmp_path / "in"], tmp_path / "text", input=every))
    assert "no.pdf" in texts_of(tmp_path / "text")


def many_documents(count: int) -> list[str]:
    return [f"{k}: {TEXTS[k % len(TEXTS)] * (k % 5)}" for k in range(count)]


def test_same_shards_for_any_number_of_processes(tmp_path: Path) -> None:
    texts = many_documents(9000)
    labels = [[f"l{k % 7}", str(k % 3)] for k in range(len(texts))]
    path = write_jsonl(tmp_path / "a.jsonl", texts, labels)
    assert path.stat().st_size > 2 << 20
    small = [write_jsonl(tmp_path / f"b{k}.jsonl", texts[:50], labels) for k in range(3)]
    input = InputSettings(labels_field="labels")
    for processes in (1, 2):
        shard.run(
            settings_for(
                [path, *small],
                tmp_path / str(processes),
                input=input,
                item_mb=1,
                shard_mb=1,
                holdout_last=1000,
                processes=processes,
            )
        )
    one, two = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*.*")}
        for root in (tmp_path / "1", tmp_path / "2")
    )
    assert one == two
    assert len(one) > 8
    every = texts + texts[:50] * 3
    assert texts_of(tmp_path / "2/train") == every[:-1000]
    assert texts_of(tmp_path / "2/val") == every[-1000:]
    train = ShardSet(str(tmp_path / "2/train"))
    assert train.labels == sorted({name for some in labels for name in some})
    _, labels_BL = train.gather(np.arange(3))
    assert labels_BL is not None
    assert [train.labels[bit] for bit in np.flatnonzero(labels_BL[2])] == ["2", "l2"]


def test_items_are_whole_lines_and_cover_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\n".join(b"%d" % k * (k % 900) for k in range(9000)) + b"\n" + b"z" * 3_000_000
    )
    settings = settings_for([path], tmp_path / "out", item_mb=1)
    items = plan.make_items(find_sources(settings.inputs, settings.input), settings)
    raw = path.read_bytes()
    parts = [part for item in items for part in item.parts]
    assert len(parts) > 5
    assert b"".join(raw[part.start : part.end] for part in parts) == raw
    assert all(raw[part.start - 1] == ord("\n") for part in parts[1:])


def test_labels_from_another_set(tmp_path: Path) -> None:
    input = InputSettings(labels_field="labels")
    first = write_jsonl(tmp_path / "a.jsonl", ["a", "b"], ["x", ["y", "z"]])
    second = write_jsonl(tmp_path / "b.jsonl", ["c", "d"], ["z", []])
    shard.run(settings_for([first], tmp_path / "1", input=input))
    shard.run(settings_for([second], tmp_path / "2", input=input, labels_from=str(tmp_path / "1")))
    shards = ShardSet(str(tmp_path / "2"))
    assert shards.labels == ["x", "y", "z"]
    _, labels_BL = shards.gather(np.array([1, 0]))
    assert labels_BL is not None
    assert labels_BL.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert shards.manifest["label_counts"] == {"x": 0, "y": 0, "z": 1}


def test_integer_labels(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["a", "b"], [3, [4, "4"]])
    shard.run(settings_for([path], tmp_path / "out", input=InputSettings(labels_field="labels")))
    assert ShardSet(str(tmp_path / "out")).labels == ["3", "4"]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [({"on_invalid": "replace"}, ["a�b", "ok", "c�d"]), ({"on_error": "skip"}, ["ok"])],
)
def test_invalid_text(tmp_path: Path, choice: dict[str, Any], wanted: list[str]) -> None:
    lines = tmp_path / "a.txt"
    lines.write_bytes(b"a\xffb\nok\nc\xe4d")
    records = tmp_path / "a.jsonl"
    records.write_bytes(b'{"text":"a\xffb"}\n{"text":"ok"}\n{"text":"c\\ud800d"}\n')
    for path in (lines, records):
        out = tmp_path / f"out{path.suffix}"
        input = InputSettings(document="line")
        summary = shard.run(settings_for([path], out, input=input, **choice))
        assert texts_of(out) == wanted
        (manifest,) = summary.manifests
        assert manifest["counts"]["replaced_documents"] == (2 if len(wanted) == 3 else 0)
        rejected = 2 if len(wanted) == 1 else 0
        assert manifest["rejected_documents"] == rejected
        assert (out / "rejects.jsonl").exists() == bool(rejected)
        if rejected:
            rejects = [json.loads(line) for line in (out / "rejects.jsonl").open()]
            assert [reject["where"] for reject in rejects] == ["line 1", "line 3"]
            assert all(reject["source"] == str(path) for reject in rejects)


def test_summary_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    shard.run(settings_for([path], tmp_path / "out", v=16, quiet=False))
    told = capsys.readouterr().out
    assert f"{tmp_path / 'out'}: {len(TEXTS)} documents" in told
    assert "MB/s" in told
    show.run(show.InspectSettings(str(tmp_path / "out"), rows=9, sample=3))
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("sample 3") + 1
    assert lines[start].split()[:2] == ["0", "DOC"]
    assert len(lines[start:]) >= 9
    assert all(len(line) <= 80 for line in lines[start:])


def test_killed_run_leaves_no_set_and_says_so(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", many_documents(60_000))
    code = (
        "import sys; from data_prep.shard import *\n"
        "if __name__ == '__main__':\n"
        "    run(ShardSettings([sys.argv[1]], sys.argv[2], item_mb=1, shard_mb=1, processes=2))\n"
    )
    script = tmp_path / "convert.py"
    script.write_text(code)
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(script), str(path), str(out)]
    for number in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        done = len(list(out.glob(".elemdist/done/*")))
        for _ in range(6000):
            now = len(list(out.glob(".elemdist/done/*")))
            if now > done or process.poll() is not None:
                break
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()[1].decode()
        process.send_signal(number)
        told = process.communicate(timeout=60)[1].decode()
        assert not (out / "index.json").exists(), (number, told)
        if number == signal.SIGINT:
            assert "work items are done and kept" in told
            assert not list(out.glob("*.tmp"))
        with pytest.raises(shard.UserError, match="unfinished"):
            ShardSet(str(out))
    with pytest.raises(shard.UserError, match="unfinished run with n 512 instead of 16"):
        shard.run(settings_for([path], out))
