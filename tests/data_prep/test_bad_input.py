"""Every mistake gets one clear line, and leaves no set that looks complete."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from data_prep import shard
from data_prep.inspect import main as show
from data_prep.settings import InputSettings, ShardSettings
from elemdist import temporary
from elemdist.errors import UserError
from elemdist.shards import ShardSet
from tests.conftest import ELEMDIST, NO_BYTECODE, expect_user_error, run_command

GOOD = b'{"text": "one", "labels": ["x"]}\n'
LABELLED = InputSettings(labels_field="labels")


def expect_error(inputs: list[Path | str], out: Path, *wanted: str, **more: Any) -> None:
    """The run ends with one line that holds all that is wanted, and leaves nothing behind."""
    existed = sorted(out.rglob("*")) if out.exists() else None
    settings = ShardSettings(
        [str(path) for path in inputs], str(out), n=8, v=4, processes=1, quiet=True
    )
    for name, value in more.items():
        setattr(settings, name, value)
    with pytest.raises(UserError) as caught:
        shard.run(settings)
    message = str(caught.value)
    assert "\n" not in message
    for text in wanted:
        assert text in message, message
    assert (sorted(out.rglob("*")) if out.exists() else None) == existed


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_missing_and_empty_input(tmp_path: Path) -> None:
    out = tmp_path / "out"
    expect_error([tmp_path / "nothing.txt"], out, "no such file or folder", "nothing.txt")
    expect_error([f"{tmp_path}/*.jsonl"], out, "no file matches", "*.jsonl")
    expect_error([write(tmp_path / "empty.txt", b"")], out, "empty.txt", "nothing to convert")
    expect_error([write(tmp_path / "blank.jsonl", b"\n \n")], out, "no document", "blank.jsonl")
    expect_error([write(tmp_path / "in/a.pdf", b"x").parent], out, "in has no", "*.jsonl, *.txt")
    expect_error([write(tmp_path / "a.dat", b"x")], out, "a.dat", "--input.format")
    expect_error([], out, "no input")
    os.mkfifo(tmp_path / "pipe.txt")
    expect_error([tmp_path / "pipe.txt"], out, "pipe.txt is not a regular file")


def test_unreadable_file(tmp_path: Path) -> None:
    # A link to itself: unreadable for everyone, root included.
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    expect_error([tmp_path / "loop.txt"], tmp_path / "out", "cannot read", "loop.txt")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_compression(tmp_path: Path, suffix: str) -> None:
    pack = (
        gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    )
    whole = pack(b"".join(b'{"text": "%d"}\n' % k for k in range(5000)))
    out = tmp_path / "out"
    cut = write(tmp_path / f"cut.jsonl{suffix}", whole[: len(whole) // 2])
    expect_error([cut], out, cut.name, "cut short")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x55
    expect_error(
        [write(tmp_path / f"bits.jsonl{suffix}", bytes(flipped))], out, "bits.jsonl", "is damaged"
    )
    expect_error(
        [write(tmp_path / f"plain.jsonl{suffix}", GOOD)], out, "plain.jsonl", f"no {suffix} file"
    )


def test_invalid_utf8(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = write(tmp_path / "a.txt", b"one\ntwo\n\xc3\xa9 \xff")
    for document in ("file", "line", "block"):
        input = InputSettings(document=document)  # type: ignore[arg-type]
        expect_error([text], out, "a.txt, line 3", "byte 11", "0xff", "--on-invalid", input=input)
    records = write(tmp_path / "a.jsonl", GOOD + b'{"text": "\xc3\xa9 \xe4"}\n')
    expect_error(
        [records], out, "a.jsonl, line 2", f"byte {len(GOOD) + 13}", "0xe4", "--on-invalid"
    )
    half = write(tmp_path / "b.jsonl", GOOD + b'{"text": "\\ud83d"}\n')
    expect_error([half], out, "b.jsonl, line 2", "surrogate", "--on-invalid")


def test_bad_records(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def record(line: bytes, *wanted: str, **more: Any) -> None:
        path = write(tmp_path / "a.jsonl", GOOD + b"\n" + line + b"\n")
        expect_error([path], out, "a.jsonl, line 3", *wanted, **more)

    record(b'{"text": "one"', "not valid JSON")
    record(b"[" * 100_000, "not valid JSON")
    record(b'["one"]', "a list, not an object")
    record(b'{"id": 1, "txt": "one"}', "no field 'text'", "id, txt", "did you mean 'txt'?")
    record(b'{"text": 5}', "'text' holds a number")
    record(b'{"text": null}', "'text' holds null")
    record(b'{"text": "a", "label": "x"}', "no field 'labels'", "'label'?", input=LABELLED)
    record(b'{"text": "a", "labels": [1.5]}', "'labels' holds a number", input=LABELLED)
    record(b'{"text": "a", "labels": [true]}', "holds true or false", input=LABELLED)


def test_line_number_in_a_later_item(tmp_path: Path) -> None:
    lines = [b'{"text": "%s"}\n' % (b"x" * 1000) for _ in range(3000)]
    lines[2700] = b"no record\n"
    path = write(tmp_path / "a.jsonl", b"".join(lines))
    at = sum(map(len, lines[:2700])) + 10

    def refused(out: str, wanted: str, processes: int = 1) -> None:
        settings = ShardSettings([str(path)], str(tmp_path / out), item_mb=1, processes=processes)
        with pytest.raises(UserError, match=wanted):
            shard.run(settings)
        assert not (tmp_path / out / "index.json").exists()

    refused("one", "a.jsonl, line 2,701: not valid JSON")
    refused("two", "a.jsonl, line 2,701: not valid JSON", processes=2)
    lines[2700] = b'{"text": "\xff"}\n'
    write(path, b"".join(lines))
    refused("three", f"line 2,701.*byte {at:,}")


def test_labels(tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = write(tmp_path / "a.jsonl", GOOD)
    shard.run(ShardSettings([str(path)], str(tmp_path / "set"), LABELLED, quiet=True))
    shard.run(ShardSettings([str(path)], str(tmp_path / "bare"), quiet=True))
    other = write(tmp_path / "b.jsonl", GOOD + b'{"text": "two", "labels": ["xx"]}\n')
    known = {"input": LABELLED, "labels_from": str(tmp_path / "set")}
    expect_error(
        [other], out, "b.jsonl, line 2", "unknown label 'xx'", "did you mean 'x'?", **known
    )
    expect_error(
        [path], out, "bare has no labels", **(known | {"labels_from": str(tmp_path / "bare")})
    )
    expect_error(
        [path], out, "no shard folder", **(known | {"labels_from": str(tmp_path / "none")})
    )
    none = write(tmp_path / "c.jsonl", b'{"text": "two", "labels": []}\n')
    expect_error([none], out, "no record has a label", "'labels'", input=LABELLED)
    text = write(tmp_path / "a.txt", b"text")
    expect_error([text], out, "a.txt is text, without labels", input=LABELLED)


def test_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = write(tmp_path / "a.jsonl", GOOD)
    expect_error([path], out, "segmenter", "did you mean 'word'?", segmenter="words")
    expect_error([path], out, "v: 0 is not in [1, 256]", v=0)
    expect_error([path], out, "packing packed", "labels", packing="packed", input=LABELLED)
    expect_error([path], out, "labels_from needs", labels_from="x")
    expect_error([path], out, "holdout_last is 5", "only 1 document", holdout_last=5)
    expect_error([path], out, "cannot hold one sample", n=1 << 22, v=64, shard_mb=1)


def test_output_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    full = write(tmp_path / "full/keep.txt", b"mine").parent
    expect_error([path], full, "full is not empty", "keep.txt")
    killed = write(tmp_path / "killed/shard.00000.00000.mds", b"part").parent
    expect_error([path], killed, "unfinished", "remove the folder")
    expect_error([path], write(tmp_path / "file", b""), "cannot write", "file")
    (tmp_path / "empty").mkdir()
    expect_error([write(tmp_path / "bad.jsonl", b"x")], tmp_path / "empty", "not valid JSON")
    assert (tmp_path / "empty").exists()


FULL_DISK = """
import resource, sys
from data_prep.shard import ShardSettings, UserError, run
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    try:
        few = int(sys.argv[4])
        run(ShardSettings([sys.argv[1]], sys.argv[2], shard_mb=1, item_mb=1, processes=few))
    except UserError as error:
        sys.exit(f"told: {error}")
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_full_disk(tmp_path: Path, processes: int) -> None:
    # No file may grow beyond a limit: the system refuses the write, as it does on a full disk,
    # but for the number of the error.
    path = write(tmp_path / "a.jsonl", b"".join(b'{"text": "%d"}\n' % k for k in range(99_000)))
    script = write(tmp_path / "convert.py", FULL_DISK.encode())
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, str(script), str(path), str(out), "500000", str(processes)],
        env=os.environ | {"PYTHONPATH": os.getcwd()} | NO_BYTECODE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "told: cannot write" in done.stderr, done.stderr
    assert "File too large: raise `ulimit -f`" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 500000


