"""Where metrics go beside the terminal: files that survive a full disk, TensorBoard, W&B."""

from __future__ import annotations

import importlib
import io
import os
import re
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elemdist.atomic import write_atomically
from elemdist.errors import UserError
from elemdist.yaml_text import read_tree

KEPT_PIECES = 100_000  # that wait for a disk; beyond, the oldest are dropped


def tell(line: str) -> None:
    """Prints a line at once; where standard output is a file on a full disk, the line is lost."""
    try:
        print(line, flush=True)
    except OSError:
        return


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class AppendedFile:
    """A file that grows by whole pieces, in their order. What the disk does not take is kept for
    the next time, and what it took of a piece in part is taken back first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending: deque[bytes] = deque(maxlen=KEPT_PIECES)
        self.failing = False
        self.whole_bytes: int | None = None  # of the file before a write that failed

    def write(self, piece: bytes) -> None:
        """Appends, now or, where the disk is full, with a later piece."""
        self.pending.append(piece)
        try:
            self.append()
            self.failing = False
        except OSError as error:
            if not self.failing:
                tell(f"metrics: {self.path} cannot be written ({error.strerror}); training goes on")
            self.failing = True

    def append(self) -> None:
        """Raises OSError where the disk does not take all pieces; some disks say it on closing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if self.whole_bytes is not None and self.whole_bytes < file.tell():
                file.seek(file.truncate(self.whole_bytes))
            self.whole_bytes = file.tell()
            file.write(b"".join(self.pending))
        self.pending.clear()
        self.whole_bytes = None


class Board:
    """TensorBoard's file of events; its own writer ends for good at the first full disk."""

    def __init__(self, folder: Path, step: int) -> None:
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self.file = AppendedFile(folder / name)
        self.add(file_version="brain.Event:2")
        self.drop_after(step)

    def add(self, **content: Any) -> None:
        """Appends an event."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
        self.file.write(record.getvalue())

    def drop_after(self, step: int) -> None:
        """Has TensorBoard drop what was reported of later steps, in older files, too."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self.add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Figures of a step."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=x) for name, x in figures.items()]
        self.add(step=step, summary=Summary(value=values))


def import_wandb() -> Any:
    """The package of Weights & Biases. Raises UserError where it is not installed."""
    try:
        wandb = importlib.import_module("wandb")
        if hasattr(wandb, "init"):  # a mere folder of that name imports, too
            return wandb
    except ImportError:
        pass
    raise UserError(
        "wandb: the package is not installed; run `pip install wandb`, or leave out --wandb"
    )


class WandbRun:
    """The run at Weights & Biases, one for all starts of a run folder.

    Its configuration is RUN/settings.yaml, which holds no secrets. WANDB_MODE=offline writes to
    RUN/wandb only.

    Raises:
        UserError: it cannot be started, or the package is not installed.
    """

    def __init__(self, project: str, run_dir: Path) -> None:
        wandb = import_wandb()
        id_file, settings = run_dir / "wandb-id", run_dir / "settings.yaml"
        try:
            known = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else ""
            run_id = known or uuid.uuid4().hex[:8]
            if not re.fullmatch(r"[\w-]{1,64}", run_id):
                raise UserError(f"wandb: {id_file} holds no id of a run; remove it for a new run")
            self.run: Any = wandb.init(
                project=project,
                id=run_id,
                resume="allow",
                name=run_dir.resolve().name,
                dir=str(run_dir),
                config=read_tree(settings),
                # Not the command line either, whose URLs can hold keys.
                settings=wandb.Settings(
                    x_disable_meta=True, disable_git=True, disable_code=True, console="off",
                    silent=True,
                ),
            )  # fmt: skip
            write_atomically(id_file, run_id + "\n")
            for kind in ("train", "eval"):
                self.run.define_metric(f"{kind}/*", step_metric="step")
        except (wandb.Error, OSError, ValueError) as error:
            raise UserError(
                f"wandb: project '{project}' cannot be opened: {first_line(error)};"
                " see `wandb login`, or set WANDB_MODE=offline"
            ) from None
        tell(f"wandb: {self.run.url or 'offline, in ' + str(run_dir / 'wandb')}")

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Figures of a step."""
        self.call(lambda: self.run.log({**figures, "step": step}))

    def close(self) -> None:
        """Ends the run."""
        self.call(lambda: self.run.finish())

    def call(self, action: Callable[[], Any]) -> None:
        """Does it, unless W&B has failed before; its failure is told once and ends nothing."""
        if self.run is None:
            return
        try:
            action()
        except Exception as error:  # whatever its service died of, training does not depend on it
            self.run = None
            tell(f"wandb: {first_line(error)}; training goes on without it")
