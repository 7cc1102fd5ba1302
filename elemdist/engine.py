"""The process group and the DeepSpeed engine of this rank, derived from our settings."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

from elemdist import rank_variables, slurm_ranks
from elemdist.batch_plan import BatchPlan
from elemdist.blocks import Block
from elemdist.compile_check import compile_obstacle, leave_bad_caches
from elemdist.config import TrainSettings
from elemdist.deepspeed_config import check_nvme, deepspeed_config
from elemdist.deepspeed_config import use_bf16 as use_bf16  # others take it from here
from elemdist.deepspeed_import import import_deepspeed, no_compiler
from elemdist.errors import AgreedError, RankError, UserError
from elemdist.guard import GuardedAdamW
from elemdist.heads import Scored
from elemdist.model import Model, parameter_groups
from elemdist.ports import free_port
from elemdist.watchdog import LAUNCHER

Result = TypeVar("Result")
WAIT_S = 60.0  # for the other ranks, before it is said


@dataclass(frozen=True)
class Ranks:
    """This process among all that train together."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks for all."""
        return self.rank == 0


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device of this rank. Raises UserError where CUDA was asked for and is not there."""
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise UserError("device: cuda was asked for, but torch sees no GPU; use --device cpu")
    if name == "cpu" or not cuda:
        return torch.device("cpu")
    if local_rank and sees_own_gpu():
        return torch.device("cuda", 0)
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"ranks: rank {local_rank} of this machine has no GPU of its own, there are"
            f" {torch.cuda.device_count()}; start fewer ranks or use --device cpu"
        )
    return torch.device("cuda", local_rank)


def sees_own_gpu() -> bool:
    """Return True if this rank sees one GPU and each rank of the machine another, as tasks of
    `srun --gpus-per-task=1` do. Ranks that torchrun or our launcher has started see the same."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    shared = LAUNCHER in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    return len(visible) == 1 == torch.cuda.device_count() and bool(visible[0]) and not shared


@contextmanager
def local_rank_of(device: torch.device) -> Iterator[None]:
    """Let DeepSpeed, which takes the GPU with the number LOCAL_RANK, take `device` in here."""
    before = os.environ.get("LOCAL_RANK")
    if device.type == "cuda" and device.index is not None:
        os.environ["LOCAL_RANK"] = str(device.index)
    try:
        yield
    finally:
        if before is not None:
            os.environ["LOCAL_RANK"] = before


def use_threads(local_world_size: int) -> None:
    """Shares the cores out among the ranks of this machine, unless the user has said how."""
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // local_world_size))


def take_place(ranks: int) -> None:
    """See to RANK and so on: those that are set, those of srun or of MPI, else of one rank alone.

    Raises UserError where they do not go together, or one alone is to be so many `ranks`."""
    if rank_variables.in_mpi():  # whose daemons srun starts on other nodes
        rank_variables.take_mpi_ranks()
    elif slurm_ranks.in_step():
        slurm_ranks.take_ranks()
    elif slurm_ranks.says_step(os.environ):
        print(f"elemdist train: {slurm_ranks.NOT_IN_IT}", file=sys.stderr, flush=True)
    if "RANK" in os.environ:
        return rank_variables.check_ranks()
    if ranks > 1:
        raise UserError(
            f"ranks: this file is one rank, not {ranks}; `elemdist train` starts them, or torchrun"
            f" --nproc-per-node {ranks} elemdist/train.py"
        )
    rank_variables.forget_ranks()
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(alone, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))


