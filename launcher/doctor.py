"""``elemdist doctor``: what this machine has, what would run here, what it lacks, what is broken.

elemdist doctor            a report of one screen
elemdist doctor --json     the same as one JSON object

Shows of the environment's variables $ELEMDIST_CACHE alone, so a report can be passed on as it is.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import elemdist
from elemdist.compile_check import compile_obstacle
from elemdist.json_text import json_text
from elemdist.shard_cache import cache_folder
from launcher.local import count_gpus
from launcher.missing import missing

TOP_LEVEL = ("elemdist", "data_prep", "launcher")
NEEDED = ("deepspeed",)  # to train; the others each for one thing, see missing.py
OPTIONAL = ("mosaicml-streaming", "transformers", "flash-attn", "flash-attn-4", "triton")
SHARED_MEMORY = "/dev/shm"
GB = 1e9

Report = dict[str, Any]


@dataclass
class DoctorSettings:
    """What the report of this machine looks like"""

    json: bool = False
    """Print the report as one JSON object."""
    job: bool = False
    """In a job of SLURM: check every node of it instead, as `elemdist launch` does before a run."""
    run_dir: str = "."
    """Folder that all nodes must be able to write, for `job`."""


def run(settings: DoctorSettings) -> int:
    """Prints the report; 0, or 1 where something is broken."""
    if settings.job:
        from launcher.preflight import check_job

        return check_job(Path(settings.run_dir), per_node=1)
    report = examine()
    print(json_text(report, indent=2) if settings.json else as_text(report))
    return 1 if report["problems"] else 0


def examine() -> Report:
    """All of the report. Sizes are in GB of 10^9 bytes; a reason of null means: it works."""
    torch_report, torch_problems = examine_torch()
    versions = {name: version_of(name) for name in (*NEEDED, *OPTIONAL)}
    needed = [name for name in NEEDED if versions[name] is None]
    cache = os.path.abspath(cache_folder(None, ""))
    cache_gb, shared_gb = free_gb(existing(cache)), free_gb(SHARED_MEMORY)
    return {
        "elemdist": {"version": elemdist.__version__, "folder": str(home("elemdist"))},
        "python": {"version": platform.python_version(), "system": platform.platform()},
        "cpu": {"cores": len(os.sched_getaffinity(0)), **memory_gb()},
        **torch_report,
        "versions": versions,
        "cache": {"folder": cache, "free_gb": cache_gb},
        "shared_memory": {"folder": SHARED_MEMORY, "free_gb": shared_gb},
        "missing": [asdict(one) for one in missing(needed, count_gpus(), shared_gb, cache_gb)],
        "problems": torch_problems + [f"{name} is not installed" for name in needed] + shadowing(),
    }


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution; None without one."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def memory_gb() -> dict[str, float]:
    """Main memory, all of it and what is free or can be freed."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {
        "memory_gb": round(kib["MemTotal"] * 1024 / GB, 1),
        "available_gb": round(kib["MemAvailable"] * 1024 / GB, 1),
    }


def free_gb(folder: str) -> float | None:
    """Free space of an existing folder's file system; None if there is no such folder."""
    place = Path(folder)
    return round(shutil.disk_usage(place).free / GB, 1) if place.is_dir() else None


def existing(folder: str) -> str:
    """The folder, or the nearest one above it that there is already."""
    return str(next(place for place in (Path(folder), *Path(folder).parents) if place.is_dir()))


def home(name: str) -> Path | None:
    """The folder of the package that `import name` gives."""
    spec = find_spec(name)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))).resolve() if places else None


def shadowing() -> list[str]:
    """Every top-level name of ours that another package has or claims; the names are common."""
    problems = []
    ours = Path(elemdist.__file__).resolve().parent.parent
    claims = metadata.packages_distributions()
    for name in TOP_LEVEL:
        place = home(name)
        if place != ours / name:
            problems.append(f"`import {name}` finds {place}, not {ours / name}")
        others = sorted(set(claims.get(name, [])) - {"elemdist"})
        if others:
            problems.append(f"the distribution {', '.join(others)} has a package {name}, too")
    advice = "give elemdist an environment of its own"
    return [f"{problem}; {advice}" for problem in problems]


