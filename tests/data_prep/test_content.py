"""Files of other formats: read, or refused with a command that makes what is read here."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import zstandard
from reading import read

from data_prep.documents import Source
from data_prep.losses import Losses
from data_prep.readers import sources
from data_prep.readers.content import advice
from data_prep.settings import InputSettings
from elemdist.errors import UserError

TEXTS = ["Grüße an alle", "zwei", "三つ目の文書"]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)


def lz4(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".lz4": lz4,
}


def refused(path: Path, **input: object) -> str:
    """What the reader says of a file, behind its name."""
    with pytest.raises(UserError) as caught:
        read(path, **input)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(path)).lstrip(": ")


def texts_after(folder: Path, message: str, made: str, **input: object) -> list[str]:
    """The documents of what the printed command makes."""
    command = message.split(": ", 1)[1]
    subprocess.run(command, shell=True, check=True, cwd=folder)
    return [text.decode() for text in read(folder / made, **input).documents]


@pytest.mark.parametrize(
    "name", ["UTF-16", "UTF-32", "UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"]
)
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".txt"])
def test_other_encodings(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"it's{ending}"
    content = LINES.encode(name)
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    message = refused(path)
    assert message.startswith(f"is {name}, not UTF-8")
    found = texts_after(tmp_path, message, f"it's.utf8{ending.removesuffix('.gz')}")
    assert found == ([LINES] if ending == ".txt" else TEXTS)


def test_cyrillic_without_a_mark(tmp_path: Path) -> None:
    text = "Пшеница подорожала на треть, сообщает ведомство.\n" * 3
    (tmp_path / "a.txt").write_text(text, encoding="utf-16-le")
    message = refused(tmp_path / "a.txt")
    assert message.startswith("is UTF-16LE, not UTF-8")
    assert texts_after(tmp_path, message, "a.utf8.txt") == [text]


def test_text_with_a_few_nuls_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for text in ("a\0b", "\0" * 20, "abc\0def\0ghi\0", "x\0\0\0", "一\0" * 9):
        path.write_text(text, encoding="utf-8", newline="")
        assert read(path).documents == [text.encode()]


@pytest.mark.parametrize("ending", sorted(PACK))
def test_compressed_files_with_and_without_their_ending(tmp_path: Path, ending: str) -> None:
    packed = PACK[ending](LINES.encode())
    (tmp_path / f"a.jsonl{ending}").write_bytes(packed + PACK[ending](LINES.encode()))
    assert [text.decode() for text in read(tmp_path / f"a.jsonl{ending}").documents] == TEXTS * 2
    path = tmp_path / "b.jsonl"
    path.write_bytes(packed)
    assert texts_after(tmp_path, refused(path), f"b.jsonl{ending}") == TEXTS


@pytest.mark.parametrize("ending", sorted(PACK))
def test_what_follows_compressed_data_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    packed = PACK[ending](LINES.encode())
    for rest in (b"\n", b"garbage behind the end", packed[:20]):
        path.write_bytes(packed + rest)
        message = refused(path)
        behind = f"goes on at byte {len(packed)} behind the end"
        assert behind in message or "cut short" in message or ending == ".lz4", message
    path.write_bytes(packed[:-3])
    assert "cut short" in refused(path)


def test_zstd_skippable_frames_and_a_long_window(tmp_path: Path) -> None:
    skipped = b"\x5a\x2a\x4d\x18\x03\0\0\0abc"
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    long = zstandard.ZstdCompressor(compression_params=parameters).compress(LINES.encode())
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(skipped + PACK[".zst"](LINES.encode()) + skipped + long + skipped)
    assert [text.decode() for text in read(path).documents] == TEXTS * 2


def test_compressed_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.compress(LINES.encode())))
    message = refused(path)
    assert message.startswith("is compressed twice")
    subprocess.run(message.split(": ", 1)[1], shell=True, check=True, cwd=tmp_path)
    assert texts_after(tmp_path, refused(tmp_path / "a.jsonl"), "a.jsonl.gz") == TEXTS


@pytest.mark.parametrize("ending", [".zip", ".jsonl"])
def test_zip(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a b{ending}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.jsonl", LINES)
    message = refused(path)
    assert message.startswith("is a zip archive")
    assert texts_after(tmp_path, message, "a b_files") == TEXTS


@pytest.mark.parametrize("ending", [".json", ".json.zst", ".jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_that_is_not_one_record_a_line(
    tmp_path: Path, ending: str, indent: int | None
) -> None:
    path = tmp_path / f"a{ending}"
    array = json.dumps([{"text": text} for text in TEXTS], indent=indent).encode()
    path.write_bytes(PACK[".zst"](array) if ending.endswith("zst") else array)
    assert texts_after(tmp_path, refused(path), "a.lines.jsonl") == TEXTS
    one = tmp_path / "b.json"
    one.write_text(json.dumps({"text": "one"}, indent=4))
    assert texts_after(tmp_path, refused(one), "b.lines.jsonl") == ["one"]


def test_feather_of_version_1(tmp_path: Path) -> None:
    path = tmp_path / "a.feather"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        feather.write_feather(pa.table({"text": TEXTS}), str(path), version=1)
    message = refused(path)
    assert message.startswith("is Feather of version 1")
    assert texts_after(tmp_path, message, "a.v2.feather") == TEXTS


def test_formats_under_another_name(tmp_path: Path) -> None:
    table = pa.table({"text": TEXTS})
    pq.write_table(table, tmp_path / "a.jsonl")
    assert refused(tmp_path / "a.jsonl") == "holds parquet: --input.format parquet"
    feather.write_feather(table, str(tmp_path / "b.txt"), compression="uncompressed")
    assert refused(tmp_path / "b.txt") == "holds arrow: --input.format arrow"
    with tarfile.open(tmp_path / "c.txt", "w") as archive:
        archive.add(tmp_path / "a.jsonl", "x")
    assert refused(tmp_path / "c.txt") == "holds a tar archive: --input.format tar"
    with tarfile.open(tmp_path / "d.tar", "w:gz") as archive:
        (tmp_path / "plain").write_text("in the tar")
        archive.add(tmp_path / "plain", "x")
    assert texts_after(tmp_path, refused(tmp_path / "d.tar"), "d.tar.gz") == ["in the tar"]
    for name, format in (("a.jsonl", "parquet"), ("b.txt", "arrow")):
        assert len(read(tmp_path / name, format=format).documents) == len(TEXTS)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"%PDF-1.7\n%\xe2\xe3", "is a PDF"),
        (b"7z\xbc\xaf\x27\x1c\0", "is a 7z archive"),
        (b"Rar!\x1a\x07\x01", "is a rar archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a", "is a document of an office program"),
        (b"\x89PNG\r\n", "is a picture"),
        (b"\x7fELF\x02", "is a program"),
    ],
)
def test_what_has_no_reader_is_named(tmp_path: Path, head: bytes, what: str) -> None:
    (tmp_path / "a.txt").write_bytes(head + bytes(range(256)) * 20)
    assert refused(tmp_path / "a.txt").startswith(what)


def record(kind: str, body: bytes, address: str = "") -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\n" + (
        f"WARC-Target-URI: {address}\r\n" * bool(address)
    )
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n"


@pytest.mark.parametrize("ending", [".wet", ".warc.wet.gz", ".warc.gz"])
def test_wet_files(tmp_path: Path, ending: str) -> None:
    body = [text.encode() for text in TEXTS] + [b"long " * 900_000]
    records = [record("warcinfo", b"made: today")]
    records += [record("conversion", text, f"http://x/{k}") for k, text in enumerate(body)]
    records.insert(3, record("response", b"<html>\r\n\r\n</html>", "http://y"))
    # Each record a member, as Common Crawl writes them.
    packed = b"".join(map(gzip.compress if ending.endswith("gz") else bytes, records))
    path = tmp_path / f"a{ending}"
    path.write_bytes(packed)
    found = read(path)
    assert found.documents == body
    assert found.ids == [f"http://x/{k}" for k in range(len(body))]
    for cut in (len(packed) - 30, len(packed) // 2, 40):
        path.write_bytes(packed[:cut])
        assert "cut short" in refused(path)


def test_what_a_folder_leaves_out_is_counted(tmp_path: Path) -> None:
    for name in ("a.txt", ".hidden.txt", "b.docx", "c.jsonl", ".git/x.txt", "d/e.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("text")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again.txt").symlink_to(tmp_path / "in" / "a.txt")
    (tmp_path / "in" / "hard.txt").hardlink_to(tmp_path / "in" / "d" / "e.txt")
    losses = Losses()
    found = sources.find_sources([str(tmp_path / "in")], InputSettings(), losses)
    names = [Path(one.path).name for one in found]
    assert names == ["a.txt", "c.jsonl", "hard.txt"]
    assert losses.counts == {
        "hidden files and folders": 2,
        "files whose name tells no format that is read here": 1,
        "links to folders": 1,
        "inputs that were named before": 2,
    }
    losses = Losses()
    sources.find_sources([str(tmp_path / "in")], InputSettings(format="jsonl"), losses)
    assert losses.counts["files of another format than input.format"] == 4


@pytest.mark.parametrize(
    "again", ["in", "in/a.txt", "in/*.txt", "./in/a.txt", "in/../in/a.txt", "link.txt", "hard.txt"]
)
def test_a_file_that_is_reached_twice_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("in/a.txt").write_text("text")
    Path("link.txt").symlink_to("in/a.txt")
    Path("hard.txt").hardlink_to("in/a.txt")
    for inputs in (["in/a.txt", again], [again, "in/a.txt"]):
        losses = Losses()
        assert len(sources.find_sources(inputs, InputSettings(), losses)) == 1
        assert losses.counts == {"inputs that were named before": 1}
        with pytest.raises(UserError, match="strict: inputs that were named before: 1"):
            sources.find_sources(inputs, InputSettings(), Losses(strict=True))


def test_what_is_piped_gets_a_filter() -> None:
    source = Source("-", "jsonl", "", 0, "live")
    assert advice(gzip.compress(b"x"), source) == "holds .gz data: pipe it through gzip -dc"
    wanted = "is UTF-16, not UTF-8: pipe it through iconv -f UTF-16 -t UTF-8"
    assert advice("text".encode("utf-16"), source) == wanted
    assert "pipe it through python3 -c" in advice(b"[1]", source)
