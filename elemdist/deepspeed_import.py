"""DeepSpeed as a module, quiet, and without what training never uses of it."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def no_collection() -> Iterator[None]:
    """No collection of garbage in here, where much is imported: it stays, and to go over it again
    and again would take a tenth to a quarter of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def import_deepspeed() -> Any:
    """DeepSpeed, without its chatter and without compiling a kernel that training never calls."""
    with no_collection():
        import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found no other
    warnings.filterwarnings("ignore", module="deepspeed")
    # Torch's own collectives warn of functions that they themselves call.
    own = ".*(all_gather_into_tensor|reduce_scatter_tensor).*"
    warnings.filterwarnings("ignore", message=own, category=FutureWarning)
    leave_out_muon()
    with no_collection():
        import deepspeed

    keep_off_stdout()
    # An all-reduce for CPU inference; building it takes a C++ compiler and half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def print_to_stderr(*values: object) -> None:
    """Print to the standard error, as the standard output is for results."""
    print(*values, file=sys.stderr)


def keep_off_stdout() -> None:
    """Send what DeepSpeed logs and prints to the standard error, and leave out its reports of
    memory that nobody has asked for: five of every engine in bf16, each with a collection of
    garbage."""
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:  # its own, and no one's who listens
            handler.setStream(sys.stderr)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "deepspeed":
            vars(module)["print"] = print_to_stderr
    vars(sys.modules["deepspeed.runtime.bf16_optimizer"])["see_memory_usage"] = lambda *_, **__: 0


def leave_out_muon() -> None:
    """Every engine imports the optimizer Muon, which is never used here, to ask whether it is; that
    would load torch's compiler, a second or more of every rank's start."""
    place = "deepspeed.runtime.zero.muon"
    for name, part in (("muon_optimizer", "MuonWithAuxAdam"), ("original_muon", "muon_update")):
        muon = ModuleType(f"{place}.{name}")
        setattr(muon, part, type(part, (), {}))
        sys.modules.setdefault(muon.__name__, muon)


@contextmanager
def no_compiler() -> Iterator[None]:
    """An engine of ZeRO 3 that is made in here does not load torch's compiler, a second of every
    rank's start: its hooks would, only to be left out of what is compiled, and under ZeRO 3 nothing
    is; see check_compile."""
    import torch
    from deepspeed.runtime.zero import partitioned_param_coordinator as coordinator

    for owner in (coordinator, coordinator.PartitionedParameterCoordinator):
        for function in list(vars(owner).values()):
            while hasattr(function, "__wrapped__"):
                function = function.__wrapped__
                # Where torch._disable_dynamo looks for the function that is left out.
                function.__dynamo_disable = function

    def as_it_is(function: Any = None, *_: object, **__: object) -> Any:
        """A decorator, or what makes one, as torch's is."""
        return as_it_is if function is None else function

    disable = torch.compiler.disable
    torch.compiler.disable = as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compiler.disable = disable
