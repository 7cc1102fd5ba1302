"""Documents out of MDS sets: our rows, and text columns that streaming's own writer wrote."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import SAMPLES, texts

from data_prep import mds_read, mds_rows, mds_text
from data_prep.documents import Batch, Part, Problems, Source
from data_prep.mds import MdsWriter, write_index
from data_prep.mds_files import MdsFolder
from data_prep.pack import Packer
from data_prep.settings import InputSettings, ShardSettings
from data_prep.store import LocalStore
from elemdist.errors import UserError
from elemdist.shards import ShardSet
from elemdist.streaming_compat import import_streaming

TEXTS = sorted(SAMPLES.values())
LABELS = ["a", "b", "c", "d", "e", "f", "g", "h", "ij"]


@pytest.fixture(scope="module")
def streaming() -> Any:
    return import_streaming()


def settings_of(**more: Any) -> ShardSettings:
    settings = ShardSettings(["in"], "out", on_invalid=more.pop("on_invalid", "error"))
    settings.input = InputSettings(format="mds", **more)
    return settings


def part_of(path: Path | str, start: int = 0, end: int | None = None) -> Part:
    folder = MdsFolder(str(path))
    source = Source(str(path), "mds", "", folder.stored_bytes(0, folder.samples), "")
    return Part(source, start, folder.samples if end is None else end, 1000)


def read(
    part: Part, settings: ShardSettings | None = None, rejects: list[Any] | None = None
) -> tuple[list[tuple[bytes, list[str], int]], list[Batch]]:
    """Text, labels and place of each document, and the batches as they came."""
    problems = Problems(rejects is not None, (rejects if rejects is not None else []).append)
    done: list[int] = []
    reader = mds_read.MdsReader(part, settings or settings_of(), problems, done.append)
    batches = list(reader.batches())
    assert sum(done) == part.weight
    assert len(reader.digest()) == 32
    found: list[tuple[bytes, list[str], int]] = []
    open_before = False
    for batch in batches:
        assert batch.begun == open_before
        open_before = batch.open
        for k, (start, end) in enumerate(zip(batch.starts, batch.ends, strict=True)):
            text = batch.data[start:end].tobytes()
            text.decode()
            labels = batch.labels[k] if batch.labels else []
            if k == 0 and batch.begun:
                assert text, "an empty piece"
                assert found[-1][1:] == (labels, batch.places[0])
                found[-1] = (found[-1][0] + text, labels, found[-1][2])
            else:
                found.append((text, labels, batch.places[k]))
    assert not open_before
    return found, batches


def write_rows(
    folder: Path,
    documents: list[bytes],
    labels: list[list[str]] | None = None,
    compression: str | None = None,
    shard_bytes: int = 3000,
    **pack: Any,
) -> None:
    """A set of rows as small as it gets, of several shards."""
    settings: dict[str, Any] = {"n": 5, "v": 3, "segmenter": "word", "packing": "document"}
    settings |= {"overlong": "split"} | pack
    n, v = settings["n"], settings["v"]
    names = LABELS if labels is not None else []
    store = LocalStore(str(folder))
    writer = MdsWriter(
        store,
        "shard.00000",
        n=n,
        v=v,
        labels=len(names),
        size_limit=shard_bytes,
        compression=compression,
    )
    block = np.empty((writer.samples_per_shard, writer.sample_bytes), np.uint8)
    packer = Packer(block, writer.write, **settings)
    for k, document in enumerate(documents):
        hot = [[name in labels[k] for name in names]] if labels is not None else [[]]
        bitmap = np.packbits(np.array(hot, bool), axis=1)
        data = np.frombuffer(document, np.uint8)
        packer.add(data, np.zeros(1, np.int64), np.array([len(data)]), bitmap)
    manifest = settings | {"format": "elemdist-shards", "version": 1, "label_counts": None}
    manifest |= {"labels": names or None, "counts": packer.finish(), "padding_share": 0}
    store.write("manifest.json", json.dumps(manifest).encode())
    write_index(store, writer.shards)


def expected(documents: list[bytes], folder: Path, start: int, end: int) -> list[bytes]:
    """The documents that begin in these samples, by the places of DOC rows alone."""
    rows_BNV, _ = ShardSet(str(folder)).gather(np.arange(MdsFolder(str(folder)).samples))
    begins = np.nonzero(rows_BNV[:, :, 0] == 0xFD)[0]
    assert len(begins) == len(documents)
    return [text for text, at in zip(documents, begins, strict=True) if start <= at < end]


@pytest.mark.parametrize("packing", ["document", "packed"])
@pytest.mark.parametrize("segmenter", ["word", "byte"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(documents=st.lists(texts, min_size=1, max_size=12), data=st.data())
def test_every_part_has_the_documents_that_begin_in_it(
    packing: str, segmenter: str, documents: list[str], data: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    shutil.rmtree(folder, ignore_errors=True)
    raw = [text.encode() for text in documents]
    write_rows(folder, raw, packing=packing, segmenter=segmenter, shard_bytes=600)
    samples = MdsFolder(str(folder)).samples
    assert [text for text, _, _ in read(part_of(folder))[0]] == raw
    cuts = data.draw(st.lists(st.integers(0, samples), max_size=4))
    bounds = sorted({0, samples, *cuts})
    found: list[bytes] = []
    for start, end in itertools.pairwise(bounds):
        here = [text for text, _, _ in read(part_of(folder, start, end))[0]]
        assert here == expected(raw, folder, start, end)
        found += here
    assert found == raw


def test_every_boundary_of_a_packed_set_with_long_documents(tmp_path: Path) -> None:
    raw = [text.encode() for text in [*TEXTS[:4], "", "x" * 300, "é" * 200, "", "end"]]
    write_rows(tmp_path / "set", raw, packing="packed", shard_bytes=500)
    samples = MdsFolder(str(tmp_path / "set")).samples
    assert len(MdsFolder(str(tmp_path / "set")).shards) > 5
    for at in range(1, samples):
        found = [
            text
            for start, end in ((0, at), (at, samples))
            for text, _, _ in read(part_of(tmp_path / "set", start, end))[0]
        ]
        assert found == raw, at


def test_cut_covers_all_samples_once(tmp_path: Path) -> None:
    raw = [text.encode() * 3 for text in TEXTS]
    for compression in (None, "zstd"):
        folder = tmp_path / f"set-{compression}"
        write_rows(folder, raw, packing="packed", compression=compression)
        opened = MdsFolder(str(folder))
        whole = part_of(folder).source
        for limit in (1, 700, 5000, 1 << 30):
            parts = mds_read.cut(whole, limit)
            assert [parts[0].start, parts[-1].end] == [0, opened.samples]
            assert all(a.end == b.start for a, b in itertools.pairwise(parts))
            assert all(part.start < part.end and part.weight > 0 for part in parts)
            if compression:
                assert {part.end for part in parts} <= set(opened.ends.tolist())
            found = [text for part in parts for text, _, _ in read(part)[0]]
            assert found == raw
        assert len(mds_read.cut(whole, 1 << 30)) == 1
        assert len(mds_read.cut(whole, 700)) >= len(opened.shards)


def test_labels_and_places(tmp_path: Path) -> None:
    raw = [text.encode() for text in TEXTS]
    labels = [[LABELS[k % 9], LABELS[(k * 5 + 1) % 9]][: k % 3] for k in range(len(raw))]
    write_rows(tmp_path / "set", raw, labels)
    asked = settings_of(labels_field="whatever")
    found, _ = read(part_of(tmp_path / "set"), asked)
    assert [(text, set(names)) for text, names, _ in found] == [
        (text, set(names)) for text, names in zip(raw, labels, strict=True)
    ]
    later, _ = read(part_of(tmp_path / "set", 7), asked)
    assert [place + 7 for _, _, place in later] == [place for _, _, place in found][-len(later) :]
    assert all(names == [] for _, names, _ in read(part_of(tmp_path / "set"))[0])
    write_rows(tmp_path / "bare", raw)
    with pytest.raises(UserError, match="has no labels"):
        read(part_of(tmp_path / "bare"), asked)


@pytest.mark.parametrize("long", [8, 64, 500])
def test_long_documents_come_in_whole_characters(
    long: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mds_rows, "LONG_BYTES", long)
    monkeypatch.setattr(mds_read, "BLOCK_BYTES", 40)
    raw = [b"", b"a", *(text.encode() * 4 for text in TEXTS), b"", "中".encode() * 400]
    for segmenter in ("word", "byte"):
        write_rows(tmp_path / segmenter, raw, packing="packed", segmenter=segmenter)
        found, batches = read(part_of(tmp_path / segmenter))
        assert [text for text, _, _ in found] == raw
        assert any(batch.open for batch in batches)


def test_a_character_that_truncation_cut_is_left_out(tmp_path: Path) -> None:
    raw = ["a中中中中中中中中", "b", "é" * 40, "x" * 99]
    encoded = [text.encode() for text in raw]
    write_rows(tmp_path / "set", encoded, segmenter="byte", overlong="truncate", v=4)
    found = [text.decode() for text, _, _ in read(part_of(tmp_path / "set"))[0]]
    assert found == ["a中中中中中", "b", "é" * 8, "x" * 16]


def test_damage_is_found(tmp_path: Path) -> None:
    raw = [text.encode() for text in TEXTS]
    write_rows(tmp_path / "set", raw)
    shard = tmp_path / "set" / "shard.00000.00001.mds"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError, match=r"shard.00000.00001.mds is damaged, its hash differs"):
        read(part_of(tmp_path / "set"))
    shard.write_bytes(good[:-1])
    with pytest.raises(UserError, match="copy it again"):
        read(part_of(tmp_path / "set"))
    shard.unlink()
    with pytest.raises(UserError, match="missing"):
        read(part_of(tmp_path / "set"))
    index = json.loads((tmp_path / "set" / "index.json").read_text())
    index["shards"][0]["raw_data"]["basename"] = "../other"
    (tmp_path / "set" / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside its folder"):
        MdsFolder(str(tmp_path / "set"))


def test_fingerprint_is_that_of_a_shard_set(tmp_path: Path) -> None:
    write_rows(tmp_path / "set", [b"x"])
    assert (
        MdsFolder(str(tmp_path / "set")).fingerprint == ShardSet(str(tmp_path / "set")).fingerprint
    )


def write_text(
    streaming: Any,
    folder: Path,
    columns: dict[str, str],
    samples: list[dict[str, Any]],
    **more: Any,
) -> None:
    more = {"size_limit": 4000, "hashes": ["sha1", "xxh64"]} | more
    with streaming.MDSWriter(columns=columns, out=str(folder), **more) as writer:
        for sample in samples:
            writer.write(sample)


LABEL_COLUMNS = {
    "str": (lambda k: f"l{k}", lambda k: [f"l{k}"]),
    "int": (lambda k: k, lambda k: [str(k)]),
    "uint16": (lambda k: k, lambda k: [str(k)]),
    "int8": (lambda k: -k, lambda k: [str(-k)]),
    "str_int": (lambda k: 10**30 + k, lambda k: [str(10**30 + k)]),
    "json": (lambda k: [f"l{k}", k], lambda k: [f"l{k}", str(k)]),
    "ndarray": (
        lambda k: np.arange(1, k + 2, dtype=np.int32),
        lambda k: [*map(str, range(1, k + 2))],
    ),
    "ndarray:int64": (lambda k: np.full((2, 300), k), lambda k: [str(k)] * 600),
    "ndarray:uint8:2": (lambda k: np.array([k, 7], np.uint8), lambda k: [str(k), "7"]),
}


@pytest.mark.parametrize("encoding", sorted(LABEL_COLUMNS))
@pytest.mark.parametrize("compression", [None, "zstd", "gz"])
def test_text_sets_of_streaming(
    encoding: str, compression: str | None, tmp_path: Path, streaming: Any
) -> None:
    value, wanted = LABEL_COLUMNS[encoding]
    samples = [
        {"zz": b"\xff" * (k % 5), "text": text, "labels": value(k), "id": f"doc {k}", "f": 1.5}
        for k, text in enumerate([*TEXTS, "", "a"])
    ]
    columns = {"zz": "bytes", "text": "str", "labels": encoding, "id": "str", "f": "float32"}
    write_text(streaming, tmp_path / "set", columns, samples, compression=compression)
    asked = settings_of(labels_field="labels", id_field="id")
    found, batches = read(part_of(tmp_path / "set"), asked)
    assert [text.decode() for text, _, _ in found] == [sample["text"] for sample in samples]
    assert [names for _, names, _ in found] == [wanted(k) for k in range(len(samples))]
    assert [name for batch in batches for name in batch.ids] == [s["id"] for s in samples]
    assert [place for _, _, place in found] == [*range(1, len(samples) + 1)]
    for at in range(1, len(samples), 5):
        two = [read(part_of(tmp_path / "set", a, b))[0] for a, b in ((0, at), (at, None))]
        assert [text for part in two for text, _, _ in part] == [text for text, _, _ in found]


def test_which_column_is_the_text(tmp_path: Path, streaming: Any) -> None:
    write_text(streaming, tmp_path / "a", {"bytes": "bytes", "n": "int"}, [{"bytes": b"x", "n": 1}])
    assert read(part_of(tmp_path / "a"))[0] == [(b"x", [], 1)]
    write_text(streaming, tmp_path / "b", {"body": "str", "n": "int"}, [{"body": "y", "n": 1}])
    assert read(part_of(tmp_path / "b"), settings_of(text_field="body"))[0] == [(b"y", [], 1)]
    with pytest.raises(UserError, match=r"no column 'text' \(its columns: body, n\).*text-field"):
        read(part_of(tmp_path / "b"))
    with pytest.raises(UserError, match="column 'n' has encoding int"):
        read(part_of(tmp_path / "b"), settings_of(text_field="n"))


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("it was unpickled",))


def test_pickles_are_refused(tmp_path: Path, streaming: Any) -> None:
    columns = {"text": "pkl", "labels": "pkl"}
    bomb = pickle.dumps(Bomb())
    write_text(streaming, tmp_path / "set", columns, [{"text": bomb, "labels": bomb}])
    with pytest.raises(UserError, match="encoding pkl"):
        read(part_of(tmp_path / "set"))
    columns = {"text": "str", "labels": "pkl"}
    write_text(streaming, tmp_path / "labels", columns, [{"text": "x", "labels": bomb}])
    assert read(part_of(tmp_path / "labels"))[0] == [(b"x", [], 1)]
    with pytest.raises(UserError, match="encoding pkl"):
        read(part_of(tmp_path / "labels"), settings_of(labels_field="labels"))


def test_invalid_text(tmp_path: Path, streaming: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first two are valid together, but neither is by itself.
    raw = [b"good", b"\xc3", b"\xa9", b"fine", b"ab\xff\xe4\xb8c" + b"x" * 50]
    samples = [{"text": text} for text in raw]
    write_text(streaming, tmp_path / "set", {"text": "bytes"}, samples)
    for long in (mds_text.LONG_BYTES, 8):
        monkeypatch.setattr(mds_text, "LONG_BYTES", long)
        monkeypatch.setattr(mds_text, "PIECE_BYTES", 3)
        with pytest.raises(UserError, match=r"set, sample 1: invalid UTF-8 at byte 0 \(0xc3\)"):
            read(part_of(tmp_path / "set"))
        rejects: list[Any] = []
        found, _ = read(part_of(tmp_path / "set"), rejects=rejects)
        assert [text for text, _, _ in found] == [b"good", b"fine"]
        assert [reject["where"] for reject in rejects] == [f"sample {k}" for k in (1, 2, 4)]
        found, batches = read(part_of(tmp_path / "set"), settings_of(on_invalid="replace"))
        assert [text for text, _, _ in found] == [
            text.decode(errors="replace").encode() for text in raw
        ]
        assert sum(batch.replaced for batch in batches) == 3


def test_long_text_comes_in_pieces(
    tmp_path: Path, streaming: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mds_text, "LONG_BYTES", 50)
    monkeypatch.setattr(mds_text, "PIECE_BYTES", 7)
    samples = [{"text": text, "labels": [k]} for k, text in enumerate([*TEXTS, "x", *TEXTS])]
    columns = {"text": "str", "labels": "json"}
    write_text(streaming, tmp_path / "set", columns, samples)
    found, batches = read(part_of(tmp_path / "set"), settings_of(labels_field="labels"))
    assert [text.decode() for text, _, _ in found] == [sample["text"] for sample in samples]
    assert [names for _, names, _ in found] == [[str(k)] for k in range(len(samples))]
    assert any(batch.open for batch in batches)


def test_sizes_that_do_not_fit_are_damage(tmp_path: Path, streaming: Any) -> None:
    write_text(streaming, tmp_path / "set", {"text": "str"}, [{"text": "abcdef"}], hashes=[])
    shard = tmp_path / "set" / "shard.00000.mds"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10] + b"\xff\xff\xff\xff" + content[-6:])
    with pytest.raises(UserError, match="is damaged, the sizes in a sample do not fit"):
        read(part_of(tmp_path / "set"))