def examine_torch() -> tuple[Report, list[str]]:
    """(torch, GPUs, attention and torch.compile; problems)."""
    try:
        import torch
    except Exception as error:  # whatever a broken installation raises
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return {"torch": None, "gpus": [], "attention": {}, "compile": {}}, [
            f"torch cannot be imported: {first}"
        ]
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    problems = []
    if count_gpus() and not found:
        build = f"made for CUDA {torch.version.cuda}" if torch.version.cuda else "made without CUDA"
        problems.append(
            f"{count_gpus()} GPUs are here, but torch {torch.__version__}, {build}, can use none;"
            " install the torch that fits the driver"
        )
    gpus = [torch.cuda.get_device_properties(number) for number in range(found)]
    # One of each kind is enough: equal GPUs run the same.
    kinds = {gpu.name: torch.device("cuda", number) for number, gpu in enumerate(gpus)}
    devices = {"cpu": torch.device("cpu"), **kinds}
    return {
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda},
        "gpus": [
            {
                "name": gpu.name,
                "memory_gb": round(gpu.total_memory / GB, 1),
                "capability": f"{gpu.major}.{gpu.minor}",
            }
            for gpu in gpus
        ],
        "attention": {
            name: {
                short: attention_report(device, dtype)
                for short, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
            }
            for name, device in devices.items()
        },
        "compile": {name: compile_obstacle(device.type) for name, device in devices.items()},
    }, problems


def attention_report(device: Any, dtype: Any) -> Report:
    """The back end that attention runs, and why those do not run that cannot."""
    from elemdist.attention import backend, backends

    reasons = {name: reason for name, reason in backends(device, dtype).items() if reason}
    return {"runs": backend(device, dtype), "cannot": reasons}


def as_text(report: Report) -> str:
    """The report for reading: a name, and behind it what there is to say."""
    lines = [
        ("elemdist", "{version}, in {folder}".format(**report["elemdist"])),
        ("Python", "{version} on {system}".format(**report["python"])),
        ("CPU", "{cores} cores; {memory_gb} GB, {available_gb} GB free".format(**report["cpu"])),
        *device_lines(report),
        *((name, version or "not installed") for name, version in report["versions"].items()),
        ("cache", space(report["cache"])),
        ("shared memory", space(report["shared_memory"])),
        *(
            ("missing", "{what}, for {needed_by}:  {cure}".format(**one))
            for one in report["missing"]
        ),
        *(("BROKEN", problem) for problem in report["problems"]),
    ]
    if not report["problems"]:
        lines.append(("", "Nothing is broken."))
    return "\n".join(f"{name:19} {text}".rstrip() for name, text in lines)


def device_lines(report: Report) -> list[tuple[str, str]]:
    """Of torch and the GPUs: (what, what is said of it)."""
    torch_report = report["torch"]
    if torch_report is None:
        return [("torch", "none that works")]
    cuda = torch_report["cuda"]
    lines = [
        ("torch", torch_report["version"] + (f", CUDA {cuda}" if cuda else ", without CUDA")),
        *(
            ("GPU", "{name}, {memory_gb} GB, compute capability {capability}".format(**gpu))
            for gpu in report["gpus"]
        ),
    ]
    if not report["gpus"]:
        lines.append(("GPU", "none"))
    for device, precisions in report["attention"].items():
        for precision, found in precisions.items():
            lines.append((f"attention, {precision}", f"{found['runs']} on {device}"))
            lines += [("", f"not {name}: {why}") for name, why in found["cannot"].items()]
    lines += [
        ("torch.compile", f"{'can work' if why is None else f'cannot work: {why}'} on {device}")
        for device, why in report["compile"].items()
    ]
    return lines


def space(place: Report) -> str:
    """A folder and the room in it."""
    if place["free_gb"] is None:
        return f"there is no {place['folder']}"
    return f"{place['folder']}, {place['free_gb']} GB free"
