"""Ranks that share sequences: real processes with gloo, and what is computed in them.

They are started once for many tests, and run one function of a test at a time.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from elemdist.attention import starts
from elemdist.batch import Batch, Cut, Positions, Reading, unpad
from elemdist.inputs import ByteReading, CanineReading
from elemdist.model_config import ModelConfig, Symbols
from elemdist.objectives import Targets, label_nats, share_batch, targets_of
from elemdist.rows import DOC, PAD
from elemdist.run_settings import MemorySettings
from elemdist.sequence_parallel import Share, open_groups
from tests.forkserver import rank_process
from tests.test_model import VARIANTS, config

Call = Callable[..., Any]
TILED = MemorySettings(checkpoint_every=1, tile_rows=3, tile_loss_rows=2)


class Ranks:
    """Processes of one process group that run functions of the tests, all the same at a time."""

    def __init__(self, count: int, folder: Path) -> None:
        self.processes = []
        self.pipes: list[Any] = []
        for rank in range(count):
            here, there = multiprocessing.Pipe()
            process = rank_process(serve, there, rank, count, str(folder))
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def __call__(self, function: Call, *arguments: Any, timeout_s: float = 60) -> list[Any]:
        """What each rank's function returns; an exception of any of them fails the test."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers: dict[Any, Any] = {}
        while len(answers) < len(self.pipes):
            ready = wait([pipe for pipe in self.pipes if pipe not in answers], timeout_s)
            assert ready, "a rank hangs"
            for pipe in ready:
                done, answers[pipe] = pipe.recv()
                assert done, answers[pipe]
        return [answers[pipe] for pipe in self.pipes]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            process.kill()
            process.join()


def serve(pipe: Any, rank: int, count: int, folder: str) -> None:
    """A rank: runs what comes through the pipe until it is closed."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*arguments)))
        except Exception:
            pipe.send((False, f"rank {rank}: {traceback.format_exc()}"))


@cache
def share_of(size: int) -> Share | None:
    return open_groups(size)


class TokenReading:
    """Every material is a token, as a tokenizer with so large a vocabulary would have it."""

    def positions(self, rows_BNV: np.ndarray, cut: Cut) -> Positions:
        rows_RV = rows_BNV.reshape(-1, rows_BNV.shape[-1])
        special_R = rows_RV[:, 0] == DOC
        ids_R = np.where(special_R, TOKENS.doc, rows_RV[:, 0].astype(np.int32) * 2)
        bytes_R = np.where(special_R, 0, (rows_RV != PAD).sum(1)).astype(np.int32)
        ids_R1 = ids_R[:, None].astype(np.int32)
        return Positions(ids_R1, cut.start_S, cut.rows_S, cut.key_S, cut.ended_S, None, bytes_R)


TOKENS = Symbols(doc=300, sep=301, mask=302, vocabulary=303)
READINGS: dict[str, Reading] = {
    "byte": ByteReading(), "canine": CanineReading(), "subword": TokenReading(),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """What is computed, and from which documents, cut into samples of 12 rows."""

    variant: str = "bert"
    objective: str = ""
    pooling: str = "none"
    input: str = "elementwise"
    memory: MemorySettings = dataclasses.field(default_factory=MemorySettings)
    lengths: tuple[int, ...] = (2, 3, 2, 12, 5, 4, 1, 9, 12)
    size: int = 2
    wide: bool = False

    def shape(self) -> ModelConfig:
        made = config(self.objective, input=self.input, **VARIANTS[self.variant])
        symbols = TOKENS if self.input == "subword" else None
        given = {"pooling": self.pooling, "symbols": symbols, "wide": self.wide}
        return dataclasses.replace(made, **given, wide_lead=2.0 * self.wide)

    def batch(self, seed: int) -> Batch:
        """Documents of these lengths back to back, the last sample padded."""
        rng = np.random.default_rng(seed)
        rows = np.full((-(-sum(self.lengths) // 12) * 12, 4), PAD, np.uint8)
        rows[: sum(self.lengths)] = rng.integers(32, 127, (sum(self.lengths), 4))
        rows[::2, 3:] = PAD
        rows[sum(self.lengths) :] = PAD
        for start in starts(list(self.lengths))[:-1]:
            rows[start] = [DOC, PAD, PAD, PAD]
        rows_BNV = rows.reshape(-1, 12, 4)
        labels_BL = rng.integers(0, 2, (len(rows_BNV), 3))
        return unpad(rows_BNV, labels_BL, np.arange(len(rows_BNV)), READINGS.get(self.input))


def loss_of(model: Any, batch: Batch, share: Share | None) -> tuple[Tensor, Targets]:
    """This rank's share of the summed loss of a batch."""
    shape = getattr(model, "module", model).config
    targets = targets_of(batch, shape, 0.5, seed=1)
    rows_TV, position_T, segments, select_M, target_MV = share_batch(batch, targets, share)
    if shape.objective != "classify":
        nats_M, _ = model(rows_TV, position_T, segments, select_M, target_MV)
        return nats_M.sum(), targets
    assert batch.labels_BL is not None
    truth_SL = batch.labels_BL[batch.sample_S[segments.own]]
    return label_nats(model(rows_TV, position_T, segments), truth_SL).sum(), targets


def check_close(found: dict[str, Any], expected: dict[str, Any], share: float = 1e-5) -> None:
    """Each array differs from what is expected by so small a share of its norm."""
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        error, norm = np.linalg.norm(found[name] - wanted), np.linalg.norm(wanted)
        assert error <= share * norm, (name, error, norm)
