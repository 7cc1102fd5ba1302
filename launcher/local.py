"""The ranks of one machine: start them, pass signals on, and never leave one behind.

``elemdist train --ranks 2`` stands on this; torchrun and deepspeed do the same work their way.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

GRACE_S = 10.0  # from asking the other ranks to end until they are killed
PR_SET_PDEATHSIG = 1


def count_gpus() -> int:
    """NVIDIA GPUs that a process started here would see, without loading torch."""
    devices = [name for name in os.listdir("/dev") if re.fullmatch(r"nvidia\d+", name)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(devices)
    return min(len(devices), len([word for word in visible.split(",") if word.strip()]))


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torch.distributed reads, and the cores shared out fairly."""
    environment = dict(os.environ)
    environment.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    cores = len(os.sched_getaffinity(0))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // ranks)))
    return environment


def die_with_parent() -> None:
    """In the child: have the kernel end it when this launcher dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks every process that still runs to end, and kills what has not after a grace."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start_ranks(script: Path, arguments: Sequence[str], ranks: int) -> int:
    """Runs `script` once per rank and waits; the exit code of the first rank that failed, or 0.

    When one rank fails the others are ended. SIGTERM and SIGINT are passed on to all.
    """
    port = free_port()
    processes: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    old = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for rank in range(ranks):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-u", str(script), *arguments],
                    env=rank_environment(rank, ranks, port),
                    preexec_fn=die_with_parent,
                )
            )
        while True:
            codes = [process.poll() for process in processes]
            failed = [(rank, code) for rank, code in enumerate(codes) if code]
            if failed:
                rank, code = failed[0]
                end(processes)
                if not received and code != 2:
                    print(
                        f"elemdist train: rank {rank} ended with code {code}; the others were"
                        " ended too. Its own message stands above.",
                        file=sys.stderr,
                    )
                return 128 + received[0] if received else (code if code > 0 else 128 - code)
            if all(code == 0 for code in codes):
                return 0
            time.sleep(0.05)
    finally:
        end(processes)
        for number, handler in old.items():
            signal.signal(number, handler)
