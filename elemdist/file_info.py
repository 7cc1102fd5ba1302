"""One file of a shard set: what index.json says of it, and how it is compared with that."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from typing import Any, Protocol

from elemdist.artefacts import read_bytes
from elemdist.errors import UserError
from elemdist.os_errors import reason_of

CHUNK = 1 << 20
XX_HASHES = ("xxh3_128", "xxh128", "xxh3_64", "xxh64", "xxh32")  # the fast ones, strongest first
LARGEST = 1 << 32  # a shard says in 32 bits where its samples start


def content_of(path: str, place: str = "") -> bytes:
    """What a file holds. Raises UserError, which begins with `place`, where it cannot be read."""
    try:
        return read_bytes(path)
    except UserError as error:
        raise UserError(f"{place}{error}") from error


def is_inside(name: str) -> bool:
    """Return True for a relative path with / that stays within its folder, as far as names tell.

    Indexes that streaming merged have names such as 0/shard.00000.mds.
    """
    parts = name.split("/")
    odd = "\\" in name or "\0" in name or (len(name) > 1 and name[1] == ":")
    return not odd and not any(part in ("", ".", "..") for part in parts)


def leads_out(folder: str, name: str) -> bool:
    """Return True if a link on the way to a file leads out of its local folder.

    What Hugging Face's cache links to, blobs/ beside snapshots/, belongs to the folder.
    """
    root, path = os.path.realpath(folder), os.path.realpath(os.path.join(folder, name))
    above, snapshots = os.path.split(os.path.dirname(root))
    roots = [root] + [os.path.join(above, "blobs")] * (snapshots == "snapshots")
    return not any(path.startswith(os.path.join(one, "")) for one in roots)


class Digest(Protocol):
    """A running hash, as hashlib and xxhash have them."""

    def update(self, data: Any, /) -> None:
        """Takes more bytes."""

    def hexdigest(self) -> str:
        """The hash of the bytes so far."""


@dataclass(frozen=True)
class FileInfo:
    """A file as index.json describes it: name, bytes, and its hexadecimal hashes by algorithm."""

    name: str
    size: int
    hashes: dict[str, str]

    @classmethod
    def of(cls, entry: dict[str, Any], where: str) -> FileInfo:
        """Out of an entry of the index of the set `where`.

        Raises:
            UserError: its name leads out of the folder.
            KeyError, TypeError, ValueError: the entry is damaged.
        """
        name, size = entry["basename"], entry["bytes"]
        if not isinstance(name, str) or not is_inside(name):
            raise UserError(f"{where}/index.json names a file outside its folder: {name!r}")
        if not isinstance(size, int) or not 0 <= size < LARGEST:
            raise ValueError(f"{name}: {size} bytes")
        hashes = (entry["hashes"] or {}).items()
        return cls(name, size, {str(key): str(hash) for key, hash in hashes if hash is not None})

    def digest(self) -> tuple[Digest | None, str]:
        """A running hash that this file's bytes are fed to and what it must give in the end;
        None where the index has no hash that is known here."""
        import xxhash  # only where hashes are compared

        for name in XX_HASHES:
            if name in self.hashes:
                return getattr(xxhash, name)(), self.hashes[name]
        for name in sorted(self.hashes):
            with contextlib.suppress(ValueError):
                digest = hashlib.new(name, usedforsecurity=False)
                if digest.digest_size:  # shake_* have none of their own
                    return digest, self.hashes[name]
        return None, ""

    def check(self, path: str) -> None:
        """Reads a local file and compares it with the index.

        Raises:
            UserError: it cannot be read, or its size or hash differs.
        """
        digest, expected = self.digest()
        size = 0
        try:
            with open(path, "rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    size += len(chunk)
                    if digest is not None:
                        digest.update(chunk)
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason_of(error)}") from error
        if size != self.size:
            raise UserError(f"{path} has {size:,} bytes instead of {self.size:,}: copy it again")
        if digest is not None and digest.hexdigest() != expected:
            raise UserError(f"{path} is damaged, its hash differs: copy it again")

    def check_bytes(self, data: bytes, path: str) -> None:
        """The same for bytes that are already in memory; `path` says what they are."""
        digest, expected = self.digest()
        if len(data) != self.size:
            raise UserError(f"{path} has {len(data):,} bytes instead of {self.size:,}")
        if digest is not None:
            digest.update(data)
            if digest.hexdigest() != expected:
                raise UserError(f"{path} is damaged, its hash differs")
