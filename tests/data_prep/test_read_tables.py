"""CSV and TSV: rows, quotes, and what is wrong with some."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import read

from data_prep.readers import files, spans, tables
from elemdist.errors import UserError

MB = 1 << 20
CELLS = st.text(st.sampled_from('ab,"\n\r\t日;'), max_size=8)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    format=st.sampled_from(["csv", "tsv"]),
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8),
    chunk=st.integers(1, 9),
)
def test_rows_fall_into_chunks_anyhow(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    rows: list[tuple[str, str, str]],
    chunk: int,
) -> None:
    file = io.StringIO()
    # The writer leaves a lone carriage return bare, which no reader takes.
    bare = any("\r" in cell for row in rows for cell in row)
    quoting = csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL
    writer = csv.writer(
        file, delimiter=tables.DELIMITERS[format], lineterminator="\n", quoting=quoting
    )
    writer.writerow(["id", "text", "l"])
    writer.writerows(rows)
    path = tmp_path / f"a.{format}"
    path.write_bytes(b"\xef\xbb\xbf" + file.getvalue().encode())
    monkeypatch.setattr(files, "READ_BYTES", chunk)
    for module in (spans, tables):
        monkeypatch.setattr(module, "BATCH_BYTES", 4)
    monkeypatch.setattr(spans, "LONG_BYTES", 4)
    found = read(path, labels_field="l", id_field="id")
    assert [document.decode() for document in found.documents] == [text for _, text, _ in rows]
    assert found.labels == [[label] if label else [] for _, _, label in rows]
    assert found.ids == [row_id for row_id, _, _ in rows]
    assert found.told == path.stat().st_size
    split = read(path, labels_field="l", labels_separator=";").labels
    assert split == [[x for y in label.split(";") if (x := y.strip())] for _, _, label in rows]


def test_bad_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'text,n\none,1\n\n"two\nlines",2\nthree\nfour,4,4\n"x"y,5\nsix\xff,6\nseven,7\nei\rght,8\n"open,9\n'
    )
    found = read(path, skip=True)
    assert found.documents == [b"one", b"two\nlines", b"seven"]
    assert found.wheres == ["line 2", "line 4", "line 10"]
    wheres, problems = zip(*found.problems, strict=True)
    assert wheres == ("line 6", "line 7", "line 8", "line 9", "line 11", "line 12")
    assert "has 1 fields, and the header has 2" in problems[0]
    assert "has 3 fields" in problems[1]
    assert "invalid UTF-8 at byte" in problems[3]
    assert "carriage return" in problems[4]
    assert "unexpected end of data" in problems[5]
    with pytest.raises(UserError, match=r"no column 'txt' \(its columns: text, n\); did you mean"):
        read(path, text_field="txt")
    path.write_bytes(b"text,n\nsix\xff,6\n")
    assert read(path, on_invalid="replace").documents == ["six\ufffd".encode()]
    path.write_bytes(b"text\n" + b"x" * (2 * MB) + b"\nok\n" + b'"a\n' * MB + b"\n")
    found = read(path, skip=True, max_record_mb=1)
    assert b"ok" in found.documents
    assert found.problems[0] == ("line 2", "holds more than 1 MiB: raise --input.max-record-mb")
