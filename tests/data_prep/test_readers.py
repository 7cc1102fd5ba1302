"""Text and JSON Lines: the documents, and what is wrong with some."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import read

from data_prep.documents import Part, Problems
from data_prep.readers import deliver, files, sources, spans
from data_prep.readers import parts as readers
from data_prep.settings import InputSettings, ShardSettings
from elemdist.errors import UserError

MB = 1 << 20
PIECES = ["a", "\n", "\n", " ", "\t\n", "\r\n", "é", "日", "\U0001f600", "word", "\x00", "\x0b"]
TEXT = st.lists(st.sampled_from([piece.encode() for piece in PIECES]), max_size=60).map(b"".join)
INVALID = [b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\x80", b"\xed\xa0\x80", b"\xe0\x80"]
DIRTY = st.lists(st.sampled_from([piece.encode() for piece in PIECES] + INVALID), max_size=60).map(
    b"".join
)
ANY = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def documents(text: bytes, document: str) -> list[bytes]:
    """What the documents of a text are, by their definition."""
    if document == "file":
        return [text]
    lines = text.split(b"\n")
    if document == "line":
        return lines if lines[-1] else lines[:-1]
    blocks: list[list[bytes]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line)
        else:
            blocks.append([])
    return [b"\n".join(block) for block in blocks if block]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many bytes are read at a time, and which documents are long."""

    def set(chunk: int, batch: int) -> None:
        monkeypatch.setattr(files, "READ_BYTES", chunk)
        monkeypatch.setattr(spans, "BATCH_BYTES", batch)
        monkeypatch.setattr(spans, "LONG_BYTES", batch)
        monkeypatch.setattr(deliver, "PIECE_BYTES", chunk + 3)
        monkeypatch.setattr(deliver, "SPOOL_BYTES", batch)

    return set


@ANY
@given(text=DIRTY, chunk=st.integers(1, 9), batch=st.integers(1, 20), skip=st.booleans())
@pytest.mark.parametrize("document", ["file", "line", "block"])
def test_text_falls_into_chunks_anyhow(
    tmp_path: Path, tiny: Any, document: str, text: bytes, chunk: int, batch: int, skip: bool
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text + b"x")  # never empty
    tiny(chunk, batch)
    wanted = documents(text + b"x", document)
    mended = [one.decode(errors="replace").encode() for one in wanted]
    found = read(path, document=document, skip=skip, on_invalid="replace")
    assert found.documents == mended
    assert found.replaced == sum(a != b for a, b in zip(wanted, mended, strict=True))
    assert found.told == path.stat().st_size
    assert found.digests == [xxhash.xxh3_128_hexdigest(text + b"x")]
    # Without replacing, the invalid ones are left out, and listed with their lines.
    found = read(path, document=document, skip=True)
    good = [one == two for one, two in zip(wanted, mended, strict=True)]
    assert found.documents == [one for one, is_good in zip(wanted, good, strict=True) if is_good]
    assert len(found.problems) == good.count(False)
    for where, problem in found.problems:
        at = int(re.findall(r"byte ([\d,]+)", problem)[0].replace(",", ""))
        line = text.count(b"\n", 0, at) + 1
        assert where == f"line {line}"
        assert f"0x{text[at]:02x}" in problem


