"""The output folder: claimed before the work, sealed by index.json after it, cleared on failure."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any

from data_prep.manifest import manifest_of, write_manifest
from data_prep.mds import write_error, write_index
from data_prep.settings import ShardSettings
from data_prep.work import Converted
from elemdist.errors import UserError

MARKER = ".unfinished"  # stands in the folder while a run is at work, and after one was killed
OURS = re.compile(r"shard\.\d+\.\d+\.mds(\.tmp)?|(manifest|index)\.json(\.tmp)?")


class OutputFolder:
    """A folder that ends up with complete shard sets, or without anything of ours.

    Args:
        path: the folder. sets: folders within it, one for each set; "" for the folder itself.
    """

    def __init__(self, path: str, sets: list[str]) -> None:
        self._path = path
        self._folders = [os.path.join(path, name) if name else path for name in sets]
        self._created = False

    def claim(self) -> None:
        """Makes the folder ours.

        Raises:
            UserError: it has content already, or cannot be made.
        """
        try:
            self._created = not os.path.isdir(self._path)
            os.makedirs(self._path, exist_ok=True)
            self._refuse_content()
            with open(os.path.join(self._path, MARKER), "x"):
                pass
            for folder in self._folders:
                os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise write_error(self._path, 0, error) from error

    def _refuse_content(self) -> None:
        found = sorted(os.listdir(self._path))
        if not found:
            return
        shards = any(OURS.fullmatch(name) for name in found)
        if MARKER in found or (shards and "index.json" not in found):
            raise UserError(
                f"{self._path} holds an unfinished shard set: a run was killed, or is still at "
                f"work there. If none is, remove the folder and run again"
            )
        raise UserError(
            f"{self._path} is not empty ({', '.join(found[:3])}{', ...' * (len(found) > 3)}): "
            f"name another folder, or remove it"
        )

    def seal(
        self, settings: ShardSettings, names: tuple[str, ...] | None, results: list[Converted]
    ) -> list[dict[str, Any]]:
        """Checks all shards and writes manifests and indices; returns the manifests.

        Raises:
            UserError: a shard is not what was written, or the disk is full.
        """
        manifests, indices = [], []
        for folder in self._folders:
            name = os.path.relpath(folder, self._path)
            own = [result for result in results if os.path.normpath(result.folder) == name]
            shards = [shard for result in own for shard in result.shards]
            for shard in shards:
                flush(os.path.join(folder, shard["raw_data"]["basename"]))
                check_size(folder, shard["raw_data"])
            manifests.append(manifest_of(settings, names, own))
            indices.append(shards)
        for folder, manifest in zip(self._folders, manifests, strict=True):
            write_manifest(folder, manifest)
        for folder, shards in zip(self._folders, indices, strict=True):
            write_index(folder, shards)
            with contextlib.suppress(OSError):  # not every system flushes folders
                flush(folder)
        os.unlink(os.path.join(self._path, MARKER))
        return manifests

    def clear(self) -> None:
        """Removes all that a failed run wrote, and the folders if it made them."""
        for folder in self._folders:
            # Without its index a set is no set, so that goes first.
            for name in sorted(_listed(folder)):
                if OURS.fullmatch(name):
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(folder, name))
            if folder != self._path:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._path, MARKER))
        if self._created:
            with contextlib.suppress(OSError):
                os.rmdir(self._path)


def _listed(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def check_size(folder: str, info: dict[str, Any]) -> None:
    """Compares a written shard with what the index will say of it.

    Raises:
        UserError: the file is missing or of another size.
    """
    path = os.path.join(folder, info["basename"])
    size = os.path.getsize(path) if os.path.exists(path) else None
    if size != info["bytes"]:
        raise UserError(
            f"{path} was changed while the run was at work: {size} bytes instead of "
            f"{info['bytes']}. Run again, into another folder"
        )


def flush(path: str) -> None:
    """Waits until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: the file is gone, or the disk refuses.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
