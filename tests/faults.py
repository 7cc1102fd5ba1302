"""What can go wrong in a rank: each function makes it go wrong, in the process that calls it.

`rank` is that of the process, `victim` the one in which it goes wrong, `call` the number of the
training step since the start, counted from 1.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import elemdist.step
import elemdist.train
from elemdist import checkpoint_writer, watchdog
from elemdist.attempts import VARIABLE, Attempt
from elemdist.shard_maps import close_all


def before_step(call: int, action: Callable[[], None]) -> None:
    """Does something right before a training step."""
    step, calls = elemdist.train.train_step, 0

    def wrapped(*words: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            action()
        return step(*words)

    elemdist.train.train_step = wrapped  # type: ignore[assignment]


def threads_unsaid(rank: int) -> None:
    """The number of threads is left to the rank, as where a user says nothing."""
    del os.environ["OMP_NUM_THREADS"]


def kill_in_step(rank: int, victim: int, call: int) -> None:
    if rank == victim:
        before_step(call, lambda: os.kill(os.getpid(), signal.SIGKILL))


def hang(rank: int, victim: int, call: int) -> None:
    """One rank waits for ever; the others wait for it."""
    if rank == victim:
        before_step(call, lambda: time.sleep(3600))


def hang_superseded(rank: int, victim: int, call: int, run: str) -> None:
    """The same while another start takes the run; ranks notice within a second."""
    watchdog.SUPERSEDED_S = watchdog.ASK_S = watchdog.SETTLE_S = 0.5

    def begin() -> None:
        Attempt.begin(run)
        time.sleep(3600)

    if rank == victim:
        before_step(call, begin)


def bad_loss(rank: int, victim: int, calls: list[int]) -> None:
    """The loss of one rank is not a number in these steps."""
    loss_of, train_step, count = elemdist.step.loss_of, elemdist.train.train_step, 0

    def step(*words: Any) -> Any:
        nonlocal count
        count += 1
        return train_step(*words)

    def loss(*words: Any) -> Any:
        found, by_source = loss_of(*words)
        return (found * torch.nan if count in calls else found), by_source

    if rank == victim:
        elemdist.train.train_step = step  # type: ignore[assignment]
        elemdist.step.loss_of = loss  # type: ignore[assignment]


def slow(rank: int, seconds: float) -> None:
    """Every step takes so long at least."""
    step = elemdist.train.train_step

    def wrapped(*words: Any) -> Any:
        time.sleep(seconds)
        return step(*words)

    elemdist.train.train_step = wrapped  # type: ignore[assignment]


def lose_shards(rank: int, victim: int, call: int, folder: str) -> None:
    """The folder of the shards is moved away; no batch is read ahead, so that it is missed."""
    steps = elemdist.train.training_steps

    def one_by_one(*words: Any, **options: Any) -> Any:
        *rest, order, numbers = words
        for number in numbers:
            yield from steps(*rest, order, range(number, number + 1), **options)

    def lose() -> None:
        shutil.move(folder, folder + ".lost")
        close_all()  # as if they had never been mapped

    elemdist.train.training_steps = one_by_one  # type: ignore[assignment]
    if rank == victim:
        before_step(call, lose)


def full_disk(rank: int, victim: int, calls: list[int]) -> None:
    """From a step on no file of one rank grows above a few bytes, until another step."""

    def limit(size: int) -> None:
        sys.dont_write_bytecode = True  # else a part of a module may stay, see NO_BYTECODE
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    if rank == victim:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before_step(calls[0], lambda: limit(1000))
        before_step(calls[1], lambda: limit(resource.RLIM_INFINITY))


def kill_in_write(rank: int, victim: int, moment: str, step: int) -> None:
    """One rank is killed while it writes the checkpoint of a step: in the midst of its tensors,
    before the manifest, or when all but `latest` is done."""
    write_tensors, write_text = checkpoint_writer.write_tensors, checkpoint_writer.write_atomically

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def tensors(path: Path, *words: Any) -> Any:
        if f"step-{step:08d}" in str(path):
            path.write_bytes(b"half of")
            die()
        return write_tensors(path, *words)

    def text(path: Path, content: str) -> None:
        named = f"step-{step:08d}" in str(path) + content[:100]
        if named and path.name == {"manifest": "manifest.json", "latest": "latest"}[moment]:
            die()
        write_text(path, content)

    if rank == victim and moment == "tensors":
        checkpoint_writer.write_tensors = tensors  # type: ignore[assignment]
    elif rank == victim:
        checkpoint_writer.write_atomically = text


def freeze(rank: int, moment: str, step: int) -> None:
    """All ranks stop, as those of a node that hangs, until a SIGCONT: in a training step, before
    the checkpoint of a step becomes visible, or after that."""

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    if moment == "step":
        before_step(step, stop)
        return
    name = {"publish": "_may_write", "clear up": "_clear_up"}[moment]
    action = getattr(checkpoint_writer.Writer, name)
    write = checkpoint_writer.Writer._write

    def before_rename(self: Any, *words: Any) -> Any:
        stop()
        return action(self, *words)

    def written(self: Any, files: Any, config: str, manifest: dict[str, Any]) -> Any:
        ours = manifest["step"] == step
        if ours and rank == 0:
            setattr(checkpoint_writer.Writer, name, before_rename)
        elif ours:
            threading.Timer(1.0, stop).start()
        return write(self, files, config, manifest)

    checkpoint_writer.Writer._write = written  # type: ignore[method-assign]


def launched(rank: int, run: str) -> None:
    """As a launcher does that knows that the attempt before is to be given up."""
    if rank == 0:
        os.environ[VARIABLE] = str(Attempt.begin(run).number)