@ANY
@given(text=TEXT, chunk=st.integers(1, 9), limit=st.integers(1, 30), document=st.booleans())
def test_lines_in_parts(
    tmp_path: Path, tiny: Any, text: bytes, chunk: int, limit: int, document: bool
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text + b"x")
    tiny(chunk, 4)
    kind = "line" if document else "block"
    found = read(path, document=kind, limit=limit)
    assert found.documents == documents(text + b"x", kind)
    bounds = [(part.start, part.end) for part in found.parts]
    assert [start for start, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == len(text) + 1
    if kind == "line":
        assert all(text[start - 1 : start] == b"\n" for start, _ in bounds[1:])
        assert all(end - start >= limit for start, end in bounds[:-1])


@ANY
@given(
    texts=st.lists(st.text(st.sampled_from('ab"\n日\U0001f600\\'), max_size=30), max_size=12),
    chunk=st.integers(1, 9),
    limit=st.integers(1, 200),
)
def test_jsonl_falls_into_chunks_anyhow(
    tmp_path: Path, tiny: Any, texts: list[str], chunk: int, limit: int
) -> None:
    records = [
        {"text": text, "labels": [f"l{len(text)}", 3], "key": k} for k, text in enumerate(texts)
    ]
    lines = [json.dumps(record, ensure_ascii=bool(k % 2)) for k, record in enumerate(records)]
    path = tmp_path / "a.jsonl"
    path.write_text("\ufeff" + "\n \n".join([*lines, '{"text": "x", "labels": "y", "key": "k"}']))
    tiny(chunk, 16)
    found = read(path, limit=limit, labels_field="labels", id_field="key")
    assert [document.decode() for document in found.documents] == [*texts, "x"]
    assert found.labels == [[f"l{len(text)}", "3"] for text in texts] + [["y"]]
    assert found.ids == [*map(str, range(len(texts))), "k"]
    assert found.wheres == [f"line {2 * k + 1}" for k in range(len(texts) + 1)]
    assert found.told == path.stat().st_size


def test_large_documents_stream(tmp_path: Path) -> None:
    long = "日本語x".encode() * MB  # 10 MiB
    for document, text, wanted in (
        ("file", long, [long]),
        ("line", b"a\n" + long + b"\nb\n" + long, [b"a", long, b"b", long]),
        ("block", b"a\n\n" + long + b"\n" + long + b"\n \n\nb", [b"a", long + b"\n" + long, b"b"]),
    ):
        path = tmp_path / f"{document}.txt"
        path.write_bytes(text)
        for skip in (False, True):
            found = read(path, document=document, skip=skip)
            assert found.documents == wanted
            assert max(found.sizes) <= 4 * MB


def test_large_bad_document_is_not_delivered_in_part(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\n" + b"x" * (9 * MB) + b"\xff\nb\xff\nc\n")
    found = read(path, document="line", skip=True)
    assert found.documents == [b"a", b"c"]
    assert [where for where, _ in found.problems] == ["line 2", "line 3"]
    assert f"byte {9 * MB + 2:,} (0xff)" in found.problems[0][1]
    with pytest.raises(
        UserError,
        match=r"a\.txt, line 2: invalid UTF-8.*--on-invalid replace.*"
        r"--on-error skip",
    ):
        read(path, document="line")


def test_white_space_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "BLANK_BYTES", 5 * MB)
    path = tmp_path / "a.txt"
    for size, wanted in ((4 * MB, 0), (9 * MB, 1)):
        for before in (b"a\n\n", b"a\n\nb\n"):  # between blocks, and within one
            path.write_bytes(before + b" " * size + b"\n" + b"c" * 10)
            found = read(path, document="block", skip=True)
            assert len(found.problems) == wanted
            assert found.documents[0] == b"a"
            assert (found.documents[-1] == b"c" * 10) != bool(wanted)


def test_limits(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(b"a\n" + b"x" * (3 * MB) + b"\nb\n" + b"y" * (3 * MB // 2) + b"\nc")
    found = read(text, document="line", skip=True, max_document_mb=1)
    assert found.documents == [b"a", b"b", b"c"]
    assert [where for where, _ in found.problems] == ["line 2", "line 4"]
    found = read(text, skip=True, max_document_mb=1)
    assert (found.documents, found.problems[0][0]) == ([], "line 2")
    assert len(read(text, max_document_mb=5).documents) == 1
    with pytest.raises(UserError, match="holds more than 1 MiB: raise"):
        read(text, max_document_mb=1)
    record = tmp_path / "a.jsonl"
    big = [b'{"text": "%s"}' % (b"z" * size) for size in (3 * MB, 3 * MB // 2, 5)]
    record.write_bytes(b"\n".join([big[2], big[0], big[2], big[1], big[2]]))
    found = read(record, skip=True, max_record_mb=1)
    assert found.documents == [b"zzzzz"] * 3
    assert found.wheres == ["line 1", "line 3", "line 5"]
    assert [where for where, _ in found.problems] == ["line 2", "line 4"]
    assert "raise --input.max-record-mb" in found.problems[0][1]
    assert len(read(record, skip=True, max_document_mb=1).documents) == 3
    assert len(read(record).documents) == 5


def test_line_number_in_a_later_part(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "%s"}\n' % (b"x" * 100)] * 300
    lines[270] = b"no record\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"a\.jsonl, line 271: not valid JSON"):
        read(path, limit=10_000)
    lines[270] = b'{"text": "\xff"}\n'
    path.write_bytes(b"".join(lines))
    at = sum(map(len, lines[:270])) + 10
    with pytest.raises(UserError, match=f"line 271: invalid UTF-8 at byte {at:,} "):
        read(path, limit=10_000)
    assert len(read(path, limit=10_000, skip=True).documents) == 299


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (b'{"text": "one"', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'["one"]', "a list, not an object"),
        (b'{"id": 1, "txt": "one"}', "no field 'text' .its fields: id, txt.; did you mean 'txt'"),
        (b'{"text": null, "l": 1, "k": 1}', "'text' holds null"),
        (b'{"text": "a", "l": 1.5, "k": 1}', "'l' holds a number: labels"),
        (b'{"text": "a", "l": [true], "k": 1}', "'l' holds true or false"),
        (b'{"text": "a", "l": ["\\ud800"], "k": 1}', "half of a surrogate pair"),
        (b'{"text": "a", "l": "b"}', "no field 'k'"),
        (b'{"text": "a", "l": "b", "k": [1]}', "'k' holds a list: an id is"),
    ],
)
def test_bad_records(tmp_path: Path, line: bytes, wanted: str) -> None:
    good = b'{"text": "good", "l": "a; b", "k": 7}'
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([good, line, good]))
    more: dict[str, Any] = {"labels_field": "l", "id_field": "k", "labels_separator": ";"}
    with pytest.raises(UserError, match=rf"a\.jsonl, line 2: .*{wanted}"):
        read(path, **more)
    found = read(path, skip=True, **more)
    assert found.documents == [b"good"] * 2
    assert found.labels == [["a", "b"]] * 2
    assert found.ids == ["7", "7"]
    assert found.problems[0][0] == "line 2"


def test_replaced_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text":"a\xffb"}\n{"text":"ok"}\n{"text":"c\\ud800d"}\n')
    found = read(path, on_invalid="replace")
    assert [document.decode() for document in found.documents] == ["a\ufffdb", "ok", "c\ufffdd"]
    assert found.replaced == 2


def test_files_that_change(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' * 100)
    settings = ShardSettings([str(path)], "out", InputSettings())
    problems = Problems(True, lambda record: None)
    (source,) = sources.find_sources(settings.inputs, settings.input)
    for content, wanted in ((b"", "became shorter"), (b'{"text": "two"}\n' * 100, "changed")):
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
        reader = readers.open_part(
            Part(source, 0, source.size, source.size), settings, problems, lambda _: None
        )
        with pytest.raises(UserError, match=rf"a\.jsonl {wanted} while it was read: run again"):
            list(reader.batches())
    path.unlink()
    reader = readers.open_part(
        Part(source, 0, source.size, source.size), settings, problems, lambda _: None
    )
    with pytest.raises(UserError, match=r"cannot read .*a\.jsonl: No such file"):
        list(reader.batches())
