"""Files that are there wholly or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
from pathlib import Path

from elemdist.errors import UserError


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file in one step: a reader sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_result(path: str | Path, text: str) -> None:
    """The same for a file that a user has named. Raises UserError where it cannot be written."""
    try:
        write_atomically(Path(path), text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def sync_file(path: Path) -> None:
    """Returns when a file's content is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
