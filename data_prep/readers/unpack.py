"""Compressed bytes to what they hold, frame after frame: .gz .zst .xz .bz2 .lz4.

Memory stays bounded by a few MiB, whatever the bytes unpack to.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import Any

import zstandard

READ_BYTES = 1 << 20  # of a file, and of unpacked text
# Packed bytes at a time. zstandard has no limit for what comes out, and four bytes can hold a
# block of 128 KiB: so much fewer of them.
UNPACK_BYTES, ZSTD_BYTES = 1 << 16, 1 << 10
LARGEST_WINDOW = 1 << 31  # zstd --long=31, and as much for xz
HEAD_BYTES = 6
# What a frame begins with; of zstd also those that are skipped.
MAGICS = {
    ".gz": [b"\x1f\x8b"],
    ".bz2": [b"BZh"],
    ".xz": [b"\xfd7zXZ\0"],
    ".zst": [b"\x28\xb5\x2f\xfd", *(bytes([0x50 + k]) + b"\x2a\x4d\x18" for k in range(16))],
}
UNPACK_ERRORS = (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError)


class DamagedError(Exception):
    """Content that is damaged or cut short: what came before it is whole, nothing comes behind."""


def unpacked(packed: Iterator[bytes], compression: str) -> Iterator[bytes]:
    """Unpacks frame after frame: all formats allow several in one file.

    Raises:
        DamagedError: the packed bytes are damaged or cut short, or something else follows them.
    """
    if compression == ".lz4":
        yield from _unpacked_lz4(packed)
        return
    step = ZSTD_BYTES if compression == ".zst" else UNPACK_BYTES
    frame: Any = None
    head, begin, at = b"", 0, 0  # the frame's first bytes, where it begins, where the data ends
    for chunk in packed:
        for start in range(0, len(chunk), step):
            data = chunk[start : start + step]
            at += len(data)
            while data:
                if frame is None:
                    # gzip allows zeros behind its members, and xz between its streams.
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    frame, head, begin = _frame(compression), b"", at - len(data)
                head += data[: HEAD_BYTES - len(head)]
                try:
                    yield from _texts(frame, data, compression)
                except UNPACK_ERRORS as error:
                    _refuse_rest(head, begin, compression)
                    raise DamagedError(f"is damaged, or no {compression} file: {error}") from error
                if not frame.eof:
                    break
                data, frame = frame.unused_data, None
    if frame is not None:
        _refuse_rest(head, begin, compression)
        raise DamagedError("is cut short: its compressed data has no end; copy it again")


def _refuse_rest(head: bytes, begin: int, compression: str) -> None:
    """Say so if what stands behind the first frame, from byte `begin` on, is no frame at all."""
    starts = [head.startswith(magic[: len(head)]) for magic in MAGICS[compression]]
    if begin and not any(starts):
        raise DamagedError(
            f"goes on at byte {begin:,} behind the end of its {compression} data, with something "
            f"else ({head!r}): cut that off, or copy it again"
        )


def _unpacked_lz4(packed: Iterator[bytes]) -> Iterator[bytes]:
    import pyarrow as pa  # loads slowly

    file = pa.PythonFile(_Pulled(packed), mode="r")
    try:
        with pa.CompressedInputStream(file, "lz4") as stream:
            while text := stream.read(READ_BYTES):
                yield text
    except (pa.ArrowException, OSError) as error:
        told = " ".join(str(error).split())
        raise DamagedError(f"is damaged, cut short, or no .lz4 file: {told}") from error


class _Pulled(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._held = pieces, b""

    def readable(self) -> bool:
        """As io.RawIOBase."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As io.RawIOBase."""
        self._held = self._held or next(self._pieces, b"")
        found = self._held[: len(buffer)]
        buffer[: len(found)], self._held = found, self._held[len(found) :]
        return len(found)


def _frame(compression: str) -> Any:
    """Something that unpacks one frame, member or stream."""
    if compression == ".zst":
        return zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
    if compression == ".gz":
        return zlib.decompressobj(wbits=31)
    if compression == ".bz2":
        return bz2.BZ2Decompressor()
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LARGEST_WINDOW)


def _texts(frame: Any, data: bytes, compression: str) -> Iterator[bytes]:
    """What some packed bytes hold, in pieces of READ_BYTES (zstd: all of it) at most."""
    if compression == ".zst":
        yield frame.decompress(data)
        return
    while True:
        text = frame.decompress(data, READ_BYTES)
        yield text
        # zlib gives back what it did not take; the others keep it. All may keep output.
        data = getattr(frame, "unconsumed_tail", b"")
        if frame.eof or not (data or len(text) == READ_BYTES):
            return