@pytest.mark.parametrize("more", [0, 1])
def test_folder_for_temporary_files(tmp_path: Path, more: int) -> None:
    path = write(tmp_path / "a.jsonl", b"".join(b'{"text": "%d"}\n' % k for k in range(99_000)))
    with tempfile.TemporaryDirectory(prefix="elemdist-", dir="/tmp") as folder:
        longest = Path(folder) / ("x" * (temporary.LONGEST_BYTES - len(folder) - 1 + more))
        longest.mkdir()
        done = run_command(
            ELEMDIST, "shard", path, "--out", tmp_path / "out", "--n", "8", "--v", "4",
            "--item-mb", "1", "--processes", "2", TMPDIR=str(longest),
        )  # fmt: skip
        if more:
            expect_user_error(done, "TMPDIR", "export TMPDIR=/tmp")
            assert not (tmp_path / "out").exists()
        else:
            assert done.returncode == 0, done.stderr
        assert list(longest.iterdir()) == []


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    path = write(tmp_path / "a.jsonl", b"".join(b'{"text": "%d"}\n' % k for k in range(300)))
    shard.run(ShardSettings([str(path)], str(tmp_path / "set"), n=8, v=4, quiet=True))
    return tmp_path / "set"


def refused(folder: Path, *wanted: str) -> None:
    with pytest.raises(UserError) as caught:
        ShardSet(str(folder)).gather(np.arange(2))
    for text in wanted:
        assert text in str(caught.value), caught.value


