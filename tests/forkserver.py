"""The process that forked ranks of all tests come from: it has imported what they need, once.

Python has one such process for everything that forks in this way. It takes what it is to import
when it starts, and here and nowhere else that is said for ranks: one that data_prep started in this
process has imported little, so that every rank would import torch and DeepSpeed for itself.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
IMPORTS = ["tests.forked_rank", "tests.checkpoint_ranks", "tests.sequence_ranks"]


@cache
def begin() -> None:
    """Ends the process that others have started; the next rank starts ours."""
    forkserver._forkserver._stop()
    CONTEXT.set_forkserver_preload(IMPORTS)


def rank_process(target: Callable[..., Any], *args: Any) -> ForkServerProcess:
    """A process that will call target(*args), not started yet."""
    begin()
    return CONTEXT.Process(target=target, args=args)
