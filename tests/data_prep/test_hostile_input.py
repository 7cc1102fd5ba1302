"""Input that looks readable and is not: told by its first bytes, its header or its names."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from reading import read

from data_prep.shard import InputSettings, ShardSettings, run
from elemdist.errors import UserError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n"


def refused(path: Path, content: bytes, **settings: object) -> str:
    """Return what the reader says of a file with this content."""
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", LFS, "is a pointer of Git LFS, not the file: git lfs pull"),
        ("a.jsonl", LFS, "is a pointer of Git LFS, not the file: git lfs pull"),
        ("a.csv", LFS, "is a pointer of Git LFS, not the file: git lfs pull"),
        ("a.txt", b"{\\rtf1 abc}", "is RTF"),
        ("a.txt", b"GIF89a", "is a picture"),
        ("a.txt", b"\x1f\x9d\x90ab", "unpack it (gzip -d)"),
        ("a.csv", b"text;labels\na;b\n", "its fields stand between semicolons"),
        ("a.csv", b'"text";"labels"\n"a";"b"\n', "its fields stand between semicolons"),
        ("a.csv", b"text|labels\na|b\n", "its fields stand between bars"),
        ("a.csv", b"text\tlabels\na\tb\n", "between tabs: --input.format tsv"),
        ("a.tsv", b"text,labels\na,b\n", "between commas: --input.format csv"),
        ("a.tsv", b"text;labels\na;b\n", "semicolons: write it with tabs between them"),
        ("a.wet", b"hello\n", "no WARC file: a record begins with b'hello"),
        ("a.wet", b"WARC/1.0\r\nWARC-Type: conversion\r\n\r\na", "a record has no Content-Length"),
        ("a.wet", b"WARC/1.0\r\nContent-Length: -5\r\n\r\na", "the Content-Length '-5'"),
        ("a.wet", b"WARC/1.0\r\nContent-Le", "is cut short within the header"),
    ],
)
def test_what_a_file_is_is_said(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert expected in refused(tmp_path / name, content)


def test_warc_with_plain_line_ends_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.wet"
    record = b"WARC/1.0\nWARC-Type: conversion\nContent-Length: 5\n\nhello\n\n"
    path.write_bytes(record + record.replace(b"\n", b"\r\n"))
    assert read(path).documents == [b"hello", b"hello"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*", [b"abc"]), ("*.txt", [b"abc"]), ("._*", [b"apple"]), ("d/.*", [b"hid"])],
)
def test_hidden_tar_members_are_left_out_as_hidden_files_are(
    tmp_path: Path, pattern: str, expected: list[bytes]
) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (("./a.txt", b"abc"), ("d/.hid", b"hid"), ("._a.txt", b"apple")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert read(path, members=pattern).documents == expected
    settings = ShardSettings([str(path)], str(tmp_path / "out"), processes=1, quiet=True)
    manifest = run(settings).manifests[0]
    assert manifest["left_out"] == {"hidden files and folders": 2}


def test_a_run_without_a_document_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 5\r\n\r\nhello\r\n\r\n")
    settings = ShardSettings([str(path)], str(tmp_path / "out"), InputSettings(), processes=1)
    with pytest.raises(UserError, match=r"no document in .*WARC records that are no plain text: 1"):
        run(settings)


@pytest.mark.parametrize("labels", ["1 0 1", "1,0,1", "1.0 0.0 1.0", "0;1;0"])
def test_a_multi_hot_list_written_as_text_is_no_label(tmp_path: Path, labels: str) -> None:
    line = f'{{"text":"t","labels":"{labels}"}}\n'.encode()
    told = refused(tmp_path / "a.jsonl", line, labels_field="labels")
    assert "a list that is written as text" in told
    separator = " " if " " in labels else labels[1]
    found = read(
        tmp_path / "a.jsonl",
        labels_field="labels",
        labels_as="multi_hot",
        labels_separator=separator,
    )
    assert found.labels == [
        [str(at) for at, one in enumerate(labels.split(separator)) if float(one)]
    ]


@pytest.mark.parametrize(
    ("piped", "expected"),
    [
        (b"", "standard input: empty, there is nothing to convert"),
        (b'{"text":"a"}\nx\n', "standard input, line 2: not valid JSON"),
        (b"\n\n", "no document in standard input: left out: blank lines: 2"),
    ],
)
def test_a_pipe_that_cannot_be_taken_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: bytes, expected: str
) -> None:
    out = tmp_path / "out"
    settings = ShardSettings(
        ["-"], str(out), InputSettings(format="jsonl"), processes=1, quiet=True
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(piped)))
    with pytest.raises(UserError, match=expected) as caught:
        run(settings)
    assert ".elemdist" not in str(caught.value)
    assert not out.exists()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text":"b"}\n')))
    assert run(settings).manifests[0]["counts"]["documents"] == 1


def test_a_pipe_into_a_folder_with_other_files_leaves_it_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").write_text("kept")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text":"b"}\n')))
    with pytest.raises(UserError, match="is not empty"):
        run(ShardSettings(["-"], str(tmp_path), InputSettings(format="jsonl"), processes=1))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_an_unfinished_output_folder_in_the_input_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text":"a"}\n')
    out = tmp_path / "out"
    run(ShardSettings([str(tmp_path)], str(out), processes=1, quiet=True))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    again = run(ShardSettings([str(tmp_path)], str(out), processes=1, quiet=True))
    assert again.message == f"{out} is complete already: nothing was done"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert again.manifests[0]["left_out"] == {}
