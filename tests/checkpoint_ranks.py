"""Ranks that train a small model, save and restore it: forks of a process that has imported all.

`run` starts them and gives what each of them found; the functions that a rank can run stand below
it. Nothing here is faked: gloo, DeepSpeed, files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist

from elemdist import checkpoint
from elemdist.attention import Segments
from elemdist.batch_plan import BatchPlan
from elemdist.checkpoint_writer import Writer
from elemdist.config import TrainSettings
from elemdist.deepspeed_import import import_deepspeed
from elemdist.engine import Ranks, build_engine
from elemdist.errors import UserError
from elemdist.model import Model
from elemdist.model_config import model_config
from elemdist.model_settings import ModelSettings
from elemdist.run_settings import BatchSettings, OptimSettings, ZeroSettings
from tests.forkserver import rank_process

import_deepspeed()

SAMPLES, ROWS, V = 8, 6, 4
FACTS = {"model": {"width": 20}, "seed": 1}


@dataclass(frozen=True)
class Setup:
    """How an engine is to be; what the checkpoint must not depend on."""

    ranks: int
    stage: int
    bf16: bool = False
    offload: str = "none"
    parameters: str = "none"
    backbone: str = "bert"
    disk: str | None = None
    width: int = 20

    def __str__(self) -> str:
        words = [f"{self.ranks}x", f"zero{self.stage}", "bf16" if self.bf16 else "fp32"]
        words += [word for word in (self.offload, self.backbone) if word not in ("none", "bert")]
        return "-".join(words)

    def settings(self) -> TrainSettings:
        stage_3 = {"zero_optimization.stage3_param_persistence_threshold": 50}
        return TrainSettings(
            model=ModelSettings(backbone=self.backbone, layers=2, width=self.width, dropout=0.0),  # type: ignore[arg-type]
            batch=BatchSettings(global_samples=SAMPLES),
            optim=OptimSettings(lr=1e-2, warmup_steps=0),
            zero=ZeroSettings(
                stage=self.stage,  # type: ignore[arg-type]
                offload_optimizer=self.offload,  # type: ignore[arg-type]
                offload_parameters=self.parameters,  # type: ignore[arg-type]
                nvme_path=self.disk,
            ),
            deepspeed=stage_3 if self.stage == 3 else {},
            precision="bf16" if self.bf16 else "fp32",
            device="cpu",
        )


def engine_for(setup: Setup, seed: int = 1) -> Any:
    settings = setup.settings()
    torch.manual_seed(seed)
    model = Model(model_config(settings, ROWS, V))
    plan = BatchPlan(SAMPLES, groups=setup.ranks, sequence_parallel=1, passes=1)
    return build_engine(model, settings, plan, ranks_here())


def ranks_here() -> Ranks:
    rank = dist.get_rank()
    return Ranks(rank, rank, dist.get_world_size(), torch.device("cpu"))


def train(engine: Any, steps: range) -> list[float]:
    """The loss of each step, over the global batch."""
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        shape = (SAMPLES, ROWS, V)
        rows_BNV = torch.randint(97, 123, shape, generator=generator, dtype=torch.uint8)
        count = SAMPLES // dist.get_world_size()
        mine_BNV = rows_BNV[dist.get_rank() * count :][:count]
        rows_TV = mine_BNV.reshape(-1, V)
        starts = torch.arange(0, len(rows_TV) + 1, ROWS, dtype=torch.int32)
        position_T = torch.arange(ROWS).repeat(count)
        segments = Segments(starts, [ROWS] * count)
        nats_M, _ = engine(rows_TV, position_T, segments, torch.arange(len(rows_TV)), rows_TV)
        loss = nats_M.sum() / rows_BNV.numel()
        engine.backward(loss * dist.get_world_size())
        engine.step()
        total = loss.detach().double()
        dist.all_reduce(total)
        losses.append(total.item())
    return losses


def writer_for(
    run: str, background: bool = False, keep_last: int = 9, keep_every: int = 0
) -> Writer:
    return Writer(Path(run), ranks_here(), keep_last, keep_every, background)


def save(writer: Writer, engine: Any, step: int, setup: Setup) -> str | None:
    settings = dataclasses.asdict(setup.settings())
    return writer.save(engine, step, {"place": [step, "x"]}, FACTS, settings)


# What a rank can run.


def train_and_save(setup: Setup, run: str, background: bool = False) -> dict[str, Any]:
    """Four steps, a checkpoint, three steps; then back to the checkpoint, and the three again."""
    engine, writer = engine_for(setup), writer_for(run, background)
    train(engine, range(4))
    reason = save(writer, engine, 4, setup)
    losses = train(engine, range(4, 7))
    reason = reason or writer.finish()
    found = checkpoint.open_for_resume(Path(run), FACTS)
    assert found is not None
    checkpoint.restore(engine, found)
    return {"reason": reason, "losses": losses, "again": train(engine, range(4, 7))}


def resume(setup: Setup, run: str, copy: str) -> dict[str, Any]:
    """Restores into a fresh engine, saves at once what is there then, and trains three steps."""
    found = checkpoint.open_for_resume(Path(run), FACTS)
    assert found is not None
    engine = engine_for(setup, seed=2)
    checkpoint.restore(engine, found)
    reason = save(writer_for(copy), engine, 4, setup)
    return {
        "reason": reason,
        "losses": train(engine, range(4, 7)),
        "state": found.state,
        "global_steps": engine.global_steps,
    }


def refused(setup: Setup, run: str) -> dict[str, Any]:
    """The one line with which a resume is refused, or the step it takes."""
    try:
        found = checkpoint.open_for_resume(Path(run), FACTS)
        if found is None:
            return {"step": None}
        checkpoint.restore(engine_for(setup), found)
        return {"step": found.step}
    except UserError as error:
        return {"error": str(error)}


def save_often(
    setup: Setup, run: str, steps: list[int], keep_last: int, keep_every: int
) -> dict[str, Any]:
    engine, writer = engine_for(setup), writer_for(run, False, keep_last, keep_every)
    return {"reasons": [save(writer, engine, step, setup) for step in steps]}


def out_of_room(setup: Setup, run: str, victim: int, background: bool) -> dict[str, Any]:
    """Saves; saves while `victim` cannot write more than a few bytes to a file; saves again."""
    engine, writer = engine_for(setup), writer_for(run, background)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = []
    for step, limit in ((1, limits[0]), (2, 2000), (3, limits[0])):
        train(engine, range(step, step + 1))
        if dist.get_rank() == victim:
            sys.dont_write_bytecode = True  # else a part of a module may stay, see NO_BYTECODE
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        told.append(save(writer, engine, step, setup))
        if background:
            told[-1] = told[-1] or writer.finish()
    return {"told": told}


def at_last_file(action: Callable[[], None]) -> None:
    """Calls `action` in the midst of the next write of this rank."""
    from elemdist import checkpoint_writer

    write = checkpoint_writer.write_tensors

    def wrapped(path: Path, file: Any, pause: Callable[[], None]) -> Any:
        def tensors() -> Any:
            for number, tensor in enumerate(file.tensors):
                if number == 3:
                    action()
                yield tensor

        return write(path, dataclasses.replace(file, tensors=tensors()), pause)

    checkpoint_writer.write_tensors = wrapped


def killed_in_write(setup: Setup, run: str, victim: int, background: bool) -> None:
    """Saves, and is killed in the next save."""
    engine, writer = engine_for(setup), writer_for(run, background)
    train(engine, range(1))
    save(writer, engine, 1, setup)
    writer.finish()
    if dist.get_rank() == victim:
        at_last_file(lambda: os.kill(os.getpid(), signal.SIGKILL))
    save(writer, engine, 2, setup)
    writer.finish()


def fails_during_a_write(setup: Setup, run: str, victim: int) -> None:
    """A rank fails while the others still write, in the background; they do until it has ended,
    which the test says by a file."""
    engine, writer = engine_for(setup), writer_for(run, background=True)
    train(engine, range(1))
    others = dist.get_rank() != victim
    if others:
        at_last_file(lambda: wait_for(Path(run) / "ended"))
    save(writer, engine, 1, setup)
    time.sleep(1)
    assert writer.thread is not None
    assert writer.thread.is_alive()
    if others:
        wait_for(Path(run) / "ended")
        os._exit(3)
    raise RuntimeError("made to fail")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


# Starting them.


def rank_main(name: str, rank: int, store: str, out: str, setup: Setup, words: Any) -> None:
    log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": setup.ranks}
    os.environ.update({key: str(value) for key, value in place.items()})
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, setup.ranks), rank=rank, world_size=setup.ranks
    )
    found = globals()[name](setup, **words)
    Path(f"{out}.{rank}").write_text(json.dumps(found))
    dist.destroy_process_group()


@dataclass
class Outcome:
    """How the ranks ended, what they found, and all they printed."""

    codes: list[int]
    found: list[Any]
    log: str


def start(folder: Path, function: Callable[..., Any], setup: Setup, **words: Any) -> Outcome:
    """Runs a function of this file on all ranks of `setup`, to their ends."""
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("store*")))
    store, out = str(folder / f"store{number}"), str(folder / f"out{number}")
    Path(store).touch()
    words = {key: str(word) if isinstance(word, Path) else word for key, word in words.items()}
    begun = time.monotonic()
    processes: list[Any] = [
        rank_process(rank_main, function.__name__, r, store, out, setup, words)
        for r in range(setup.ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0.0, begun + 200 - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
    codes = [process.exitcode for process in processes]
    texts = [Path(f"{out}.{rank}") for rank in range(setup.ranks)]
    found = [json.loads(text.read_text()) if text.exists() else None for text in texts]
    return Outcome(codes, found, Path(f"{out}.log").read_text())


def run(folder: Path, function: Callable[..., Any], setup: Setup, **words: Any) -> Any:
    """`start`, where nothing may go wrong and all ranks find the same; what they find."""
    done = start(folder, function, setup, **words)
    assert done.codes == [0] * setup.ranks, done.log
    assert done.found.count(done.found[0]) == setup.ranks, done.found
    return done.found[0]
