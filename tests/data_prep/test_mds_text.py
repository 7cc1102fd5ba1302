"""Documents out of text columns that streaming's own writer wrote."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mds_reading import TEXTS, part_of, read, settings_of

from data_prep.readers import mds_text
from elemdist.errors import UserError
from elemdist.streaming_compat import import_streaming


@pytest.fixture(scope="module")
def streaming() -> Any:
    return import_streaming()


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
    "ndarray:int64": (lambda k: np.full((2, 300), k + 2), lambda k: [str(k + 2)] * 600),
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