@contextmanager
def told_when_late(seconds: float) -> Iterator[None]:
    """Say for whom this rank waits in here, once that takes so long."""
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    line = f"elemdist train: rank {rank} of {size} waits for the others, which meet at {place}"
    timer = threading.Timer(seconds, print, [line], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def join_ranks(settings: TrainSettings) -> Ranks:
    """Joins the process group that RANK, WORLD_SIZE and MASTER_ADDR describe, or srun, or MPI;
    alone without."""
    take_place(settings.ranks)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    world_size = int(os.environ["WORLD_SIZE"])
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    # DeepSpeed derives its accelerator from this when it is imported.
    try:
        device = choose_device(settings.device, local_rank)
    except UserError as error:
        if local_rank == torch.cuda.device_count():  # the first without, where rank 0 has one
            raise RankError(str(error)) from None
        raise
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    use_threads(local_world_size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with told_when_late(WAIT_S):
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "nccl",
            # Longer than the watchdog's, which has more to say of a rank that hangs.
            timeout=timedelta(seconds=max(1800.0, settings.guard.stall_s + 600)),
            device_id=device if device.type == "cuda" else None,
        )
    return Ranks(dist.get_rank(), local_rank, dist.get_world_size(), device)


def on_first(action: Callable[[], Result]) -> Result:
    """What `action` gives on rank 0, for all ranks; its UserError is raised on all of them."""
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = action()
        except UserError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise AgreedError(answer[1])
    return cast(Result, answer[0])


def on_every(action: Callable[[], Result]) -> Result:
    """What `action` gives on this rank; the UserError of any rank is raised on all."""
    result, mine = None, None
    try:
        result = action()
    except UserError as error:
        mine = str(error)
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, mine)
    if found := [message for message in told if message is not None]:
        raise AgreedError(found[0])
    return cast(Result, result)


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seeds Python, numpy and torch; `deterministic`: and takes only algorithms that repeat."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def check_compile(stage: int, device: torch.device) -> None:
    """Raises UserError with the reason where torch.compile cannot be used."""
    if stage == 3:
        raise UserError(
            "compile: ZeRO 3 fetches the parameters of each layer by hooks that a compiled block"
            " would not run; take --zero.stage 2, or leave out --compile"
        )
    if (reason := compile_obstacle(device.type)) is not None:
        raise UserError(f"compile: {reason}; or leave out --compile")
    for line in leave_bad_caches():
        print(f"elemdist train: {line}", file=sys.stderr)


def build_engine(model: Model, settings: TrainSettings, plan: BatchPlan, ranks: Ranks) -> Any:
    """The DeepSpeed engine around `model`, with AdamW; the learning rate is set step by step.

    Raises UserError where DeepSpeed's configuration, or what is to be offloaded, cannot be."""
    config = on_every(lambda: deepspeed_config(settings, plan, ranks))
    on_every(lambda: check_nvme(settings.zero))
    deepspeed = import_deepspeed()
    optim = settings.optim
    optimizer = GuardedAdamW(
        parameter_groups(model, optim.weight_decay, settings.classify.wide_l2),
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,  # one pass over the parameters and their moments instead of ten
    )
    if settings.zero.stage == 3:
        # Ranks have different numbers of tiles, so layers that fetched their own parameters would
        # wait for each other for ever; these modules fetch all of theirs at once. ALBERT's one
        # block runs several times in a pass, which DeepSpeed allows no such module.
        shared = settings.model.backbone == "albert"
        leaves = [Scored] if shared else [Block, Scored]
        deepspeed.utils.set_z3_leaf_modules(model, leaves, raise_if_not_found=False)
    without_compiler = no_compiler() if settings.zero.stage == 3 else nullcontext()
    with without_compiler, local_rank_of(ranks.device):
        engine, *_ = deepspeed.initialize(
            model=model.to(ranks.device),
            optimizer=optimizer,
            config=config,
            dist_init_required=False,
        )
    if settings.zero.stage == 0 and engine.bfloat16_enabled():
        mend_whole_bf16(engine.optimizer)
    return engine


def mend_whole_bf16(optimizer: Any) -> None:
    """Makes DeepSpeed's stage 0 in bf16 as exact as ZeRO's stages: takes back the step that it
    makes for the sake of its buffers, whose weight decay and count of steps would stay, and has
    torch add up the gradients in fp32, not bf16."""
    optimizer.optimizer.state.clear()
    for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
        for master, weight in zip(masters, weights, strict=True):
            master.data.copy_(weight.data)
            weight.grad_dtype = torch.float32
