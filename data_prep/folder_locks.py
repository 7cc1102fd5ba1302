"""The locks of an output folder: which runs, or parts of a run, are at work in it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from data_prep.settings import part_of
from data_prep.store import LocalStore, Store, write_error
from elemdist.errors import UserError
from elemdist.locks import lock

STATE = ".elemdist"  # in the output folder: what a run keeps until it is complete


class FolderLocks:
    """Those that this process holds; they go with it.

    An object store has none. Two runs of one plan write the same objects there, each in one piece,
    and the plan of another run is refused.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._held: list[int] = []

    def claim(self, part: str | None) -> bool:
        """Makes sure that no other run, or no other process of this part, is at work.

        Returns:
            Whether this made the folder.

        Raises:
            UserError: one is, or the folder cannot be made.
        """
        if not isinstance(self.store, LocalStore):
            return False
        folder = self.store.path
        try:
            made = not os.path.isdir(folder)
            os.makedirs(os.path.join(folder, STATE), exist_ok=True)
            self._lock("lock", exclusive=part is None)
            if part is not None:
                self._lock(f"lock.{part_of(part)[0]}", exclusive=True)
        except OSError as error:
            raise write_error(folder, 0, error) from error
        return made

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """For as long as it lasts, no other part is at the same work; waits for one that is."""
        handle = None
        if isinstance(self.store, LocalStore):
            handle = self._lock(f"lock.{name}", exclusive=True, wait=True)
        try:
            yield
        finally:
            if handle is not None:
                self._held.remove(handle)
                os.close(handle)

    def release(self) -> None:
        """Lets other runs in."""
        for handle in self._held:
            os.close(handle)
        self._held.clear()

    def _lock(self, name: str, exclusive: bool, wait: bool = False) -> int:
        handle = os.open(self.store.name_of(f"{STATE}/{name}"), os.O_RDWR | os.O_CREAT, 0o666)
        path = self.store.path
        taken = f"another run is at work in {path}: wait for its end, or name another folder"
        try:
            flaw = lock(handle, taken, shared=not exclusive, wait=wait)
        except UserError:
            os.close(handle)
            raise
        if flaw is not None:
            print(
                f"elemdist shard: {path} cannot be locked ({flaw}): see to it that no other run"
                " writes there",
                file=sys.stderr,
            )
        self._held.append(handle)
        try:
            gone = os.stat(self.store.name_of(f"{STATE}/{name}")).st_ino != os.fstat(handle).st_ino
        except FileNotFoundError:
            gone = True
        if gone:  # the run that held it has just ended and cleared its state
            raise UserError(f"another run in {self.store.path} has just ended: run again")
        return handle
