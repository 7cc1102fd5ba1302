"""What a machine lacks, what one goes without for it, and the command that cures it."""

from __future__ import annotations

import ctypes.util
import os
import resource
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from elemdist.compile_check import CXX, OTHER_CXX
from elemdist.temporary import tmpdir_problem

LEAST_SHARED_GB = 1.0
LEAST_CACHE_GB = 10.0
LEAST_FILES = 4096
INSTALL = f"{sys.executable} -m pip install"
# Module -> (package, what needs it); not needed to train.
PACKAGES = {
    "streaming": ("mosaicml-streaming", "MappedDataset, for training loops of one's own"),
    "transformers": ("'transformers<5'", "models that elemdist export has written"),
    "s3fs": ("s3fs 'boto3<1.43.118'", "shards in S3"),
    "gcsfs": ("gcsfs", "shards in Google's store"),
    "adlfs": ("adlfs", "shards in Azure's store"),
    "wandb": ("wandb", "--wandb"),
}
GPU_PACKAGES = {
    "streaming": ("mosaicml-streaming", "MappedDataset, for training loops of one's own"),
    "transformers": ("'transformers<5'", "models that elemdist export has written"),
    "flash_attn": ("--no-build-isolation flash-attn", "the fastest attention on this GPU"),
    "triton": ("triton", "--compile on this GPU"),
}


@dataclass(frozen=True)
class Missing:
    """Something that this machine lacks.

    Attributes:
        what: its name. needed_by: what one goes without. cure: the command that brings it.
    """

    what: str
    needed_by: str
    cure: str


def missing(
    needed: list[str], gpus: int, shared_gb: float | None, cache_gb: float | None
) -> Iterator[Missing]:
    """All that is missing here.

    Args:
        needed: packages without which nothing trains, and which are not installed.
        gpus: of this machine. shared_gb, cache_gb: free in /dev/shm and in the cache's folder.
    """
    for name in needed:
        yield Missing(name, "training", f"{INSTALL} {name}")
    for module, (package, user) in (PACKAGES | (GPU_PACKAGES if gpus else {})).items():
        if find_spec(module) is None:
            yield Missing(module, user, f"{INSTALL} {package}")
    yield from of_the_system()
    if shared_gb is not None and shared_gb < LEAST_SHARED_GB:
        cure = "mount -o remount,size=16G /dev/shm (a container: --shm-size=16g)"
        yield Missing(f"shared memory, {shared_gb} GB", "workers of a DataLoader", cure)
    if cache_gb is not None and cache_gb < LEAST_CACHE_GB:
        cure = "export ELEMDIST_CACHE=FOLDER on a larger disk"
        yield Missing(f"room in the cache, {cache_gb} GB", "shards of an object store", cure)


def of_the_system() -> Iterator[Missing]:
    """What no package of Python brings."""
    if shutil.which("sbatch") is None:
        cure = "go to a login node of the cluster; here: elemdist launch --local"
        yield Missing("SLURM", "elemdist launch on a cluster", cure)
    if not any(map(shutil.which, (CXX, *OTHER_CXX))):
        yield Missing(CXX, "--compile on a CPU", "apt-get install g++")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        yield Missing("Python.h", "--compile", "apt-get install python3-dev")
    if ctypes.util.find_library("aio") is None:
        yield Missing("libaio", "--zero.nvme-path", "apt-get install libaio-dev")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < LEAST_FILES and files != resource.RLIM_INFINITY:
        yield Missing(
            f"open files, {files}", "sets of many shards", f"ulimit -n {LEAST_FILES * 16}"
        )
    if os.getenv("TMPDIR") and not os.path.isdir(os.environ["TMPDIR"]):
        cure = f"mkdir -p '{os.environ['TMPDIR']}'"
        yield Missing("$TMPDIR", "temporary files of all libraries", cure)
    elif problem := tmpdir_problem():
        yield Missing(problem, "elemdist shard, workers of a DataLoader", "export TMPDIR=/tmp")
