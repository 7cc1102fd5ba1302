"""What one node says of itself before ranks are started on it; run by srun on each.

python launcher/node_check.py FOLDER RUN_DIR ADDRESS PORT REDUCE

Writes FOLDER/NODE.json, or NODE.GPU.json where each GPU has a task of its own, so that a node that
hangs is known by its silence. With REDUCE = 1 all of them add up a tensor together, last.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("elemdist", "torch", "deepspeed", "mosaicml-streaming", "numpy", "flash-attn")
PATIENCE_S = 60.0
WRITE_BYTES = 16 << 20
REDUCE_BYTES = 64 << 20
ROUNDS = 4


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def available_bytes() -> int:
    """Memory that programs can have."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def gpus() -> list[dict[str, str]]:
    """What the driver says of each GPU that this task sees; empty without a driver."""
    keys = ["index", "name", "driver_version", "memory.total", "memory.used", "ecc.errors."]
    keys[-1] += "uncorrected.volatile.total"
    command = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines()] if not done.returncode else []
    return [dict(zip(keys, row, strict=False)) for row in rows]


def write_test(run_dir: Path) -> dict[str, float]:
    """MB/s of a small file in the run folder, and the bytes that are free there. Raises OSError."""
    path = run_dir / f".write-test-{socket.gethostname()}-{os.getpid()}"
    try:
        begin = time.perf_counter()
        with open(path, "wb") as file:
            file.write(os.urandom(WRITE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        seconds = time.perf_counter() - begin
    finally:
        path.unlink(missing_ok=True)
    return {
        "write_mb_per_s": WRITE_BYTES / 1e6 / seconds,
        "free_bytes": shutil.disk_usage(run_dir).free,
    }


def meet(first: bool, address: str, port: int, others: int) -> None:
    """The first node listens where rank 0 will; all others connect. Raises OSError."""
    deadline = time.monotonic() + PATIENCE_S
    if first:
        with socket.create_server(("", port)) as server:
            server.settimeout(PATIENCE_S)
            for _ in range(others):
                server.accept()[0].close()
        return
    while True:
        try:
            socket.create_connection((address, port), timeout=10).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def reduce_together() -> float:
    """Adds up a tensor on all tasks; the bandwidth of it in GB/s, as a ring would move it."""
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    size = dist.get_world_size()
    tensor = torch.ones(REDUCE_BYTES // 4, device=device)
    seconds = []
    for _ in range(ROUNDS):
        tensor.fill_(1.0)
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(tensor)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
        if not bool((tensor == size).all()):
            raise ArithmeticError("the sum over all tasks is wrong")
    dist.destroy_process_group()
    return 2 * (size - 1) / size * REDUCE_BYTES / min(seconds) / 1e9


def check(run_dir: Path, address: str, port: int, reduce: bool) -> dict[str, Any]:
    """All of it; a key `problem` says what is wrong with this node, `apart` why it could not meet
    the others, which may be one of theirs."""
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
    local = int(os.environ["SLURM_LOCALID"])
    devices = gpus()
    driver = {"driver": devices[0]["driver_version"]} if devices else {}
    found: dict[str, Any] = {
        "node": os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        "time_s": time.time(),
        "versions": versions() | driver,
        "available_bytes": available_bytes(),
        "gpus": devices,
    }
    step = "the run folder cannot be written"
    try:
        found |= write_test(run_dir) if local == 0 else {}
    except OSError as error:
        found["problem"] = f"{step}: {one_line(error)}"  # and do not keep the others waiting
    step = f"port {port} of {address} cannot be used"
    try:
        meet(rank == 0, address, port, size - 1)
        if reduce:
            step = "the sum over all nodes failed"
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local),
                MASTER_ADDR=address, MASTER_PORT=str(port + 1),
            )  # fmt: skip
            found["reduce_gb_per_s"] = reduce_together()
    except Exception as error:  # whatever a broken driver raises
        found["apart"] = f"{step}: {one_line(error)}"
    return found


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main(folder: str, run_dir: str, address: str, port: str, reduce: str) -> int:
    sys.path.pop(0)  # this folder, whose names must not shadow a library's
    found = check(Path(run_dir), address, int(port), reduce == "1")
    name = f"{found['node']}.{os.environ['SLURM_LOCALID']}.json"
    part = Path(folder) / f".{name}.part"
    part.write_text(json.dumps(found))
    part.replace(Path(folder) / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
