"""The verbs that take text as it is read the very documents that `shard` reads."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.readers.stream import open_documents
from data_prep.settings import InputSettings, ShardSettings
from data_prep.shard import run
from elemdist.errors import UserError
from elemdist.text_input import for_verb
from tests.bench.rounds import user_text
from tests.conftest import REPOSITORY

RECORDS = [json.dumps({"id": k, "text": f"wheat corn {k}"}).encode() for k in range(5)]
LINES = b"\n".join(RECORDS) + b"\n"
MANY = b"".join(b'{"text": "wheat %d"}\n' % (k * 7919 % 12000) for k in range(12000))


def packed_tar(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def long_window(data: bytes) -> bytes:
    """As zstd --long=31 writes it."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


# Name -> content, and how many documents are in it; 0: refused as a whole.
FILES: dict[str, tuple[bytes, int]] = {
    "bom.jsonl": (b"\xef\xbb\xbf" + LINES, 5),
    "bom.txt": (b"\xef\xbb\xbfone\ntwo\n", 2),
    "bom.csv": (b"\xef\xbb\xbfid,text\n1,a\n", 1),
    "returns.jsonl": (LINES.replace(b"\n", b"\r\n"), 5),
    "returns.txt": (b"one\r\ntwo\r\n", 2),
    "only-returns.txt": (b"one\rtwo\r", 1),
    "blank.jsonl": (RECORDS[0] + b"\n\n  \n" + RECORDS[1] + b"\n\n", 2),
    "blank.txt": (b"\none\n\n\ntwo\n\n", 6),
    "no-last-newline.jsonl": (LINES[:-1], 5),
    "no-last-newline.txt": (b"one\ntwo", 2),
    "separators.jsonl": ('{"text":"a\u2028b\u2029c\x85d"}\n{"text":"e"}\n'.encode(), 2),
    "separators.txt": ("a\u2028b\x85c\x0bd\x0ce\n\x1cf\n".encode(), 2),
    "nul.txt": (b"a\0b\n\0\n", 2),
    "nul.jsonl": (b'{"text":"a\\u0000b"}\n', 1),
    "two.jsonl.gz": (gzip.compress(LINES) * 2, 10),
    "two.jsonl.zst": (zst(LINES) * 2, 10),
    "two.jsonl.bz2": (bz2.compress(LINES) * 2, 10),
    "two.jsonl.xz": (lzma.compress(LINES) * 2, 10),
    "two.txt.gz": (gzip.compress(b"on") + gzip.compress(b"e\ntwo\n"), 2),
    "long31.jsonl.zst": (long_window(LINES), 5),
    "cut.jsonl.gz": (gzip.compress(MANY)[:-9], 1),
    "cut.jsonl.zst": (zst(MANY)[:-5], 1),
    "cut.jsonl.bz2": (bz2.compress(MANY, 1)[:-9], 1),
    "cut.jsonl.xz": (lzma.compress(MANY)[:-9], 1),
    "half.jsonl.gz": (gzip.compress(MANY)[: len(gzip.compress(MANY)) // 2], 1),
    "no.jsonl.zst": (b"not compressed\n", 0),
    "cut.txt": (b"one\ntw\xc3", 1),
    "not-json.jsonl": (RECORDS[0] + b"\nnot json\n" + RECORDS[1] + b"\n", 2),
    "no-field.jsonl": (RECORDS[0] + b'\n{"body": "x"}\n', 1),
    "latin-1.txt": ("Größe\nok\n".encode("latin-1"), 1),
    "surrogate.jsonl": (b'{"text":"a\\ud83d"}\n' + LINES, 5),
    "newline.csv": (b'id,text\n1,"a\nb"\n2,c\n', 2),
    "t.tsv": (b"id\ttext\n1\ta\n", 1),
    "t.tar": (packed_tar(x_txt=b"one\ntwo", y_txt=b"three"), 2),
    "t.tgz": (gzip.compress(packed_tar(x_txt=b"one\ntwo")), 1),
    "empty.jsonl": (b"", 0),
    "empty.txt": (b"", 0),
    "empty.jsonl.gz": (gzip.compress(b""), 0),
    "blank-only.jsonl": (b"\n \n", 0),
}


def by_shard(path: Path) -> tuple[int, int, int]:
    """Documents, those refused, and bytes of text."""
    settings = InputSettings(document="line")
    out = str(path.with_name("out"))
    try:
        made = run(
            ShardSettings(
                [str(path)], out, settings, n=64, processes=1, on_error="skip", quiet=True
            )
        )
    except UserError:  # no document in it
        return 0, 0, 0
    (manifest,) = made.manifests
    counts = manifest["counts"]
    return counts["documents"], manifest["rejected_documents"], counts["text_bytes"]


def by_verb(path: Path) -> tuple[int, int, int]:
    """The same, as predict reads them."""
    documents = list(open_documents([str(path)], document="line", id_field="id"))
    texts = [one.text for one in documents if not isinstance(one, UserError)]
    size = sum(len(text.encode()) for text in texts)
    return len(texts), len(documents) - len(texts), size


@pytest.mark.parametrize("name", FILES)
def test_awkward_files_hold_the_same_documents(name: str, tmp_path: Path) -> None:
    content, count = FILES[name]
    (tmp_path / name).write_bytes(content)
    found, refused, size = by_verb(tmp_path / name)
    damaged = name.startswith(("cut.jsonl", "half"))
    assert found >= count if damaged else found == count
    if count:
        assert (found, refused, size) == by_shard(tmp_path / name)
    else:
        assert by_shard(tmp_path / name)[0] == 0
    if damaged:
        last = list(open_documents([str(tmp_path / name)]))[-1]
        assert isinstance(last, UserError)
        assert "is cut short" in str(last)


@pytest.mark.parametrize("form", ["parquet", "arrow", "stream"])
@pytest.mark.parametrize("ids", [[7, None], ["a", "b"], None])
def test_columns_hold_the_same_documents(form: str, ids: list | None, tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b\n"]} | ({} if ids is None else {"id": ids}))
    path = tmp_path / ("a.parquet" if form == "parquet" else "a.arrow")
    if form == "parquet":
        pq.write_table(table, path)
    else:
        open_file = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, open_file(file, table.schema) as writer:
            writer.write_table(table)
    assert by_verb(path) == by_shard(path) == (2, 0, 3)
    found = [one.id for one in open_documents([str(path)], id_field="id")]
    assert found == (ids or [None, None])


def test_folders_globs_and_shard_sets(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "deeper" / "b.txt").write_bytes(b"one\ntwo\n")
    (folder / ".hidden.txt").write_bytes(b"three\n")
    (folder / "c.bin").write_bytes(b"four\n")
    assert by_verb(folder)[0] == by_shard(folder)[0] == 7
    left = open_documents([str(folder)], document="line").losses.lines()
    assert any(".hidden.txt" in line for line in left)
    assert any("c.bin" in line for line in left)
    assert by_verb(folder / "*.jsonl")[0] == 5
    out = tmp_path / "set"
    run(ShardSettings([str(folder / "a.jsonl")], str(out), n=64, processes=1, quiet=True))
    assert by_verb(out)[0] == 5


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ('"a\\ud83d"', "a\ud83d"),
        ('{"a": [1, "x\\ud83d"]}', {"a": [1, "x\ud83d"]}),
        ("null", None),
        ("true", True),
        ("1.5", 1.5),
        ("9" * 30, int("9" * 30)),
        ("-" + "9" * 25, -int("9" * 25)),
        ('{"a": ' + "9" * 30 + "}", {"a": int("9" * 30)}),
        ('"\\u0000\\n"', "\0\n"),
    ],
)
def test_an_id_is_handed_on_as_it_is(id: str, expected: object, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(RECORDS[0] + b"\n" + f'{{"id": {id}, "text": "b"}}\n'.encode() + RECORDS[2])
    documents = list(open_documents([str(path)], id_field="id"))
    assert [one.id for one in documents] == [0, expected, 2]
    assert type(documents[1].id) is type(expected)


def test_an_id_that_no_number_can_be_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"id": {"9" * 5000}, "text": "b"}}\n')
    (found,) = open_documents([str(path)], id_field="id")
    assert isinstance(found, UserError)
    assert "line 1: not valid JSON" in str(found)


