"""Which files are meant, locally and in a store, and how they are cut."""

from __future__ import annotations

import gzip
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import read

from data_prep.readers import files, sources
from data_prep.settings import InputSettings
from elemdist.errors import UserError


def found(*inputs: Path | str, **settings: Any) -> list[tuple[str, str, str]]:
    """Names within the first input, formats and compressions of what was found."""
    entries = [str(entry) for entry in inputs]
    root = entries[0].rstrip("/*") + "/"
    every = sources.find_sources(entries, InputSettings(**settings))
    return [(s.path.removeprefix(root), s.format, s.compression) for s in every]


def names(*inputs: Path | str, **settings: Any) -> list[str]:
    return [name for name, _, _ in found(*inputs, **settings)]


def last(*inputs: Path | str) -> list[str]:
    """The names alone."""
    return [os.path.basename(name) for name in names(*inputs)]


def write(path: Path, content: bytes = b"content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refused(entry: Path | str, *wanted: str, **settings: Any) -> None:
    with pytest.raises(UserError) as caught:
        sources.find_sources([str(entry)], InputSettings(**settings))
    for text in wanted:
        assert text in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


FORMATS = {
    "a.jsonl": ("jsonl", ""),
    "a.json": ("jsonl", ""),
    "a.ndjson.xz": ("jsonl", ".xz"),
    "a.TXT.BZ2": ("text", ".bz2"),
    "a.md.gz": ("text", ".gz"),
    "a.rst": ("text", ""),
    "a.csv.zst": ("csv", ".zst"),
    "a.tsv": ("tsv", ""),
    "a.parquet": ("parquet", ""),
    "a.arrow": ("arrow", ""),
    "a.feather": ("arrow", ""),
    "a.tar": ("tar", ""),
    "a.tgz": ("tar", ".gz"),
    "a.tbz2": ("tar", ".bz2"),
    "a.txz": ("tar", ".xz"),
    "a.tzst": ("tar", ".zst"),
    "a.tar.xz": ("tar", ".xz"),
}


def test_formats_by_name(tmp_path: Path) -> None:
    for name in [*FORMATS, "a.pdf", "a.parquet.gz", "a.gz", "b"]:
        write(tmp_path / name)
    wanted = sorted((name, *told) for name, told in FORMATS.items())
    assert found(tmp_path) == wanted
    for name, told in FORMATS.items():
        assert found(tmp_path / name)[0][1:] == told
    assert names(tmp_path, format="jsonl") == ["a.json", "a.jsonl", "a.ndjson.xz"]
    assert names(tmp_path, format="tar") == [
        "a.tar",
        "a.tar.xz",
        "a.tbz2",
        "a.tgz",
        "a.txz",
        "a.tzst",
    ]
    assert len(names(tmp_path, format="text")) == len(FORMATS) + 4
    assert found(tmp_path / "a.gz", format="text")[0][1:] == ("text", ".gz")
    refused(tmp_path / "a.pdf", "a.pdf", "--input.format")
    refused(tmp_path / "a.parquet.gz", "a.parquet.gz", "--input.format")
    refused(tmp_path / "a.parquet.gz", "not read compressed", format="parquet")
    refused(tmp_path / "a.arrow", "name the folder", format="mds")
    refused(tmp_path, "no index.json", format="mds")


def test_order_hidden_and_globs(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "a/9.txt", "c.txt", "no.pdf", ".hidden.txt", ".git/x.txt"):
        write(tmp_path / name)
    assert names(tmp_path) == ["c.txt", "a/9.txt", "b/1.txt", "b/2.txt"]
    assert last(f"{tmp_path}/**/*.txt") == ["9.txt", "1.txt", "2.txt", "c.txt"]
    assert last(f"{tmp_path}/b/*.txt", f"{tmp_path}/a/*") == ["1.txt", "2.txt", "9.txt"]
    refused(tmp_path / "none.txt", "no such file or folder", "none.txt")
    refused(f"{tmp_path}/*.jsonl", "no file matches", "*.jsonl")
    refused(f"{tmp_path}/[ab]", "matches only folders")
    refused(write(tmp_path / "p/a.pdf").parent, "p has no", "*.jsonl, *.txt", ".xz")
    refused(write(tmp_path / "e/a.txt", b"").parent, "nothing to convert")
    os.mkfifo(tmp_path / "pipe.txt")
    refused(tmp_path / "pipe.txt", "pipe.txt is not a regular file")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    refused(tmp_path / "loop.txt", "cannot read", "loop.txt")
    write(tmp_path / "q/[1].txt")
    assert last(tmp_path / "q/[1].txt") == ["[1].txt"]


def index(zipped: bool) -> bytes:
    raw, packed = {"basename": "s.mds", "bytes": 50}, {"basename": "s.mds.zst", "bytes": 20}
    shard = {"format": "mds", "raw_data": raw, "zip_data": packed if zipped else None}
    return json.dumps({"version": 2, "shards": [shard, shard]}).encode()


def test_mds_folders(tmp_path: Path) -> None:
    for zipped, size in ((False, 100), (True, 40)):
        write(tmp_path / "in/mds/index.json", index(zipped))
        write(tmp_path / "in/mds/s.mds")
        write(tmp_path / "in/mds/notes.txt")
        write(tmp_path / "in/z.txt")
        write(tmp_path / "in/other/index.json", b'{"text": "a record"}')
        for entry in (tmp_path / "in/mds", f"{tmp_path}/in/m*"):
            (source,) = sources.find_sources([str(entry)], InputSettings())
            assert (source.path, source.format) == (str(tmp_path / "in/mds"), "mds")
            assert source.size == size
        assert names(tmp_path / "in") == ["z.txt", "mds", "other/index.json"]
        assert names(tmp_path / "in", format="mds") == ["mds"]
        assert "mds/notes.txt" in names(tmp_path / "in", format="text")
    versions = []
    for content in (index(True), index(False)):
        write(tmp_path / "in/mds/index.json", content)
        versions += sources.find_sources([str(tmp_path / "in/mds")], InputSettings())
    assert versions[0].version != versions[1].version
    write(tmp_path / "in/mds/index.json", b'{"shards": [7]}')
    refused(tmp_path / "in", "index.json is damaged")


@pytest.fixture
def store() -> Iterator[tuple[Any, str]]:
    """A folder in a store that lives in memory, and its URL."""
    memory = fsspec.filesystem("memory")
    root = f"/{uuid.uuid4().hex}"
    yield memory, f"memory:/{root}"
    memory.rm(root, recursive=True)


def put(store: tuple[Any, str], name: str, content: bytes) -> str:
    memory, root = store
    memory.pipe_file(f"{root.removeprefix('memory:/')}/{name}", content)
    return f"{root}/{name}"


def test_store(store: tuple[Any, str]) -> None:
    for name in ("b/2.txt", "b/1.txt", "a/9.txt", "c.txt", "no.pdf", ".hidden.txt", ".git/x.txt"):
        put(store, name, name.encode())
    root = store[1]
    wanted = ["c.txt", "a/9.txt", "b/1.txt", "b/2.txt"]
    assert names(root) == names(f"{root}/") == wanted
    assert [one.decode() for one in read(root).documents] == wanted
    assert last(f"{root}/*/*.txt") == ["9.txt", "1.txt", "2.txt"]
    assert [one.decode() for one in read(f"{root}/b/*").documents] == ["b/1.txt", "b/2.txt"]
    assert [one.decode() for one in read(f"{root}/c.txt").documents] == ["c.txt"]
    assert read(f"{root}/c.txt").ids == [f"{root}/c.txt"]
    refused(f"{root}/none.txt", "no such file or folder", "none.txt")
    refused(f"{root}/*.jsonl", "no file matches")
    refused(f"{root}/no.pdf", "--input.format")
    refused("nothing://bucket/x", "cannot open nothing://bucket/x")


def test_store_formats(store: tuple[Any, str], tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % k for k in range(3000))
    put(store, "a.jsonl", lines)
    put(store, "b.jsonl.gz", gzip.compress(lines))
    content = pa.table({"text": [str(k) for k in range(3000)]})
    pq.write_table(content, tmp_path / "c.parquet", row_group_size=500)
    put(store, "c.parquet", (tmp_path / "c.parquet").read_bytes())
    for name, new in (("d.arrow", pa.ipc.new_file), ("set/x.arrow", pa.ipc.new_stream)):
        sink = pa.BufferOutputStream()
        with new(sink, content.schema) as writer:
            writer.write_table(content, 500)
        put(store, name, sink.getvalue().to_pybytes())
    put(store, "set/state.json", b'{"_data_files": [{"filename": "x.arrow"}]}')
    put(store, "set/dataset_info.json", b"{}")
    for name, parts in (
        ("a.jsonl", 5),
        ("b.jsonl.gz", 1),
        ("c.parquet", 2),
        ("d.arrow", 2),
        ("set", 1),
    ):
        result = read(f"{store[1]}/{name}", limit=10_000, labels_field="text")
        assert [one.decode() for one in result.documents] == [str(k) for k in range(3000)]
        assert len(result.parts) >= parts
        assert result.told == sum(part.weight for part in result.parts)


def test_store_where_an_object_changes(store: tuple[Any, str]) -> None:
    from data_prep.documents import Problems
    from data_prep.readers import parts as readers
    from data_prep.settings import ShardSettings

    url = put(store, "a.txt", b"one")
    settings = ShardSettings([url], "out", InputSettings())
    for content, told in ((b"o", "became shorter"), (b"two", "changed")):
        put(store, "a.txt", b"one")
        (source,) = sources.find_sources([url], settings.input)
        (part,) = sources.cut(source, 10, settings.input)
        put(store, "a.txt", content)
        problems = Problems(True, lambda _: None)
        reader = readers.open_part(part, settings, problems, lambda _: None)
        with pytest.raises(UserError, match=f"a.txt {told} while it was read"):
            list(reader.batches())


def test_versions_of_objects() -> None:
    assert files.remote_version({"ETag": '"x"', "LastModified": 5}) == "x"
    assert files.remote_version({"mtime": 5.5, "size": 1}) == "5.5"
    assert files.remote_version({"size": 1}) == ""


def test_cut_lines_is_the_same_anywhere(store: tuple[Any, str], tmp_path: Path) -> None:
    rows = [b"x" * int(size) for size in np.random.default_rng(0).integers(0, 900, 3000)]
    content = b"\n".join(rows) + b"\n" + b"z" * 3_000_000
    local, url = write(tmp_path / "a.jsonl", content), put(store, "a.jsonl", content)
    bounds = []
    for entry in (str(local), url):
        (source,) = sources.find_sources([entry], InputSettings())
        parts = sources.cut(source, 1 << 18, InputSettings())
        bounds.append([(part.start, part.end, part.weight) for part in parts])
    assert bounds[0] == bounds[1]
    assert b"".join(content[start:end] for start, end, _ in bounds[0]) == content
    assert all(content[start - 1] == ord("\n") for start, _, _ in bounds[0][1:])
    assert len(bounds[0]) > 4
    whole = sources.cut(source, 1 << 18, InputSettings(document="line", format="text"))
    assert len(whole) == len(bounds[0])
