"""Files that hold something else than their name says, and the command that makes text of them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator

from data_prep.documents import Source
from data_prep.readers.unpack import DamagedError
from elemdist.remote import public

LOOK_BYTES = 1 << 12
UNPACK = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bzip2", ".lz4": "lz4"}
PACKED = {
    b"\x1f\x8b\x08": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"\xfd7zXZ\0": ".xz",
    b"\x04\x22\x4d\x18": ".lz4",
}
OTHERS = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"WARC/": "warc",
}
FOREIGN = {  # with no reader here, nor a command that every machine has
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it (7z x), and name the folder",
    b"Rar!\x1a\x07": "a rar archive: unpack it (unrar x), and name the folder",
    b"%PDF-": "a PDF: make text of it (pdftotext), and name that",
    b"\xd0\xcf\x11\xe0\xa1\xb1": "a document of an office program: save it as text there",
    b"\x89PNG": "a picture, no text",
    b"\xff\xd8\xff": "a picture, no text",
    b"\x7fELF": "a program, no text",
    b"SQLite format 3\0": "a SQLite database: write its records to .csv or .jsonl",
    b"\x1f\x9d": "compressed by `compress`: unpack it (gzip -d), and name what comes of it",
    b"GIF8": "a picture, no text",
    b"{\\rtf1": "RTF: save it as text",
    b"version https://git-lfs.github.com/": "a pointer of Git LFS, not the file: git lfs pull",
}
MARKS = {  # longer ones first: a mark of UTF-32 begins with one of UTF-16
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
STDIN_COPY = ".elemdist/stdin"  # as `shard` keeps it
NAME_FILE = "name a file that holds it"
OFFICE = (".docx", ".xlsx", ".pptx", ".odt", ".ods", ".epub")
SHORTEST = 8  # bytes that tell an encoding without a mark
# Without a mark: bytes of a character, which of them varies, and which ones are controls.
PLACES = (
    ("UTF-32LE", 4, 0, (2, 3)),
    ("UTF-32BE", 4, 3, (0, 1)),
    ("UTF-16LE", 2, 0, (1,)),
    ("UTF-16BE", 2, 1, (0,)),
)
CONTROLS = bytes({*range(32)} - {*b"\t\n\r"})
SELDOM, OFTEN = 0.3, 0.7


def checked(chunks: Iterator[bytes], source: Source, start: int) -> Iterator[bytes]:
    """The chunks of a text file, once its first bytes show that it is one.

    Args:
        start: where in the file they begin; only the start of a file is looked at.

    Raises:
        DamagedError: it holds something else; the message has the command that helps.
    """
    first = next(chunks, b"")
    problem = "" if start else advice(first[:LOOK_BYTES], source)
    if problem:
        raise DamagedError(problem)
    if first:
        yield first
    yield from chunks


def advice(head: bytes, source: Source) -> str:
    """What a file is that begins so, and what to do; "" if it may be text of its format."""
    piped = source.live or source.path.endswith(f"/{STDIN_COPY}")
    path, packed = "" if piped else public(source.path), source.compression
    for magic, ending in PACKED.items():
        if head.startswith(magic):
            return _packed_advice(path, packed, ending)
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        return _packed_advice(path, packed, ".bz2")
    if head.startswith(b"PK\x03\x04"):
        return zip_advice(path)
    if head.startswith(b"FEA1"):
        return feather_advice(path)
    for magic, format in OTHERS.items():
        if head.startswith(magic) and format != source.format:
            return f"holds {format}: {f'--input.format {format}' if path else NAME_FILE}"
    if head[257:262] == b"ustar" and source.format != "tar":
        return "holds a tar archive: --input.format tar"
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            return f"is {what}"
    encoding = _encoding(head)
    if encoding:
        command = f"iconv -f {encoding} -t UTF-8"
        return f"is {encoding}, not UTF-8: {_through(path, packed, command, _named(path, '.utf8'))}"
    return _json_advice(head, path, packed) if source.format == "jsonl" else ""


def zip_advice(path: str) -> str:
    """What to do with a zip archive; path "" stands for a pipe, here and below."""
    if not path:
        return f"is a zip archive: {NAME_FILE}"
    if path.lower().endswith(OFFICE):
        return "is a document of an office program: save it as text there"
    folder = os.path.splitext(path)[0] + "_files"
    return f"is a zip archive: {shlex.join(['python3', '-m', 'zipfile', '-e', path, folder])}"


def feather_advice(path: str) -> str:
    """What to do with a Feather file of version 1."""
    if not path:
        return f"is Feather of version 1: {NAME_FILE}"
    code = f"import pyarrow.feather as f; f.write_feather(f.read_table({path!r}), {_plain(path)!r})"
    return f"is Feather of version 1: {shlex.join([sys.executable, '-c', code])}"


def _json_advice(head: bytes, path: str, packed: str) -> str:
    """What to do with JSON that is not one record a line."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        what, code = "an array", "[print(json.dumps(r)) for r in json.load(sys.stdin)]"
    elif b"\n" in text and text.split(b"\n")[0].strip() == b"{":
        what, code = "an object over several lines", "print(json.dumps(json.load(sys.stdin)))"
    else:
        return ""
    command = shlex.join(["python3", "-c", f"import json, sys; {code}"])
    out = shlex.quote(f"{_stem(path)}.lines.jsonl")
    return f"holds {what}, not one record a line: {_through(path, packed, command, out)}"


def _encoding(head: bytes) -> str:
    """The name of UTF-16 or UTF-32 by the mark or by where the NULs are; "" for others."""
    for mark, name in MARKS.items():
        if head.startswith(mark):
            return name
    if len(head) < SHORTEST:
        return ""
    for name, width, text, zeros in PLACES:
        cells = [head[place::width] for place in range(width)]
        share = [1 - len(cell.translate(None, CONTROLS)) / len(cell) for cell in cells]
        if share[text] < SELDOM and all(share[place] > OFTEN for place in zeros):
            return name
    return ""


def _stem(path: str) -> str:
    """The path without its endings of format and compression."""
    stem, last = os.path.splitext(path)
    return os.path.splitext(stem)[0] if last in UNPACK else stem


def _named(path: str, more: str) -> str:
    """A name beside the file for what is unpacked or converted, with the same ending."""
    stem, last = os.path.splitext(path)
    if last in UNPACK:
        stem, last = os.path.splitext(stem)
    return shlex.quote(f"{stem}{more}{last}")


def _plain(path: str) -> str:
    stem, last = os.path.splitext(path)
    return f"{stem}.v2{last}"


def _packed_advice(path: str, packed: str, ending: str) -> str:
    """What to do with compressed data that the name does not tell."""
    if not path:
        return f"holds {ending} data: pipe it through {UNPACK[ending]} -dc"
    if packed:
        return f"is compressed twice: {UNPACK[packed]} -dc {shlex.quote(path)} > {_named(path, '')}"
    return f"holds {ending} data: {shlex.join(['mv', path, path + ending])}"


def _through(path: str, packed: str, command: str, out: str) -> str:
    """The command that sends what a file holds through another one, to a file beside it."""
    if not path:
        return f"pipe it through {command}"
    unpack = f"{UNPACK[packed]} -dc" if packed else "cat"
    return f"{unpack} {shlex.quote(path)} | {command} > {out}"
