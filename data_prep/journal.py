"""The state of a run in OUT/.elemdist: who is at work, the plan, what is done. So a run can go on.

lock, lock.K        held by the run, or by part K, for as long as its process lives
plan.json           settings and input: another command, or a changed input, is refused
scan/ITEM.json      what the first pass found in an item, and scan/ITEM.hashes
done/ITEM.json      an item whose shards are all in place
rejects/ITEM.jsonl  what was left out of it
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from typing import Any

from data_prep.folder_locks import STATE, FolderLocks
from data_prep.losses import Losses
from data_prep.mds import stored
from data_prep.plan import Done, Job, Plan, SetPart
from data_prep.store import LocalStore, Store
from elemdist.artefacts import parse_json
from elemdist.errors import UserError
from elemdist.json_text import json_text

DAMAGED = (LookupError, TypeError, AttributeError)  # what JSON of another shape ends in
STDIN_COPY = f"{STATE}/stdin"
OURS = re.compile(r"shard\.\d+\.\d+\.mds(\.\w+)?|(manifest|index)\.json|(journal|rejects)\.jsonl")
OURS_UNFINISHED = re.compile(r".*\.tmp")


class Journal:
    """The state folder of one output folder.

    Args:
        store: the output folder. sets: the folders of its sets; "" is the folder itself.
    """

    def __init__(self, store: Store, sets: list[str]) -> None:
        self.store, self.sets = store, sets
        self.locks = FolderLocks(store)
        self._created = self._begun = False

    def claim(self, part: str | None) -> None:
        """Makes sure that no other run is at work in the folder.

        Raises:
            UserError: one is, or the folder cannot be made.
        """
        self._created = self.locks.claim(part) or self._created

    def release(self) -> None:
        """Lets other runs in."""
        self.locks.release()

    def begin(self, restart: bool) -> None:
        """Makes sure that the folder holds nothing else, before a plan is known.

        Raises:
            UserError: it does.
        """
        if restart:
            self.clear()
            self.claim(None)
        if self._read("plan.json") is None:
            self._refuse_content(restart)

    def agree(self, plan: Plan, restart: bool) -> bool:
        """Begins the plan, or goes on with it; whether the sets are complete already.

        Raises:
            UserError: the folder holds something else.
        """
        kept = self._read("plan.json")
        if kept is not None and restart and self.store.size(STDIN_COPY) is None:
            self.clear()
            self.claim(None)
            kept = None
        if kept is None:
            if self._complete(plan):
                return True
            try:
                self._refuse_content(restart)
            except UserError:
                kept = self._read("plan.json")  # another part may have begun meanwhile
                if kept is None:
                    raise
        if kept is not None:
            try:
                plan.compare(kept, self.store.path)
            except DAMAGED as error:
                raise UserError(
                    f"{self.store.name_of(f'{STATE}/plan.json')} is damaged: --restart begins anew"
                ) from error
        self._begun = True
        if kept is None:
            self.store.write(f"{STATE}/plan.json", plan.to_json(), flush=True)
        return False

    def _complete(self, plan: Plan) -> bool:
        """Whether every set is there, made by the same plan."""
        for folder in self.sets:
            store = self.store.within(folder)
            if store.size("index.json") is None:
                return False
            try:
                line = store.read("journal.jsonl").partition(b"\n")[0]
                header = parse_json(line, "journal.jsonl", dict[str, Any])
            except (OSError, UserError):
                return False
            if header.get("plan") != plan.digest:
                return False
        return True

    def _refuse_content(self, restart: bool) -> None:
        found = [name for name in self.store.names() if name != STATE]
        if not found:
            return
        shards = any(OURS.fullmatch(name) for name in found)
        if shards and "index.json" not in found and restart:
            self.clear()
            self.claim(None)
            return
        if shards and "index.json" not in found:
            raise UserError(
                f"{self.store.path} holds an unfinished shard set, without a plan to go on with: "
                f"remove the folder, or --restart"
            )
        raise UserError(
            f"{self.store.path} is not empty ({', '.join(found[:3])}{', ...' * (len(found) > 3)}): "
            f"name another folder, or remove it"
        )

    def read_scan(self, item: int) -> dict[str, Any] | None:
        """What the first pass found in an item; None if it has not been there."""
        kept = self._read(f"scan/{item:08d}.json")
        good = isinstance(kept, dict) and kept.keys() >= {"documents", "labels"}
        return kept if good else None

    def scanned_items(self) -> set[int]:
        """Numbers of the items that the first pass is through with."""
        return {item for item in self.items_in("scan") if self.read_scan(item) is not None}

    def write_scan(self, item: int, found: dict[str, Any], hashes: bytes | None) -> None:
        """Keeps what the first pass found in an item."""
        if hashes is not None:
            self.store.write(hashes_name(item), hashes, flush=True)
        name = f"{STATE}/scan/{item:08d}.json"
        self.store.write(name, json_text(found).encode(), flush=True)

    def read_done(self, item: int) -> Done | None:
        """The entry of a converted item; None if it is still to be done."""
        kept = self._read(f"done/{item:08d}.json")
        try:
            sets = {
                folder: SetPart(one["shards"], Counter(one["counts"]), Counter(one["label_counts"]))
                for folder, one in kept["sets"].items()
            }
            losses = Losses.from_json(kept["losses"])
            return Done(kept["item"], kept["digests"], sets, kept["rejects"], losses)
        except DAMAGED:  # missing, or torn by a machine that went down: it is done again
            return None

    def write_done(self, done: Done) -> None:
        """Keeps that an item is converted, once its shards are all in place."""
        name = f"{STATE}/done/{done.item:08d}.json"
        sets = {
            folder: {
                "shards": part.shards,
                "counts": dict(part.counts),
                "label_counts": dict(part.label_counts),
            }
            for folder, part in done.sets.items()
        }
        kept = {"item": done.item, "digests": done.digests, "sets": sets, "rejects": done.rejects}
        kept["losses"] = done.losses.to_json()
        self.store.write(name, json_text(kept).encode(), flush=True)

    def drop_done(self, item: int) -> None:
        """Forgets that an item was converted."""
        self.store.remove(f"{STATE}/done/{item:08d}.json")

    def intact_items(self, jobs: list[Job]) -> set[int]:
        """Numbers of the items that are done, and whose shards have the right sizes."""
        done = self.items_in("done")
        sizes = {folder: self.store.within(folder).sizes() for folder in self.sets} if done else {}
        found = set()
        for job in jobs:
            kept = self.read_done(job.item.number) if job.item.number in done else None
            if kept is not None and all(
                sizes[folder].get(stored(shard)["basename"]) == stored(shard)["bytes"]
                for folder, part in kept.sets.items()
                for shard in part.shards
            ):
                found.add(job.item.number)
        return found

    def keep(self, name: str, content: Any) -> None:
        """Keeps something for the other parts, as JSON."""
        self.store.write(f"{STATE}/{name}", json_text(content).encode())

    def kept(self, name: str) -> Any:
        """What was kept; None for nothing."""
        return self._read(name)

    def items_in(self, folder: str) -> set[int]:
        """Numbers of the items that have a file .json in a folder of the state: scan or done."""
        names = self.store.names(f"{STATE}/{folder}")
        return {int(name[:8]) for name in names if name.endswith(".json")}

    def _read(self, name: str) -> Any:
        try:
            return parse_json(self.store.read(f"{STATE}/{name}"), name)
        except (OSError, UserError):  # a machine that went down left the name without the content
            return None

    def leave(self) -> int:
        """Ends a run that failed: what is done is kept, else nothing is left behind.

        Returns:
            How many items are done.
        """
        try:
            done = len(self.items_in("done"))
            if self._begun and not done:
                self.clear()
            elif self._read("plan.json") is None:  # what is here is not of this run
                self.clear_state()
                if self._created:
                    with contextlib.suppress(OSError):
                        os.rmdir(self.store.path)
            return done
        finally:
            self.release()

    def clear_state(self) -> None:
        """Removes the state, once the sets are complete."""
        self.store.remove_folder(STATE)

    def clear(self) -> None:
        """Removes all that runs of ours wrote here, and the folder if this run made it."""
        self.store.remove("rejects.jsonl")  # beside the sets, where there are several
        for folder in self.sets:
            store = self.store.within(folder)
            # Without its index a set is no set, so that goes first.
            for name in sorted(store.names()):
                if OURS.fullmatch(name) or OURS_UNFINISHED.fullmatch(name):
                    store.remove(name)
        self.store.remove_folder(STATE)
        self.release()
        self.store.remove_folder(STATE)  # again: NFS keeps a file that is open
        if isinstance(self.store, LocalStore):
            folders = [self.store.name_of(folder) for folder in self.sets if folder]
            for folder in folders + [self.store.path] * self._created:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


def hashes_name(item: int) -> str:
    """Where the hashes of an item's documents are kept between the passes."""
    return f"{STATE}/scan/{item:08d}.hashes"
