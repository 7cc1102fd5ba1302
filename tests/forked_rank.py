"""What a forked process runs, a rank (tests/forked.py) or a verb (tests/verbs.py). Importing it
imports all that they need."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import attrs  # noqa: F401
import docstring_parser  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import data_prep.shard  # noqa: F401
import elemdist.cli
import elemdist.evaluation
import elemdist.train
from elemdist.deepspeed_import import import_deepspeed
from tests import faults

import_deepspeed()
import deepspeed.module_inject.auto_ep_layer  # noqa: E402, F401 - every engine imports it


def train(
    words: list[str],
    rank: int,
    ranks: int,
    port: str,
    log: str,
    fault: str,
    facts: dict[str, object],
) -> None:
    """Runs one rank to its end and exits with its code."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
    )  # fmt: skip
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if fault:
        getattr(faults, fault)(rank, **facts)
    code = elemdist.train.main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def verb(words: list[str], environment: dict[str, str], folder: str, out: str, err: str) -> None:
    """Runs `elemdist WORDS` in `folder`, its output into two files, and exits with its code."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    sys.argv = ["elemdist", *words]
    sys.exit(elemdist.cli.main())
