"""What is left out is counted by reason, whatever the number of processes; or refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import shard
from data_prep.convert import main as convert
from data_prep.inspect import main as show
from data_prep.settings import InputSettings, ShardSettings
from elemdist.errors import UserError
from elemdist.shards import ShardSet, read_manifest


def run(inputs: list[Path], out: Path, **more: Any) -> list[dict[str, Any]]:
    names = [str(path) for path in inputs]
    values = {"n": 16, "v": 8, "processes": 1, "quiet": True} | more
    return shard.run(ShardSettings(names, str(out), **values)).manifests


def lines_of(*records: Any) -> str:
    return "".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in records)


BAD: dict[str, tuple[str, str]] = {
    '{"other": 1}\n': ("records without the field", "no field 'text'"),
    '{"text": null}\n': ("records with null in the field", "holds null"),
    '{"text": 7}\n': ("records with a value of another type", "holds a number"),
    '{"text": ["a"]}\n': ("records with a value of another type", "holds a list"),
    "[1]\n": ("records with a value of another type", "holds a list"),
    "{broken\n": ("records that cannot be parsed", "not valid JSON"),
    '{"text": "\\ud800"}\n': ("documents that are not valid UTF-8", "half of a surrogate pair"),
    '{"text": "x", "id": "\\udfff"}\n': ("documents that are not valid UTF-8", "half of a surrog"),
    '{"text": "x", "id": null}\n': ("records with null in the field", "'id' holds null"),
    '{"text": "x", "id": NaN}\n': ("records with a value of another type", "'id' holds a number"),
    '{"text": "x", "id": 1.5}\n': ("records with a value of another type", "'id' holds a number"),
    '{"text": "x", "id": true}\n': ("records with a value of another type", "true or false"),
    '{"text": "x"}\n': ("records without the field", "no field 'id'"),
}


@pytest.mark.parametrize("line", sorted(BAD))
def test_a_bad_record_is_an_error_or_counted(tmp_path: Path, line: str) -> None:
    reason, problem = BAD[line]
    input = InputSettings(id_field="id" if '"x"' in line else None)
    path = tmp_path / "a.jsonl"
    path.write_text(lines_of({"text": "good", "id": 1}, line, {"text": "good", "id": 2}))
    with pytest.raises(UserError, match=problem):
        run([path], tmp_path / "out", input=input)
    (manifest,) = run([path], tmp_path / "out", input=input, on_error="skip")
    assert manifest["left_out"] == {reason: 1}
    assert manifest["rejected_documents"] == 1
    assert manifest["left_out_examples"][reason] == [f"{path}, line 2"]
    assert manifest["counts"]["documents"] == 2


def corpus(folder: Path) -> Path:
    """A folder with something for each reason."""
    folder.mkdir()
    (folder / ".hidden.jsonl").write_text("x")
    (folder / "notes.doc").write_text("x")
    (folder / "empty.jsonl").write_text("")
    (folder / "blank.jsonl").write_text("\n \n")
    (folder / "none.jsonl.gz").write_bytes(gzip.compress(b""))
    for number in range(4):
        records = [{"text": f"{number} {k}", "labels": ["x"]} for k in range(40)]
        more = [{"text": "", "labels": []}, {"text": "twice", "labels": ["y", "y"]}, "\n"]
        (folder / f"{number}.jsonl").write_text(lines_of(*records, *more))
    schema = pa.schema({"text": pa.string(), "labels": pa.list_(pa.string())})
    pq.write_table(schema.empty_table(), folder / "no.parquet")
    return folder


LEFT = {
    "blank lines": 6,
    "files whose name tells no format that is read here": 1,
    "files without a document": 4,
    "hidden files and folders": 1,
}
NOTED = {
    "documents that name a label twice": 4,
    "documents without a label": 4,
    "documents without text": 4,
}


def test_counts_are_the_same_for_any_number_of_processes(tmp_path: Path, capsys: Any) -> None:
    path = corpus(tmp_path / "in")
    input = InputSettings(labels_field="labels")
    (one,) = run([path], tmp_path / "one", input=input, quiet=False)
    (two,) = run([path], tmp_path / "two", input=input, processes=2)
    assert one == two
    assert one["left_out"] == LEFT
    assert one["noted"] == NOTED
    told = capsys.readouterr().out
    for reason, count in LEFT.items():
        assert told.count(f"left out: {reason}: {count} (") == 1
    for reason, count in NOTED.items():
        assert told.count(f"note: {reason}: {count} (") == 1
    again = run([path], tmp_path / "one", input=input)  # complete already
    assert again == [one]
    with pytest.raises(UserError, match="strict: "):
        run([path], tmp_path / "one", input=input, strict=True)
    show.run(show.InspectSettings(str(tmp_path / "one")))
    assert "left out: blank lines: 6" in capsys.readouterr().out


def test_parts_and_a_run_that_goes_on_count_the_same(tmp_path: Path) -> None:
    path = corpus(tmp_path / "in")
    input = InputSettings(labels_field="labels")
    for _ in range(2):
        for part in ("0/2", "1/2"):
            run([path], tmp_path / "out", input=input, part=part)
    (manifest,) = run([path], tmp_path / "out", input=input)
    assert manifest["left_out"] == LEFT
    assert manifest["noted"] == NOTED
    (path / "4.jsonl").write_text('{"text": "x", "labels": ["z"]}\n{broken\n')
    with pytest.raises(UserError, match="not valid JSON"):
        run([path], tmp_path / "more", input=input)
    (manifest,) = run([path], tmp_path / "more", input=input, on_error="skip")
    assert manifest["left_out"] == {**LEFT, "records that cannot be parsed": 1}


STRICT = {
    "blank": "blank lines: 1",
    "empty": "documents without text: 1",
    "csv": "blank lines: 1",
    "hidden": "hidden files and folders: 1",
    "mark": "files with a byte order mark, which is kept: 1",
    "return": "carriage returns in documents that are lines, which are kept: 2",
    "none": "files without a document: 1",
}


@pytest.mark.parametrize("name", sorted(STRICT))
def test_strict_refuses(tmp_path: Path, name: str) -> None:
    folder, document = tmp_path / "in", "line"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "x"}\n' + "\n" * (name == "blank"))
    if name == "empty":
        (folder / "b.jsonl").write_text('{"text": ""}\n')
    if name == "csv":
        (folder / "b.csv").write_text("text\nx\n\ny\n")
    if name == "hidden":
        (folder / ".x").write_text("")
    if name == "mark":
        (folder / "b.txt").write_bytes(b"\xef\xbb\xbfx")
    if name == "return":
        (folder / "b.txt").write_bytes(b"x\r\ny\rz\n")
    if name == "none":
        (folder / "b.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=rf"^strict: {STRICT[name]} \("):
        run([folder], tmp_path / "out", strict=True, input=InputSettings(document=document))
    assert not (tmp_path / "out").exists()
    (manifest,) = run([folder], tmp_path / "out", input=InputSettings(document=document))
    reason, count = STRICT[name].rsplit(": ", 1)
    assert {**manifest["left_out"], **manifest["noted"]} == {reason: int(count)}
    with pytest.raises(UserError, match="strict and on_error skip"):
        run([folder], tmp_path / "out2", strict=True, on_error="skip")


def test_what_the_settings_ask_for_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines_of(*({"text": f"{k % 3}"} for k in range(10))))
    (manifest,) = run([path], tmp_path / "out", dedup="exact", strict=True)
    assert manifest["left_out"] == {"documents that came before (dedup)": 7}
    sets = convert.ConvertSettings([str(tmp_path / "out")], str(tmp_path / "few"), quiet=True)
    sets.every, sets.strict = 2, True
    convert.run(sets)
    assert read_manifest(str(tmp_path / "few"))["left_out"] == {"samples that were not selected": 1}


def test_tar_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a.txt", "b.txt", "c.png"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
        links = {"s.txt": tarfile.SYMTYPE, "h.txt": tarfile.LNKTYPE, "f.txt": tarfile.FIFOTYPE}
        for name, kind in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.txt"
            archive.addfile(member)
    input = InputSettings(members="*.txt")
    with pytest.raises(UserError, match=r"member s\.txt: is a link"):
        run([path], tmp_path / "out", input=input)
    (manifest,) = run([path], tmp_path / "out", input=input, on_error="skip")
    assert manifest["left_out"] == {
        "tar members that are links or devices": 3,
        "tar members that input.members leaves out": 1,
    }


def tar_of(*names: str) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return sink.getvalue()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_archives_behind_each_other(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / ("a.tar" if pack is bytes else "a.tar.gz")
    first, second = tar_of("one", "two"), tar_of("three")
    whole = {
        "members": pack(first) + pack(second),
        "zeros": pack(first + b"\0" * 512 * 70_000 + second),
        "at once": pack(first + second + tar_of() + tar_of("four")),
    }
    for name, content in whole.items():
        path.write_bytes(content)
        (manifest,) = run([path], tmp_path / name)
        assert manifest["counts"]["documents"] == 3 + (name == "at once")
    garbage = {
        "text": (first + b"hello" * 300, "goes on at byte 10,240 behind the end of an archive"),
        "line": (first + b"\n", "goes on at byte 10,240 behind the end of an archive"),
        "cut": ((first + second)[:-9500], "cut short"),
        "no end": (first[:2048], "cut short"),
    }
    for content, problem in garbage.values():
        path.write_bytes(pack(content))
        with pytest.raises(UserError, match=problem):
            run([path], tmp_path / "bad")


def test_empty_sets_are_said(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines_of({"text": "one"}))
    split = "train=0.98,val=0.01,test=0.01"
    manifests = run([path], tmp_path / "out", split=split, quiet=False)
    assert [one["counts"]["documents"] for one in manifests] == [1, 0, 0]
    assert all(one["empty_sets"] == ["val", "test"] for one in manifests)
    told = capsys.readouterr()
    for name in ("val", "test"):
        assert f"warning: {tmp_path}/out/{name} is empty: no document went there" in told.err
    assert f"{tmp_path}/out/val: no document\n" in told.out
    assert "1 document, 3 bytes of text, 2 rows, 1 sample of" in told.out
    assert "1 documents" not in told.out


HOT = {
    "ints": [[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]],
    "floats": [[0.0, 1.0, 0.0, 1.0], [0.0] * 4, [1.0, 0.0, 0.0, 0.0]],
    "booleans": [[False, True, False, True], [False] * 4, [True, False, False, False]],
    "texts": [["0", "1", "0", "1"], ["0"] * 4, ["1", "0", "0", "0"]],
}


@pytest.mark.parametrize("kind", sorted(HOT))
@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".csv"])
def test_multi_hot(tmp_path: Path, kind: str, ending: str) -> None:
    path, names = tmp_path / f"a{ending}", tmp_path / "names.txt"
    names.write_text("zebra\nant\nbee\ncat\n")
    records = [{"text": f"t{k}", "labels": hot} for k, hot in enumerate(HOT[kind])]
    more = {}
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif ending == ".csv":
        more = {"labels_separator": ";"}
        rows = [f"{one['text']},{';'.join(map(str, one['labels']))}\n" for one in records]
        path.write_text("text,labels\n" + "".join(rows))
    else:
        path.write_text(lines_of(*records))
    if ending != ".csv" or kind in ("ints", "texts"):
        with pytest.raises(UserError, match=r"--input\.labels-as multi_hot"):
            run([path], tmp_path / "out", input=InputSettings(labels_field="labels", **more))
    input = InputSettings(
        labels_field="labels", labels_as="multi_hot", label_names=str(names), **more
    )
    (manifest,) = run([path], tmp_path / "out", input=input)
    assert manifest["labels"] == ["zebra", "ant", "bee", "cat"]
    labels_BL = ShardSet(str(tmp_path / "out")).gather(np.arange(3))[1]
    assert labels_BL is not None
    assert labels_BL.tolist() == [[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert manifest["noted"] == {"documents without a label": 1}
    names.write_text("zebra\nbee\nant\ncat\n")  # not the same plan any more
    with pytest.raises(UserError, match="is not empty"):
        run([path], tmp_path / "out", input=input)
    input.label_names = None
    (manifest,) = run([path], tmp_path / "numbers", input=input)
    assert manifest["labels"] == ["0", "1", "3"]


def test_one_hot_lists_of_two_and_wrong_lists(tmp_path: Path) -> None:
    path, names = tmp_path / "a.jsonl", tmp_path / "names.txt"
    path.write_text(lines_of({"text": "a", "labels": [0, 1]}, {"text": "b", "labels": [1, 0]}))
    with pytest.raises(UserError, match="every document has both labels"):
        run([path], tmp_path / "out", input=InputSettings(labels_field="labels"))
    for content, problem in (
        ("a\nb\nc\n", "2 instead of 3"),
        ("a\na\n", "line 2: the label 'a' was named before"),
        ("a\n\n", "line 2: a label has no name"),
        ("", "names no label"),
    ):
        names.write_text(content)
        input = InputSettings(labels_field="labels", labels_as="multi_hot", label_names=str(names))
        with pytest.raises(UserError, match=problem):
            run([path], tmp_path / "out", input=input)
    names.write_text("no\nyes\n")  # numbers of classes, by the same file
    path.write_text(lines_of({"text": "a", "labels": 1}, {"text": "b", "labels": [0]}))
    input = InputSettings(labels_field="labels", label_names=str(names))
    (manifest,) = run([path], tmp_path / "classes", input=input)
    assert manifest["label_counts"] == {"no": 1, "yes": 1}


def test_class_names_out_of_the_metadata_of_parquet(tmp_path: Path) -> None:
    feature = {"names": ["no", "yes"], "_type": "ClassLabel"}
    info = {"info": {"features": {"labels": {"feature": feature, "_type": "List"}}}}
    table = pa.table({"text": ["a", "b"], "labels": [[1, 0], [-1]]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, tmp_path / "a.parquet")
    input = InputSettings(labels_field="labels")
    (manifest,) = run([tmp_path / "a.parquet"], tmp_path / "out", input=input)
    assert manifest["label_counts"] == {"no": 1, "yes": 1}
    assert manifest["noted"] == {
        "documents without a label": 1,
        "labels -1, which stand for no class": 1,
    }


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ("", "an empty text"),
        (["a", ""], "an empty text"),
        ("['a', 'b']", "a list that is written as text"),
        ('["a"]', "a list that is written as text"),
        ("[0, 1, 0]", "a list that is written as text"),
        ("[0. 1. 0.]", "a list that is written as text"),
        (None, "holds null"),
        ([None], "holds null"),
        ([["a"]], "holds a list"),
        ({"a": 1}, "holds an object"),
        (1.5, "holds a number"),
        (True, "true or false"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, labels: Any, problem: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines_of({"text": "x", "labels": labels}))
    with pytest.raises(UserError, match=problem):
        run([path], tmp_path / "out", input=InputSettings(labels_field="labels"))
    path.write_text(lines_of({"text": "x", "labels": ["[UNK]", "a, b"]}))
    (manifest,) = run([path], tmp_path / "good", input=InputSettings(labels_field="labels"))
    assert manifest["labels"] == ["[UNK]", "a, b"]


def test_a_set_that_is_named_twice_is_converted_once(tmp_path: Path, capsys: Any) -> None:
    path, link = tmp_path / "set", tmp_path / "link"
    (tmp_path / "a.jsonl").write_text(lines_of({"text": "x"}, {"text": "y"}))
    run([tmp_path / "a.jsonl"], path)
    link.symlink_to(path)
    reason = "inputs that were named before"
    for number, more in enumerate(({}, {"n": 8})):  # copied, and sharded anew
        out = tmp_path / f"{number}"
        names = [str(path), f"{path}/", str(link)]
        convert.run(convert.ConvertSettings(names, str(out), quiet=True, **more))
        manifest = read_manifest(str(out))
        assert manifest["counts"]["documents"] == 2
        assert manifest["left_out"] == {reason: 2}
        with pytest.raises(UserError, match=f"strict: {reason}"):
            convert.run(convert.ConvertSettings(names, str(out) + "s", strict=True, **more))
    text = convert.ConvertSettings([str(path), str(link)], str(tmp_path / "t.jsonl"), to="jsonl")
    convert.run(text)
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == 2
    assert f"left out: {reason}: 1 " in capsys.readouterr().err
