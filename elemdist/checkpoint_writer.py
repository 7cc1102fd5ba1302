"""Writes checkpoints, so that each is whole or not there, at once or while training goes on.

Each rank writes its files under a temporary name, the ranks tell each other sizes and hashes,
rank 0 writes the manifest, and one rename makes the checkpoint visible; only then do older ones
go. What fails on one rank fails on all, with the same reason, and leaves the older ones as they
were.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from elemdist import checkpoint_state
from elemdist.atomic import sync_folder, write_atomically
from elemdist.attempts import Attempt
from elemdist.checkpoint_files import (
    FORMAT,
    VERSION,
    digest,
    outdated,
    remove,
    step_folders,
)
from elemdist.checkpoint_parts import TensorFile, write_tensors
from elemdist.engine import Ranks
from elemdist.errors import Superseded
from elemdist.json_text import json_text

SHORTEST_POLL_S, LONGEST_POLL_S = 0.0002, 0.02
# A rank that dies closes its connections; this is for those that wait for a slow disk.
PATIENCE = timedelta(hours=6)


class SaveError(Exception):
    """Why a checkpoint could not be written; one line, the same on all ranks."""


class Writer:
    """Writes the checkpoints of a run. All ranks make one, and call its functions together.

    Args:
        run_dir: the run's folder; what a killed start left half written in it is removed.
        keep_last: so many of the newest checkpoints stay,
        keep_every: and those whose step is a multiple of this; 0: none.
        background: `save` returns when the state is copied to the machine's memory, and a thread
            writes it.
        attempt: nothing of what it writes becomes visible once this is superseded; None: it always
            may write.
    """

    def __init__(
        self,
        run_dir: Path,
        ranks: Ranks,
        keep_last: int,
        keep_every: int,
        background: bool,
        attempt: Attempt | None = None,
    ) -> None:
        self.folder, self.ranks, self.background = run_dir / "checkpoints", ranks, background
        self.attempt = attempt
        self.keep_last, self.keep_every = keep_last, keep_every
        # Its own: the collectives of a thread must not come between those of the training.
        self.group = dist.new_group(backend="gloo", timeout=PATIENCE)
        self.thread: threading.Thread | None = None
        self.reason: str | None = None
        self.error: BaseException | None = None
        if ranks.first:
            # In one step out of the reach of a superseded attempt that would publish it yet.
            for leftover in self.folder.glob(".writing-*"):
                with contextlib.suppress(OSError):
                    remove(leftover)
            for leftover in self.folder.glob(".removing-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        # A checkpoint that is not among these was made by a later attempt, and is not ours to go.
        self.known = set(step_folders(self.folder))

    def save(
        self,
        engine: Any,
        step: int,
        state: dict[str, Any],
        facts: dict[str, Any],
        settings: dict[str, Any],
    ) -> str | None:
        """Saves the engine after `step` steps. Raises Superseded, on all ranks, where another
        attempt has begun, at once or from the next call on.

        `state` is what the run wants to find again in `Checkpoint.state`, `facts` what a resumed
        run must agree with; both as JSON, those of rank 0.

        Returns why a save failed, on all ranks alike, else None: this one, or, in the background,
        the one before, which is waited for.
        """
        before = self.finish()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "step": step,
            "optimizer_steps": checkpoint_state.optimizer_steps(engine),
            "facts": facts,
            "settings": settings,
            "state": state,
        }
        manifest = json.loads(json_text(manifest))  # as it is now: the run goes on with its own
        rank, world_size = self.ranks.rank, self.ranks.world_size
        files = [
            checkpoint_state.state_file(engine, rank, world_size),
            checkpoint_state.weights_file(engine, rank),
        ]
        config = json_text(engine.module.config.to_json(), indent=2)
        if not self.background:
            return self._write(files, config, manifest)
        copies = [in_memory(file) for file in files]
        self.thread = threading.Thread(
            target=self._write_behind, args=(copies, config, manifest), name="checkpoint"
        )
        self.thread.start()
        return before

    def finish(self) -> str | None:
        """Waits for the save under way, if there is one; why it failed, or None."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            raise self.error
        reason, self.reason = self.reason, None
        return reason

    def _write_behind(self, files: list[TensorFile], config: str, manifest: dict[str, Any]) -> None:
        try:
            self.reason = self._write(files, config, manifest)
        except Exception as error:  # raised where the training can see it
            self.error = error

    def _write(self, files: list[TensorFile], config: str, manifest: dict[str, Any]) -> str | None:
        """Writes, publishes and clears up; the reason of a failure."""
        step, outcome = manifest["step"], "not written"
        name = f"step-{step:08d}"
        temporary = self.folder / f".writing-{name}"
        try:
            self._on_all(lambda: self._begin(temporary, config), first_only=True)
            written = self._on_all(lambda: write_files(files, temporary))
            manifest["files"] = {name: entry for part in written for name, entry in part.items()}
            self._on_all(lambda: self._publish(temporary, manifest), first_only=True)
            outcome = "written, but older ones not removed"
            self._on_all(lambda: self._clear_up(name, step), first_only=True)
        except (SaveError, Superseded) as error:
            if self.ranks.first:
                shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, Superseded):
                raise
            return f"checkpoint of step {step} {outcome}: {error}"
        return None

    def _begin(self, temporary: Path, config: str) -> None:
        if temporary.exists():
            shutil.rmtree(temporary)
        (temporary / "state").mkdir(parents=True)
        write_atomically(temporary / "config.json", config)

    def _publish(self, temporary: Path, manifest: dict[str, Any]) -> None:
        """Makes a written checkpoint visible, in one step."""
        config = temporary / "config.json"
        manifest["files"][config.name] = [config.stat().st_size, digest(config)]
        write_atomically(temporary / "manifest.json", json_text(manifest, indent=2))
        sync_folder(temporary / "state")
        self._may_write()
        place = self.folder / temporary.name.removeprefix(".writing-")
        if place.exists():  # found corrupt when the run was resumed before it, and made again
            remove(place)
        os.rename(temporary, place)
        sync_folder(self.folder)

    def _may_write(self) -> None:
        if self.attempt is not None:
            self.attempt.check()

    def _clear_up(self, name: str, newest: int) -> None:
        self._may_write()
        write_atomically(self.folder / "latest", name + "\n")
        self.known.add(newest)
        found = {k: path for k, path in step_folders(self.folder).items() if k in self.known}
        for step in outdated(list(found), newest, self.keep_last, self.keep_every):
            remove(found[step])

    def _on_all(self, action: Callable[[], Any], first_only: bool = False) -> list[Any]:
        """What `action` gives on each rank, as JSON; None on those that have nothing to do.

        Raises SaveError on all ranks where the disk of any of them does not do its part;
        Superseded, too, on all.
        """
        mine: list[Any] = [None, None, None]
        try:
            if self.ranks.first or not first_only:
                mine[0] = action()
        except OSError as error:
            mine[1] = (
                f"{error.strerror or error} on rank {self.ranks.rank}; make room in {self.folder},"
                " or make it writable: the checkpoints in it are as they were"
            )
        except Superseded as error:
            mine[2] = str(error)
        told = self._gather(mine)
        for _, reason, superseded in told:
            if superseded is not None:
                raise Superseded(superseded)
            if reason is not None:
                raise SaveError(reason)
        return [result for result, _, _ in told]

    def _gather(self, mine: Any) -> list[Any]:
        """`mine`, JSON, of all ranks, through the writer's own group."""
        data = torch.frombuffer(bytearray(json_text(mine).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.ranks.world_size)]
        self._wait(dist.all_gather(sizes, torch.tensor([len(data)]), self.group, async_op=True))
        longest = max(int(size) for size in sizes)
        sent = torch.zeros(longest, dtype=torch.uint8)
        sent[: len(data)] = data
        told = [torch.zeros_like(sent) for _ in sizes]
        self._wait(dist.all_gather(told, sent, self.group, async_op=True))
        return [
            json.loads(bytes(one[: int(size)].tolist()))
            for one, size in zip(told, sizes, strict=True)
        ]

    def _wait(self, work: Any) -> None:
        pause_s = SHORTEST_POLL_S  # most of them take no longer; others wait for a slow disk
        while not work.is_completed():
            try:
                end_with_the_program()
            except SystemExit:
                # Freeing a group waits for its collectives, as long as the other ranks live. Never
                # freed, it lets this process end, and they learn of it by the closed connection.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.group))
                raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_POLL_S)
        work.wait()  # raises what went wrong


def end_with_the_program() -> None:
    """Ends the thread that calls it when the main thread is gone, by an error as a rule: Python
    waits for it, and would for hours; and a daemon that wakes up during its exit crashes it."""
    if not threading.main_thread().is_alive():
        raise SystemExit


def in_memory(file: TensorFile) -> TensorFile:
    """The file with copies of its tensors on the CPU, which training leaves alone; without those
    that are only made for another rank."""
    copies = [tensor.to("cpu", copy=True) if file.name else None for tensor in file.tensors]
    return dataclasses.replace(file, tensors=[copy for copy in copies if copy is not None])


def write_files(files: list[TensorFile], folder: Path) -> dict[str, tuple[int, str]]:
    """Name -> (size, hash) of the files written.

    Raises OSError, after all tensors have been made: other ranks take part in that.
    """
    written: dict[str, tuple[int, str]] = {}
    failure: OSError | None = None
    for file in files:
        tensors = iter(file.tensors)
        try:
            if file.name and failure is None:
                running = dataclasses.replace(file, tensors=tensors)
                written[file.name] = write_tensors(
                    folder / file.name, running, end_with_the_program
                )
        except OSError as error:
            failure = error
        for _ in tensors:
            pass
    if failure is not None:
        raise failure
    return written
