"""Every type that text, labels and ids can have in Arrow and Parquet files."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from reading import read

TEXTS = ["one", "", "drei — ein langer Text, länger als zwölf Byte", "one", "一二三"]


def runs(values: pa.Array) -> pa.Array:
    """The texts, the first of which comes twice, out of runs that begin before them."""
    ends = pa.array([2, 3, 4, 5, 6, 7], pa.int32())
    return pa.RunEndEncodedArray.from_arrays(ends, values)[1:6]


def dictionary(kind: pa.DataType, ordered: bool = False) -> pa.Array:
    values = pa.array(["x", "one", "", TEXTS[2], "一二三"], kind)
    return pa.DictionaryArray.from_arrays(
        pa.array([1, 2, 3, 1, 4], pa.int8()), values, ordered=ordered
    )


TEXT_COLUMNS: dict[str, Any] = {
    **{
        name: pa.array(TEXTS, getattr(pa, name)())
        for name in ("string", "large_string", "string_view")
    },
    **{
        name: pa.array([text.encode() for text in TEXTS], getattr(pa, name)())
        for name in ("binary", "large_binary", "binary_view")
    },
    "dictionary": dictionary(pa.string()),
    "ordered dictionary": dictionary(pa.string(), ordered=True),
    "dictionary of large_string": dictionary(pa.large_string()),
    "dictionary of string_view": dictionary(pa.string_view()),
    "runs": runs(pa.array(["one", "", TEXTS[2], "one", "一二三", "y"])),
    "runs of string_view": runs(pa.array(["one", *TEXTS[1:], "y"], pa.string_view())),
    "a slice of string_view": pa.array(["x" * 40, *TEXTS, "y"], pa.string_view())[1:6],
}  # fmt: skip
if hasattr(pa, "json_"):
    TEXT_COLUMNS["arrow.json"] = pa.ExtensionArray.from_storage(pa.json_(), pa.array(TEXTS))


NOT_WRITTEN = ("runs", "runs of string_view", "dictionary of string_view")  # to Parquet
CASES = [
    (name, how)
    for name in sorted(TEXT_COLUMNS)
    for how in ("file", "stream", "feather", "parquet")
    if how != "parquet" or name not in NOT_WRITTEN
]


def written(path: Path, table: pa.Table, how: str) -> Path:
    if how == "parquet":
        pq.write_table(table, path.with_suffix(".parquet"))
        return path.with_suffix(".parquet")
    if how == "feather":
        feather.write_feather(table, str(path.with_suffix(".feather")), compression="zstd")
        return path.with_suffix(".feather")
    path = path.with_suffix(".arrow")
    new = pa.ipc.new_file if how == "file" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize(("name", "how"), CASES)
def test_text_of_every_type(tmp_path: Path, name: str, how: str) -> None:
    column = TEXT_COLUMNS[name]
    table = pa.table({"text": column, "more": pa.array(range(5))})
    path = written(tmp_path / "a", table, how)
    assert [text.decode() for text in read(path).documents] == TEXTS, column.type


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.binary_view(), pa.dictionary(pa.int8(), pa.string_view())]
)
def test_null_and_invalid_text_is_listed(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array(["a", None, "b" * 30], pa.string_view())
    if kind == pa.binary_view():
        values = pa.array([b"a", b"\xff" * 20, b"b" * 30], kind)
    elif pa.types.is_dictionary(kind):
        values = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int8()), values)
    found = read(written(tmp_path / "a", pa.table({"text": values}), "file"), skip=True)
    assert found.documents == [b"a", b"b" * 30]
    ((where, problem),) = found.problems
    assert where == "row 2 of record batch 1"
    assert "null" in problem or "invalid UTF-8" in problem


LABELS: list[list[str]] = [["a", "b"], [], ["c"]]
LABEL_TYPES = {
    "list": pa.list_(pa.string()),
    "large_list": pa.large_list(pa.large_string()),
    "list of views": pa.list_(pa.string_view()),
    "list_view": pa.list_view(pa.string()),
    "large_list_view": pa.large_list_view(pa.string_view()),
    "list of a dictionary": pa.list_(pa.dictionary(pa.int8(), pa.string())),
}


@pytest.mark.parametrize("name", sorted(LABEL_TYPES))
def test_labels_of_every_type(tmp_path: Path, name: str) -> None:
    kind = LABEL_TYPES[name]
    if name == "list of a dictionary":
        coded = pa.array(["a", "b", "c"]).dictionary_encode().cast(kind.value_type)
        labels = pa.ListArray.from_arrays(pa.array([0, 2, 2, 3], pa.int32()), coded)
    else:
        labels = pa.array(LABELS, kind)
    table = pa.table({"text": ["x", "y", "z"], "labels": labels})
    found = read(written(tmp_path / "a", table, "file"), labels_field="labels")
    assert found.labels == LABELS
    assert found.documents == [b"x", b"y", b"z"]


def test_labels_of_fixed_size_and_of_one_dictionary(tmp_path: Path) -> None:
    texts = pa.array(["x", "y"])
    fixed = pa.array([["a", "b"], ["b", "c"]], pa.list_(pa.string(), 2))
    path = written(tmp_path / "a", pa.table({"text": texts, "labels": fixed}), "parquet")
    assert read(path, labels_field="labels").labels == [["a", "b"], ["b", "c"]]
    one = pa.array(["b", "a"]).dictionary_encode()
    path = written(tmp_path / "b", pa.table({"text": texts, "labels": one}), "stream")
    assert read(path, labels_field="labels").labels == [["b"], ["a"]]


def test_ids_of_every_type(tmp_path: Path) -> None:
    ids = {
        pa.string_view(): ["i", "long enough not to stand in the view itself"],
        pa.large_string(): ["i", "j"],
        pa.uint64(): [1, 2**64 - 1],
    }
    for number, (kind, values) in enumerate(ids.items()):
        table = pa.table({"text": ["x", "y"], "id": pa.array(values, kind)})
        found = read(written(tmp_path / f"{number}", table, "file"), id_field="id")
        assert found.ids == [str(value) for value in values]
    if hasattr(pa, "uuid"):
        value = uuid.UUID(int=7)
        stored = pa.array([value.bytes], pa.binary(16))
        table = pa.table({"text": ["x"], "id": pa.ExtensionArray.from_storage(pa.uuid(), stored)})
        assert read(written(tmp_path / "u", table, "file"), id_field="id").ids == [str(value)]
