"""What can go wrong in a rank: each function makes it go wrong, in the process that calls it.

`rank` is that of the process, `victim` the one in which it goes wrong, `call` the number of the
training step since the start, counted from 1.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import elemdist.train
from elemdist import checkpoint_writer


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


def kill_in_step(rank: int, victim: int, call: int) -> None:
    if rank == victim:
        before_step(call, lambda: os.kill(os.getpid(), signal.SIGKILL))


def hang(rank: int, victim: int, call: int) -> None:
    """One rank waits for ever; the others wait for it."""
    if rank == victim:
        before_step(call, lambda: time.sleep(3600))


def bad_loss(rank: int, victim: int, calls: list[int]) -> None:
    """The loss of one rank is not a number in these steps, or all from the first one on."""
    loss_of, train_step, count = elemdist.train.loss_of, elemdist.train.train_step, 0

    def step(*words: Any) -> Any:
        nonlocal count
        count += 1
        return train_step(*words)

    def loss(*words: Any) -> Any:
        found, nats = loss_of(*words)
        return (found * torch.nan if count in calls else found), nats

    if rank == victim:
        elemdist.train.train_step = step  # type: ignore[assignment]
        elemdist.train.loss_of = loss  # type: ignore[assignment]


def lose_shard(rank: int, victim: int, call: int, folder: str) -> None:
    """The folder of the shards is moved away."""
    if rank == victim:
        before_step(call, lambda: shutil.move(folder, folder + ".lost"))
