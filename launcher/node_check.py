"""What one node says of itself before ranks are started on it; run by srun on each.

python launcher/node_check.py FOLDER RUN_DIR GROUPS REDUCE PATIENCE_S

Each task writes FOLDER/NODE.TASK.json: a node that hangs is known by its silence, and one that
cannot write there prints its report instead. Then the nodes of a group meet, and with REDUCE = 1
they add up a tensor, for so many seconds at most. GROUPS is JSON,
[{"nodes": [names], "address": of the first one, "port": where it listens}].
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("elemdist", "torch", "deepspeed", "mosaicml-streaming", "numpy", "flash-attn")
WRITE_BYTES = 16 << 20
REDUCE_BYTES = 64 << 20
ROUNDS = 4

Report = dict[str, Any]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that all nodes must have alike."""
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


def meet(first: bool, address: str, port: int, others: int, patience_s: float) -> None:
    """The first task listens where rank 0 will; all others connect. Raises OSError."""
    deadline = time.monotonic() + patience_s
    if first:
        with socket.create_server(("", port)) as server:
            server.settimeout(patience_s)
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


def reduce_together(patience_s: float) -> float:
    """Adds up a tensor on all tasks; the bandwidth of it in GB/s, as a ring would move it."""
    import torch
    import torch.distributed as dist

    from elemdist.engine import choose_device

    device = choose_device("auto", int(os.environ["LOCAL_RANK"]))
    if cuda := device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=patience_s))
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


def look(node: str, run_dir: Path) -> Report:
    """What a node knows by itself; the key `problem` says what is wrong with it."""
    devices = gpus()
    driver = {"driver": devices[0]["driver_version"]} if devices else {}
    found: Report = {
        "node": node,
        "time_s": time.time(),
        "versions": versions() | driver,
        "available_bytes": available_bytes(),
        "gpus": devices,
    }
    try:
        found |= write_test(run_dir) if os.environ["SLURM_LOCALID"] == "0" else {}
    except OSError as error:
        found["problem"] = unwritable(error)
    return found


def come_together(
    node: str,
    group: dict[str, Any],
    reduce: bool,
    patience_s: float,
    save: Callable[[Report], None],
) -> Report:
    """Meets the others of the group. The key `apart` says why it could not, for which another of
    them may be to blame; save() takes what stands if this does not return."""
    local, size = int(os.environ["SLURM_LOCALID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
    per_node = size // int(os.environ["SLURM_STEP_NUM_NODES"])
    rank, size = group["nodes"].index(node) * per_node + local, len(group["nodes"]) * per_node
    address, port = group["address"], int(group["port"])
    # What waits for ever, in C, ends by this, and what was saved stands.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        step = "the sum over all nodes failed"
        if reduce:
            import torch  # noqa: F401  (which takes long, and some longer than others)
        step = f"port {port} of {address} cannot be used"
        save({"apart": step})
        signal.alarm(int(patience_s) + 10)
        meet(rank == 0, address, port, size - 1, patience_s)
        if reduce:
            step = "the sum over all nodes failed"
            save({"apart": f"{step}: it hangs"})
            signal.alarm(int(patience_s) + 10)
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local),
                MASTER_ADDR=address, MASTER_PORT=str(port + 1),
            )  # fmt: skip
            return {"reduce_gb_per_s": reduce_together(patience_s)}
    except Exception as error:  # whatever a broken driver raises
        return {"apart": f"{step}: {one_line(error)}"}
    return {}


def unwritable(error: OSError) -> str:
    """What is wrong with a run folder in which this happened."""
    return f"the run folder cannot be written: {one_line(error)}"


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def main(folder: str, run_dir: str, groups: str, reduce: str, patience_s: str) -> int:
    """What a node's process does: look, add up with the others, report. Returns the exit code.

    Args:
        folder: for the reports. groups: JSON, nodes that add up together. reduce, patience_s: what
            is added up, and the seconds it may take.
    """
    sys.path.pop(0)  # this folder, whose names must not shadow a library's
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    (group,) = (one for one in json.loads(groups) if node in one["nodes"])
    found = look(node, Path(run_dir))

    def save(more: Report) -> None:
        name = f"{node}.{os.environ['SLURM_LOCALID']}.json"
        part = Path(folder) / f".{name}.part"
        try:
            part.write_text(json.dumps(found | more))
            part.replace(Path(folder) / name)
        except OSError as error:  # also where another node's test fills the disk just now
            # Without the GPUs: srun may tear apart lines of more than 1,024 bytes.
            print(json.dumps({"problem": unwritable(error)} | found | {"gpus": []}), flush=True)

    save(come_together(node, group, reduce == "1", float(patience_s), save))
    os._exit(0)  # what a broken driver left running does not keep it


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
