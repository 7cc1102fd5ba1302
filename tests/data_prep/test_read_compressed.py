"""Compressed files and tar files: whole ones, damaged ones, and ones that are traps."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash
import zstandard
from reading import read

from data_prep.documents import Part
from data_prep.readers import files, sources, tars
from data_prep.settings import InputSettings
from elemdist.errors import UserError

MB = 1 << 20
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".xz": lambda text: lzma.compress(text, preset=0),
    ".bz2": bz2.compress,
}
LINES = [b"line %d \xe6\x97\xa5" % (k * k) for k in range(120_000)]
TEXT = b"\n".join(LINES) + b"\n"


@pytest.mark.parametrize("suffix", PACK)
def test_one_frame_and_many(tmp_path: Path, suffix: str) -> None:
    pack = PACK[suffix]
    pieces = [TEXT[: 2 * MB], b"", TEXT[2 * MB : 2 * MB + 5], TEXT[2 * MB + 5 :]]
    for content in (pack(TEXT), b"".join(map(pack, pieces)) + b"\0" * 8 * (suffix != ".bz2")):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(content)
        found = read(path, document="line", limit=1000)
        assert found.documents == LINES
        assert found.digests == [xxhash.xxh3_128_hexdigest(content)]
        assert found.told == len(content)
        assert read(path).documents == [TEXT]


@pytest.mark.parametrize("suffix", PACK)
def test_many_tiny_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](b"a\n") * 5000)
    assert read(path, document="line").documents == [b"a"] * 5000


@pytest.mark.parametrize("document", ["line", "file", "block"])
@pytest.mark.parametrize("suffix", PACK)
def test_damage(tmp_path: Path, suffix: str, document: str) -> None:
    text = TEXT.replace(b"\n", b"\n\n") if document == "block" else TEXT
    whole = PACK[suffix](text)
    half = len(whole) // 2
    flipped = bytearray(whole)
    flipped[CHECKSUMS[suffix]] ^= 0x55
    for content, told in (
        (whole[:half], f"a.txt{suffix}: is cut short: its compressed data has no end; copy it"),
        (bytes(flipped), f"a.txt{suffix}: is damaged, or no {suffix} file: "),
        (b"plain text " * 9, f"a.txt{suffix}: is damaged, or no {suffix} file: "),
    ):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read(path, document=document)
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
        found = read(path, document=document, skip=True)
        assert len(found.problems) == 1
        assert found.digests == [xxhash.xxh3_128_hexdigest(content)]
        if document == "file":
            assert found.documents == []
        elif content == whole[:half]:  # what was whole before is kept, to the last line
            assert found.documents == LINES[: len(found.documents)]
            assert len(found.documents) > 20_000


CHECKSUMS = {".gz": -8, ".zst": -1, ".xz": -12, ".bz2": 10}


def test_damaged_records(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % k for k in range(99_999)))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    found = read(path, skip=True)
    assert found.documents == [b"%d" % k for k in range(len(found.documents))]
    assert len(found.documents) > 10_000
    assert [where for where, _ in found.problems] == [""]


def zeros(path: Path, size: int) -> None:
    """A file that unpacks to so many zeros."""
    block = bytes(16 * MB)
    opened = {".zst": zstandard.open, ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    with opened[path.suffix](path, "wb") as file:
        for _ in range(size // len(block)):
            file.write(block)


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_bombs_are_refused_in_small_memory(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"{name}{suffix}"
    zeros(path, (1024 if suffix == ".zst" else 64) * MB)
    tracemalloc.start()
    try:
        found = read(path, skip=True, max_record_mb=16, max_document_mb=16)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.documents == []
    assert "holds more than 16 MiB" in found.problems[0][1]
    assert most < 80 * MB


def test_one_call_of_zstd_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    zeros(path, 256 * MB)
    assert path.stat().st_size < 64 << 10
    (source,) = sources.find_sources([str(path)], InputSettings())
    stream = files.PartStream(Part(source, 0, source.size, source.size), lambda _: None)
    tracemalloc.start()
    try:
        assert sum(map(len, stream.chunks())) == 256 * MB
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 80 * MB


def tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content.startswith(b"->"):
                info.type, info.linkname = tarfile.SYMTYPE, content[2:].decode()
                content = b""
            elif name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


LONG = "日本語x".encode() * (MB // 2)
MEMBERS = [("d/", b""), ("d/a.txt", b"one\n"), ("long.txt", LONG), ("n" * 300, b""), ("b", b"two")]


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.tar", "w"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz"), ("a.tar.bz2", "w:bz2")],
)
@pytest.mark.parametrize("skip", [False, True])
def test_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mode: str, skip: bool
) -> None:
    monkeypatch.setattr(tars, "HEADER_BYTES", MB)  # less than the long member
    path = tar(tmp_path / name, MEMBERS, mode)
    found = read(path, skip=skip)
    assert found.ids == [name for name, _ in MEMBERS[1:]]
    assert found.documents == [content for _, content in MEMBERS[1:]]
    assert max(found.sizes) <= 4 * MB
    assert found.told == path.stat().st_size
    assert found.digests == [xxhash.xxh3_128_hexdigest(path.read_bytes())]
    assert read(path, members="d/*.txt").ids == ["d/a.txt"]


def test_tar_members_that_are_refused(tmp_path: Path) -> None:
    members = [
        ("/etc/x", b"1"),
        ("a/../../x", b"2"),
        ("link", b"->a"),
        ("a..b", b"3"),
        ("bad", b"x\ny\xff"),
        ("huge", b"z" * (2 * MB)),
        ("good", b"4"),
    ]
    path = tar(tmp_path / "a.tar", members)
    found = read(path, skip=True, max_document_mb=1)
    assert found.ids == ["a..b", "good"]
    assert found.documents == [b"3", b"4"]
    assert [where for where, _ in found.problems] == [
        f"member {name}" for name in ("/etc/x", "a/../../x", "link", "bad", "huge")
    ]
    for (_, problem), told in zip(
        found.problems, ["leads out"] * 2 + ["a link", "byte 3 (0xff)", "more than 1"], strict=True
    ):
        assert told in problem
    with pytest.raises(UserError, match=r"a\.tar, member /etc/x: its path leads out of"):
        read(path)
    assert read(path, members="good").documents == [b"4"]


def test_tar_that_is_cut_short_or_damaged(tmp_path: Path) -> None:
    members = [("a", b"1" * 600), ("b", b"2" * 600), ("c", b"3" * 600)]
    whole = tar(tmp_path / "a.tar", members).read_bytes()
    path = tmp_path / "b.tar"
    for cut, kept in ((512 + 300, 0), (1536, 1), (1600, 1), (1536 + 512 + 100, 1), (4608, 3)):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"b\.tar: is .*cut short"):
            read(path)
        found = read(path, skip=True)
        assert found.ids == ["a", "b", "c"][:kept]
        assert len(found.problems) == 1
    damaged = bytearray(whole)
    damaged[1536 + 5] ^= 1
    path.write_bytes(damaged)
    assert read(path, skip=True).ids == ["a"]
    path.write_bytes(b"no tar file" * 99)
    assert "no tar file" in read(path, skip=True).problems[0][1]


def test_tar_with_a_header_that_is_a_trap(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    trap = info.tobuf(tarfile.GNU_FORMAT) + bytes(64 * MB)
    good = tar(tmp_path / "good.tar", [("a", b"1" * 512)]).read_bytes()[:1024]
    path = tmp_path / "a.tar.gz"
    for before, kept in ((b"", []), (good, ["a"])):
        path.write_bytes(gzip.compress(before + trap, 1))
        found = read(path, skip=True)
        assert found.ids == kept
        assert found.problems == [("", "has a member with a header of more than 16 MiB")]


def test_tar_of_many_members_is_read_in_small_memory(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [(f"d{k}/", b"") for k in range(8000)])
    tracemalloc.start()
    try:
        assert read(path).documents == []
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 7 * MB // 2
