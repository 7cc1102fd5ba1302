"""The compressions of MosaicML Streaming's shards, readable by any StreamingDataset.

Names, file extensions, levels and defaults are streaming's: "zstd", "zstd:7", "br", "bz2:5", "gz",
"snappy". Neither streaming nor torch is imported; each library only when its name is used.
Compressed bytes depend on the data, the name and the library's version alone: no time, no thread
count. Decompression is bounded, for a small file may claim to hold terabytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from elemdist.errors import UserError, nearest

Bytes = bytes | memoryview


@dataclass(frozen=True)
class Algorithm:
    """One family: its levels (None: it has none), the default, and its two directions."""

    levels: range | None
    default: int
    compress: Callable[[Bytes, int], bytes]
    decompress: Callable[[Bytes, int], bytes]


def _module(name: str, package: str) -> Any:
    """An optional library.

    Raises:
        UserError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"this compression needs {package}: pip install {package}") from error


def _br(data: Bytes, level: int) -> bytes:
    return _module("brotli", "brotli").compress(data, quality=level)


def _unbr(data: Bytes, limit: int) -> bytes:
    decompressor = _module("brotli", "brotli").Decompressor()
    out = bytearray(decompressor.process(data, output_buffer_limit=limit + 1))
    while not decompressor.is_finished() and len(out) <= limit:
        if decompressor.can_accept_more_data():
            raise ValueError("it ends too early")
        out += decompressor.process(b"", output_buffer_limit=limit + 1 - len(out))
    return bytes(out)


def _bz2(data: Bytes, level: int) -> bytes:
    import bz2

    return bz2.compress(data, level)


def _unbz2(data: Bytes, limit: int) -> bytes:
    import bz2

    with bz2.BZ2File(io.BytesIO(data)) as file:
        return file.read(limit + 1)


def _gz(data: Bytes, level: int) -> bytes:
    import gzip

    return gzip.compress(data, level, mtime=0)


def _ungz(data: Bytes, limit: int) -> bytes:
    import gzip

    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return file.read(limit + 1)


def _snappy(data: Bytes, level: int) -> bytes:
    return bytes(_module("snappy", "python-snappy").compress(bytes(data)))


def _unsnappy(data: Bytes, limit: int) -> bytes:
    # The length comes first, 7 bits a byte; the library makes room for it before it reads on.
    length = 0
    for place, byte in enumerate(bytes(data[:5])):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            break
    else:
        raise ValueError("it has no valid length")
    if length > limit:
        return bytes(limit + 1)
    return bytes(_module("snappy", "python-snappy").decompress(bytes(data)))


def _zstd(data: Bytes, level: int) -> bytes:
    compressor = _module("zstandard", "zstandard").ZstdCompressor(level=level, write_checksum=True)
    return compressor.compress(data)


def _unzstd(data: Bytes, limit: int) -> bytes:
    # Not decompress(): it makes room for whatever size the frame says that it has.
    out = _module("zstandard", "zstandard").ZstdDecompressor().decompressobj()
    found = bytearray()
    for first in range(0, len(data), 1 << 10):  # four bytes unpack to 128 KiB at most
        found += out.decompress(data[first : first + (1 << 10)])
        if out.eof or len(found) > limit:
            return bytes(found)
    raise ValueError("it ends too early")


ALGORITHMS = {
    "br": Algorithm(range(12), 11, _br, _unbr),
    "bz2": Algorithm(range(1, 10), 9, _bz2, _unbz2),
    "gz": Algorithm(range(10), 9, _gz, _ungz),
    "snappy": Algorithm(None, 0, _snappy, _unsnappy),
    "zstd": Algorithm(range(1, 23), 3, _zstd, _unzstd),
}


def _parse(name: str) -> tuple[Algorithm, int]:
    """The algorithm and level of "zstd:7". Raises UserError on anything unknown."""
    family, colon, level = name.partition(":")
    known = ", ".join(ALGORITHMS)
    if family not in ALGORITHMS:
        raise UserError(
            f"unknown compression '{name}'{nearest(family, ALGORITHMS)}; known: {known}, with a"
            " level as in zstd:7"
        )
    algorithm = ALGORITHMS[family]
    if not colon:
        return algorithm, algorithm.default
    if algorithm.levels is None:
        raise UserError(f"compression '{name}': {family} has no levels")
    # As streaming has them: "7", never "07" or "+7".
    if level not in map(str, algorithm.levels):
        low, high = algorithm.levels[0], algorithm.levels[-1]
        raise UserError(f"compression '{name}': the levels of {family} are {low} to {high}")
    return algorithm, int(level)


def check(name: str) -> None:
    """Raises UserError if `name` is no compression, e.g. "zstd" or "zstd:7"."""
    _parse(name)


def extension(name: str) -> str:
    """What the name of a compressed file ends in, without the dot: "zstd" for "zstd:7".

    Raises:
        UserError: no such compression.
    """
    check(name)
    return name.partition(":")[0]


def compress(name: str, data: Bytes) -> bytes:
    """`data` compressed; the same bytes every time.

    Args:
        name: a compression, e.g. "gz:9". data: any C-contiguous buffer.

    Raises:
        UserError: no such compression, or its library is not installed.
    """
    algorithm, level = _parse(name)
    return algorithm.compress(memoryview(data).cast("B"), level)


def decompress(name: str, data: Bytes, limit: int) -> bytes:
    """What compress() was given.

    Args:
        name: a compression; its level does not matter. limit: the most bytes that may come out.

    Raises:
        UserError: no such compression, or its library is not installed.
        ValueError: the data is damaged or cut off, or holds more than `limit` bytes.
    """
    algorithm, _ = _parse(name)
    if not len(data):
        raise ValueError(f"damaged {name} data: it is empty")
    try:
        found = algorithm.decompress(memoryview(data).cast("B"), limit)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # every library has errors of its own, with no common ancestor
        text = str(error) or "it cannot be unpacked"
        raise ValueError(f"damaged {name} data: {text}") from error
    if len(found) > limit:
        raise ValueError(f"damaged {name} data: it unpacks to more than {limit:,} bytes")
    return found
