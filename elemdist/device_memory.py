"""How much memory a process takes on its device, and how much it may take."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path

import torch
import torch.distributed as dist

from elemdist.errors import UserError
from elemdist.metrics import peak_memory_bytes

KEPT_FREE = 0.08  # of a GPU: the allocator's fragments, and batches that differ
CPU_SHARE = 0.8  # of what the machine has available
CGROUPS = Path("/sys/fs/cgroup")


class Memory:
    """What this process takes of its device's memory, and may take."""

    def __init__(self, device: torch.device, memory_bytes: int | None) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.start()
        self.fixed: int | None = None
        if memory_bytes is not None:
            self.fixed = self.used() + memory_bytes
        elif not self.cuda:
            local = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
            self.fixed = self.used() + int(CPU_SHARE * available_bytes()) // local

    def used(self) -> int:
        """Bytes that are taken now."""
        if self.cuda:
            return torch.cuda.memory_reserved(self.device)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def limit(self) -> int:
        """Bytes that may be taken in all."""
        if self.fixed is not None:
            return self.fixed
        free, total = torch.cuda.mem_get_info(self.device)
        others = total - free - self.used()  # the driver, collectives, other processes
        return int((1 - KEPT_FREE) * total) - others

    def start(self) -> None:
        """Lets the peak begin anew."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        # The C library keeps what was freed, which would hide what the next try takes.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        # Where this is not permitted the peak is that of the whole process, never too low.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """The most bytes since :meth:`start`."""
        if self.cuda:
            return torch.cuda.max_memory_reserved(self.device)
        return peak_memory_bytes(self.device)


def available_bytes() -> int:
    """What the machine, or the limit that a scheduler has set, leaves to new processes. Raises
    UserError on a system that does not say it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        raise UserError(
            "auto_micro_batch: this system does not tell how much memory it has; set"
            " --batch.micro-samples instead"
        ) from None
    for line in groups:
        if line.startswith("0::"):
            place = CGROUPS / line[3:].lstrip("/")
            folders = [place, *place.parents]
            found += [left for folder in folders if (left := left_bytes(folder)) is not None]
    return min(found)


def left_bytes(cgroup: Path) -> int | None:
    """What a control group may still take, its file cache counted as free; None: no limit."""
    try:
        most = (cgroup / "memory.max").read_text().strip()
        taken = int((cgroup / "memory.current").read_text())
        figures = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    cached = int(figures.get("inactive_file", 0))
    return None if most == "max" else max(0, int(most) - taken + cached)