def change(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def test_shard_set(shards: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none", "no shard folder")
    refused(write(tmp_path / "other/x", b"").parent, "no index.json", "elemdist shard")
    refused(write(tmp_path / "both/train/index.json", b"{}").parent.parent, "name ", "train")
    with pytest.raises(UserError, match="no sample 300"):
        show.run(show.InspectSettings(str(shards), sample=300))


def test_damaged_shard_set(shards: Path) -> None:
    file = shards / "shard.00000.00000.mds"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    refused(shards, file.name, "bytes instead of")
    file.write_bytes(b"\7" + content[1:])
    refused(shards, file.name, "header")
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="hash differs"):
        ShardSet(str(shards)).verify()
    file.unlink()
    refused(shards, file.name, "is missing")


def test_damaged_index_and_manifest(shards: Path) -> None:
    index = (shards / "index.json").read_bytes()
    change(shards / "index.json", b"shard.00000.00000.mds", b"../set/shard.00000.00000.mds")
    refused(shards, "outside its folder")
    (shards / "index.json").write_bytes(index[:-5])
    refused(shards, "index.json is damaged")
    (shards / "index.json").write_bytes(json.dumps({"version": 2}).encode())
    refused(shards, "damaged")
    (shards / "index.json").write_bytes(index)
    change(shards / "manifest.json", b'"n": 8', b'"n": 16')
    refused(shards, "disagree on", "columns")
    change(shards / "manifest.json", b'"version": 1', b'"version": 9')
    refused(shards, "version 9")
    (shards / "manifest.json").unlink()
    refused(shards, "no manifest.json")
