"""Parquet, Arrow and what Hugging Face datasets saves: the documents straight out of columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import Read, read

from data_prep.readers import arrow_text, columns
from elemdist.errors import UserError

TEXTS = [f"日本 {k} " + "long " * (k * 37 % 400) for k in range(2000)]
LABELS = [[f"l{k % 5}", "x"][: k % 3] for k in range(2000)]
WANTED = {"labels_field": "labels", "id_field": "key"}


def table(kind: Any = None, texts: list[Any] = TEXTS) -> pa.Table:
    text = pa.array(texts, pa.string())
    return pa.table(
        {
            "other": pa.array(range(len(texts))),
            "text": text.cast(kind) if kind is not None else text,
            "labels": LABELS[: len(texts)],
            "key": list(range(len(texts))),
        }
    )


def write(path: Path, content: pa.Table, rows: int = 300, **more: Any) -> Path:
    """Writes a Parquet file, or an Arrow file in the file or (.stream.arrow) the stream format."""
    if path.suffix == ".parquet":
        pq.write_table(content, path, row_group_size=rows, **more)
    else:
        stream = path.name.endswith(".stream.arrow")
        new = pa.ipc.new_stream if stream else pa.ipc.new_file
        with new(str(path), content.schema, **more) as writer:
            for batch in content.to_batches(max_chunksize=rows):
                writer.write_batch(batch)
    return path


def whole(found: Read, path: Path) -> None:
    assert [document.decode() for document in found.documents] == TEXTS
    assert found.labels == LABELS
    assert found.ids == [str(k) for k in range(2000)]
    assert found.told == sum(part.weight for part in found.parts)
    assert found.told <= path.stat().st_size


KINDS = [
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.large_binary(),
    pa.dictionary(pa.int32(), pa.string()),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream.arrow", "b.feather"])
def test_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: pa.DataType
) -> None:
    path = write(tmp_path / name, table(kind))
    whole(read(path, **WANTED), path)
    digests = read(path).digests
    monkeypatch.setattr(columns, "BATCH_BYTES", 5000)
    found = read(path, limit=path.stat().st_size // 3, **WANTED)
    whole(found, path)
    assert len(found.parts) == (
        1 if "stream" in name else len(found.parts) > 2 and len(found.parts)
    )
    assert max(found.sizes) <= 5000
    units = "row group" if name == "a.parquet" else "record batch"
    assert found.wheres[301] == (f"row 2 of {units} 2")
    assert read(path).digests == digests  # however it falls into batches
    assert len(digests) == 1


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_repeated_long_texts_unpack_in_bounded_batches(tmp_path: Path, compression: str) -> None:
    texts = ["a" * 100_000, "b" * 200_000, "c"]
    coded = pa.array(texts).dictionary_encode().take(list(range(3)) * 3000)
    content = pa.table({"text": coded})  # 900 MB out of a few hundred KB
    path = write(tmp_path / "a.parquet", content, 9000, compression=compression, store_schema=False)
    before = pa.total_allocated_bytes()
    sizes, most = [], 0
    for size, held in batch_sizes(path):
        sizes.append(size)
        most = max(most, held - before)
    assert sum(sizes) == 3000 * sum(map(len, texts))
    assert max(sizes) <= 4 << 20
    assert most < 32 << 20


def batch_sizes(path: Path) -> Any:
    from data_prep.documents import Problems
    from data_prep.readers import parts as readers
    from data_prep.readers import sources
    from data_prep.settings import InputSettings, ShardSettings

    settings = ShardSettings([str(path)], "out", InputSettings())
    (source,) = sources.find_sources(settings.inputs, settings.input)
    (part,) = sources.cut(source, 1 << 40, settings.input)
    reader = readers.open_part(part, settings, Problems(False, lambda _: None), lambda _: None)
    for batch in reader.batches():
        yield int((batch.ends - batch.starts).sum()), pa.total_allocated_bytes()


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream.arrow"])
def test_bad_rows(tmp_path: Path, name: str) -> None:
    raw = [b"good", None, b"bad \xff", b"", b"x" * (3 << 19), "日".encode()[:1], "日".encode()[1:]]
    content = pa.table({"text": pa.array([*raw, b"last"], pa.binary())})
    path = write(tmp_path / name, content, 4)
    found = read(path, skip=True, max_record_mb=1)
    assert found.documents == [b"good", b"", b"last"]
    unit = "row group" if name == "a.parquet" else "record batch"
    assert [where for where, _ in found.problems] == [
        f"row {row} of {unit} {group}" for row, group in ((2, 1), (3, 1), (1, 2), (2, 2), (3, 2))
    ]
    wanted = ["holds null", "byte 4 (0xff)", "max-record-mb", "byte 0 (0xe6)", "byte 0 (0x97)"]
    for (_, problem), part in zip(found.problems, wanted, strict=True):
        assert part in problem
    with pytest.raises(UserError, match=rf"{name}, row 2 of {unit} 1: column 'text' holds null"):
        read(path)
    found = read(path, skip=True, on_invalid="replace")
    assert len(found.documents) == 7
    assert found.replaced == 3


def test_labels_and_ids_of_other_kinds(tmp_path: Path) -> None:
    content = pa.table(
        {
            "text": ["a", "b", "c", "d"],
            "one": ["x;y", "", "z", None],
            "number": [1, 2, 3, 4],
            "float": [0.5] * 4,
        }
    )
    path = write(tmp_path / "a.parquet", content)
    assert read(path, labels_field="number").labels == [["1"], ["2"], ["3"], ["4"]]
    found = read(path, labels_field="one", labels_separator=";", skip=True)
    assert found.labels == [["x", "y"], [], ["z"]]
    assert found.problems == [
        ("row 4 of row group 1", "column 'one' holds null: labels are strings or integers")
    ]
    with pytest.raises(UserError, match="'float' holds a number: labels are"):
        read(path, labels_field="float")
    with pytest.raises(UserError, match="'float' holds a number: an id is"):
        read(path, id_field="float")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream.arrow"])
def test_columns_that_are_not_there(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, table())
    told = r"no column 'texts' \(its columns: other, text, labels, key\); did you mean 'text'"
    with pytest.raises(UserError, match=told):
        read(path, text_field="texts")
    with pytest.raises(UserError, match="column 'other' holds int64, not text"):
        read(path, text_field="other")
    assert read(path, text_field="other", skip=True).problems[0][0] == ""


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream.arrow"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, table())
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"no such file" * 9, b"", content[100:]):
        path.write_bytes(damaged or b" ")
        with pytest.raises(UserError, match=rf"{name}: is damaged, cut short, or no"):
            read(path)
        found = read(path, skip=True)
        assert len(found.problems) == 1
        assert [one.decode() for one in found.documents] == TEXTS[: len(found.documents)]


def test_offsets_that_lie_outside(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", table(), 2000)
    content = bytearray(path.read_bytes())
    at = content.index(np.cumsum([0, *(len(text.encode()) for text in TEXTS[:9])], dtype="<i4"))
    for value in (1 << 30, -5):
        content[at + 8 : at + 12] = np.array([value], "<i4").tobytes()
        path.write_bytes(content)
        with pytest.raises(UserError, match="lies outside its data"):
            read(path)
    bad = pa.DictionaryArray.from_arrays(pa.array([0, 7]), pa.array(["a"]), safe=False)
    with pytest.raises(pa.ArrowInvalid, match="outside its dictionary"):
        list(arrow_text._slices(bad, 10))


def save(folder: Path, texts: list[list[str]], labels: Any, feature: Any, names: list[str]) -> Path:
    """A folder as datasets' save_to_disk writes it."""
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        content = pa.table({"text": texts[k], "labels": labels[k]})
        with pa.ipc.new_stream(str(folder / name), content.schema) as writer:
            writer.write_table(content)
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "0123456789abcdef",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    (folder / "state.json").write_text(json.dumps(state))
    features = {"text": {"dtype": "string", "_type": "Value"}, "labels": feature}
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