def test_benchmarks_take_text_by_the_same_readers(tmp_path: Path) -> None:
    for name, content in (
        ("a.txt", b"one\ntwo"),
        ("a.txt.zst", zst(b"one\n") + zst(b"two")),
        ("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n\n{"text": "two"}')),
    ):
        (tmp_path / name).write_bytes(content)
        assert user_text(tmp_path / name) == b"one\ntwo"
    for name, content, part in (
        ("b.txt.gz", gzip.compress(b"one\n" * 99)[:-3], "cut short"),
        ("c.txt", b"\xff", "invalid UTF-8"),
        ("d.jsonl", b"\n", "no text in it"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=part):
            user_text(tmp_path / name)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("a.jsonl, line 2: no field 'x'. Set --input.text-field", "Set --text-field"),
        ("holds more than 1 MiB: raise --input.max-record-mb", "raise --max-record-mb"),
        ("it has no labels: leave input.labels_field out", "leave labels_field out"),
        (
            "cannot read /data/input.jsonl, ./input.txt: input. x",
            "/data/input.jsonl, ./input.txt: i",
        ),
        ("no such file: input.format/a, /x/input.format", "/x/input.format"),
    ],
)
def test_settings_are_named_as_the_verb_has_them(message: str, expected: str) -> None:
    assert expected in str(for_verb(UserError(message)))


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (gzip.compress(b"one\n"), "holds .gz data: pipe it through gzip -dc"),
        (
            "one two\n".encode("utf-16"),
            "is UTF-16, not UTF-8: pipe it through iconv -f UTF-16 -t UTF-8",
        ),
        (b"one\n\xff\n", "standard input, line 2: invalid UTF-8"),
    ],
    ids=["gzip", "UTF-16", "invalid"],
)
def test_a_pipe_that_holds_something_else(data: bytes, part: str) -> None:
    code = "from data_prep.readers.stream import *; print(*open_documents(['-'], document='line'))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, cwd=REPOSITORY
    )
    assert part in done.stdout.decode(), done.stderr
    assert " - " not in done.stdout.decode()


def test_a_closed_standard_input() -> None:
    code = (
        "import sys; sys.stdin = None; from data_prep.readers.stream import *;"
        "print(*open_documents(['-']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=REPOSITORY)
    assert b"cannot read standard input: it is closed" in done.stderr


def test_a_process_that_ends_while_it_reads_a_pipe_ends_as_it_says() -> None:
    """As after an error, or Ctrl-C: Python cannot close a buffer that a thread is waiting at."""
    code = (
        "import sys, threading; from data_prep.readers.stream import *\n"
        "stream, read = iter(open_documents(['-'], document='line')), threading.Event()\n"
        "def wait():\n"
        "    next(stream), read.set(), next(stream)\n"
        "threading.Thread(target=wait, daemon=True).start()\n"
        "read.wait(), sys.exit(3)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.wait(60) == 3
        assert process.stderr.read() == b""
