"""Compressed bytes to what they hold, frame after frame: .gz .zst .xz .bz2.

Memory stays bounded by a few MiB, whatever the bytes unpack to.
"""

from __future__ import annotations

import bz2
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
UNPACK_ERRORS = (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError)


class DamagedError(Exception):
    """Content that is damaged or cut short: what came before it is whole, nothing comes behind."""


def unpacked(packed: Iterator[bytes], compression: str) -> Iterator[bytes]:
    """Unpacks frame after frame: all four formats allow several in one file.

    Raises:
        DamagedError: the packed bytes are damaged or cut short.
    """
    step = ZSTD_BYTES if compression == ".zst" else UNPACK_BYTES
    frame: Any = None
    for chunk in packed:
        for start in range(0, len(chunk), step):
            data = chunk[start : start + step]
            while data:
                if frame is None:
                    # gzip allows zeros behind its members, and xz between its streams.
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    frame = _frame(compression)
                try:
                    yield from _texts(frame, data, compression)
                except UNPACK_ERRORS as error:
                    raise DamagedError(f"is damaged, or no {compression} file: {error}") from error
                if not frame.eof:
                    break
                data, frame = frame.unused_data, None
    if frame is not None:
        raise DamagedError("is cut short: its compressed data has no end; copy it again")


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