CLASSES = {"names": ["neg", "pos"], "_type": "ClassLabel"}
NAMES = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow"]  # in the order of the state


@pytest.mark.parametrize(
    ("labels", "feature", "wanted"),
    [
        ([[1, 0], [-1]], CLASSES, [["pos"], ["neg"], []]),
        (
            [[[1, 0], []], [[0]]],
            {"feature": CLASSES, "length": -1, "_type": "Sequence"},
            [["pos", "neg"], [], ["neg"]],
        ),
        ([[[1], []], [[0]]], {"feature": CLASSES, "_type": "List"}, [["pos"], [], ["neg"]]),
        ([[[1], []], [[0]]], [CLASSES], [["pos"], [], ["neg"]]),
        ([[1, 5], [0]], {"dtype": "int64", "_type": "Value"}, [["1"], ["5"], ["0"]]),
    ],
)
def test_datasets(tmp_path: Path, labels: Any, feature: Any, wanted: list[list[str]]) -> None:
    folder = save(tmp_path / "set", [["a", "b"], ["c"]], labels, feature, NAMES)
    for entry in (folder, tmp_path, f"{tmp_path}/s*"):
        found = read(entry, labels_field="labels")
        assert found.documents == [b"a", b"b", b"c"]
        assert found.labels == wanted
        assert [Path(part.source.path).name for part in found.parts] == NAMES
        assert {part.source.format for part in found.parts} == {"datasets"}
    with pytest.raises(UserError, match="set has no files"):
        read(folder, format="parquet")


def test_bad_datasets(tmp_path: Path) -> None:
    folder = save(tmp_path / "d/train", [["a"], ["c"]], [[2], [0]], CLASSES, NAMES)
    with pytest.raises(
        UserError, match="row 1 of record batch 1: label 2 is none of the 2 classes"
    ):
        read(folder, labels_field="labels")
    (tmp_path / "d/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for entry in (tmp_path / "d", tmp_path):
        with pytest.raises(
            UserError, match=r"d holds several splits: name one of .*d/train, .*test"
        ):
            read(entry)
    assert read(folder).documents == [b"a", b"c"]
    (folder / NAMES[0]).unlink()
    with pytest.raises(UserError, match=r"of-00002\.arrow is missing"):
        read(folder)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../../x.arrow"}]}')
    with pytest.raises(UserError, match=r"outside its folder: \.\./\.\./x\.arrow"):
        read(folder)
