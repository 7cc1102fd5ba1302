"""Documents one by one: what the verbs read that take text as it is."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.losses import BLANK
from data_prep.readers.stream import Document, DocumentStream
from data_prep.settings import InputSettings
from elemdist.errors import UserError
from tests.conftest import REPOSITORY

LINES = InputSettings(document="line", labels_field=None, id_field="id")
RECORDS = b'{"text": "a", "id": 7}\n\n{"text": 1}\n{"text": "\xc3\xa9"}\n{"text": "", "id": "x"}'


def read(*paths: Path | str, settings: InputSettings = LINES) -> list[Document | str]:
    stream = DocumentStream([str(path) for path in paths], settings)
    return [str(one) if isinstance(one, UserError) else one for one in stream]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".xz", ".bz2"])
def test_records_in_order_with_the_errors_between_them(tmp_path: Path, suffix: str) -> None:
    import bz2
    import lzma

    pack = {
        "": bytes,
        ".gz": gzip.compress,
        ".zst": zstandard.ZstdCompressor().compress,
        ".xz": lzma.compress,
        ".bz2": bz2.compress,
    }[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(RECORDS))
    stream = DocumentStream([str(path)], LINES)
    first, wrong, second, third = stream
    assert first == Document(1, f"{path}:1", "a", 7)
    assert str(wrong) == f"{path}, line 3: field 'text' holds a number, not a string"
    assert second == Document(4, f"{path}:4", "é", None)
    assert third == Document(5, f"{path}:5", "", "x")
    assert stream.losses.counts[BLANK] == 1


def test_every_format_by_its_own_reader(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\r\n\xff\n")
    (tmp_path / "b.csv").write_text("text,id\nthree,c\n\nfour,d\n")
    pq.write_table(pa.table({"text": ["five"], "id": [5]}), tmp_path / "c.parquet")
    found = read(*(tmp_path / name for name in ("a.txt", "b.csv", "c.parquet")))
    texts = [one.text for one in found if isinstance(one, Document)]
    assert texts == ["\ufeffone", "two\r", "three", "four", "five"]
    assert [one.id for one in found if isinstance(one, Document)] == [None, None, "c", "d", 5]
    assert next(one for one in found if isinstance(one, str)).startswith(
        f"{tmp_path}/a.txt, line 3"
    )


def test_a_file_that_is_cut_short_ends_with_an_error(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % k for k in range(3000))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines)[:-200])
    found = read(path)
    assert "cut short" in str(found[-1])
    assert len(found) > 100
    assert all(isinstance(one, Document) for one in found[:-1])


def test_a_pipe_is_answered_line_by_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    stream = iter(DocumentStream([str(tmp_path / "pipe.jsonl")], LINES))
    found = []
    reader = threading.Thread(target=lambda: found.append(next(stream)), daemon=True)
    reader.start()
    with (tmp_path / "pipe.jsonl").open("wb", buffering=0) as file:
        file.write(b'{"text": "now"}\n{"te')
        reader.join(30)
        assert isinstance(found[0], Document)
        assert found[0].text == "now"


def test_standard_input() -> None:
    code = (
        "from data_prep.readers.stream import DocumentStream\n"
        "from data_prep.settings import InputSettings\n"
        "for one in DocumentStream(['-'], InputSettings(document='line')):\n"
        "    print(one.place, one.text, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number, word in enumerate((b"one\n", b"two\n"), 1):
            process.stdin.write(word)
            process.stdin.flush()
            assert process.stdout.readline() == b"standard input:%d %s" % (number, word)
        process.stdin.close()


def test_labels_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a", "labels": ["x", 2]}) + "\n\n")
    settings = InputSettings(labels_field="labels")
    (found,) = DocumentStream([str(path)], settings)
    assert isinstance(found, Document)
    assert found.labels == ("x", "2")
    with pytest.raises(UserError, match=r"blank lines: 1 \(.*a.jsonl, line 2\)"):
        list(DocumentStream([str(path)], settings, strict=True))
