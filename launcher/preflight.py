"""The check of every node before the ranks start, and what to make of it.

elemdist doctor --job --run-dir RUN      in a job: the same check alone, as a report

A node that is silent, cannot write, has other versions than most, a clock of its own, a broken GPU
or too few of them is named, and no rank is started on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from elemdist.attempts import Attempt
from elemdist.errors import UserError
from elemdist.json_text import json_text
from elemdist.slurm_ranks import port_of
from elemdist.units import counted
from launcher.blame import to_blame
from launcher.local import count_gpus
from launcher.own_job import number_here, own_job
from launcher.places import InJob
from launcher.settings import LaunchSettings
from launcher.steps import end_srun, in_container, start_srun, step_environment, variables

SCRIPT = Path(__file__).with_name("node_check.py")
START_S = 90.0  # for SLURM to start the check, and for Python to load
SKEW_S = 5.0  # between two clocks; an answer may take that long, too
LEAST_FREE_BYTES = 1 << 30
LEAST_MEMORY_BYTES = 1 << 30
RUN_FOLDER = "the run folder"  # begins what is wrong with that, which nodes share
MOST_USED = 0.1  # of a GPU's memory, before a rank runs

Report = dict[str, Any]


def ask_nodes(
    place: InJob, folder: Path, port: int, groups: Sequence[Sequence[str]], reduce: bool
) -> dict[str, Report]:
    """What each node says of itself, and of how the nodes of its group came together, by its name;
    those that do not answer are missing. The answers stay in `folder`; rank 0 will listen at
    `port`."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        path.unlink()  # of an earlier check in the same attempt
    settings, nodes = place.settings, [node for group in groups for node in group]
    told = [
        # Two nodes may be one machine: each group has ports of its own.
        {"nodes": group, "address": place.addresses[group[0]], "port": port + 2 * (index % 100)}
        for index, group in enumerate(groups)
    ]
    check = [
        sys.executable, str(SCRIPT), str(folder), str(place.run_dir), json_text(told),
        "1" if reduce else "0", str(settings.preflight_s),
    ]  # fmt: skip
    words = [
        *place.step_words(nodes, settings.per_node if settings.asks_for_gpus else 1),
        "--kill-on-bad-exit=0", "--error=none",
        *in_container(settings, place.run_dir, check),
    ]  # fmt: skip
    with os.fdopen(os.memfd_create("reports"), "w+b") as printed:  # no disk, no pipe to read from
        process = start_srun(words, step_environment() | variables(settings), printed.fileno())
        try:
            process.wait(START_S + 3 * settings.preflight_s)
        except subprocess.TimeoutExpired:
            end_srun(process)
        printed.seek(0)
        texts = [path.read_bytes() for path in sorted(folder.glob("*.json"))]
        return by_node([*texts, *printed])


def by_node(texts: Iterable[bytes]) -> dict[str, Report]:
    """The reports of all tasks as one of each node."""
    found: dict[str, Report] = {}
    for text in texts:
        with suppress(ValueError, TypeError, KeyError):  # what else a container prints
            report = json.loads(text)
            node = found.setdefault(report["node"], report)
            node |= {key: report[key] for key in ("problem", "apart") if key in report}
    return found


def check_nodes(
    place: InJob, folder: Path, port: int, nodes: list[str], spares: Sequence[str], reduce: bool
) -> tuple[dict[str, Report], dict[str, str]]:
    """(what each node says of itself, what is wrong with those that are not fit)."""
    settings = place.settings
    gpus = settings.gpus_per_node if settings.asks_for_gpus else 0
    found = ask_nodes(place, folder, port, [nodes], reduce)
    wrong = problems(found, nodes, gpus)
    told = apart(found)
    if wrong or not told:
        return found, wrong
    again = folder.with_name(f"{folder.name}-again")

    def fails(groups: list[list[str]]) -> set[str]:
        asked = {node for group in groups for node in group}
        answers = ask_nodes(place, again, port, groups, reduce)
        return set(apart(answers)) | asked - set(answers)

    reason = next(iter(told.values()))
    return found, {node: told.get(node, reason) for node in to_blame(fails, nodes, spares)}


def apart(found: dict[str, Report]) -> dict[str, str]:
    """Node -> why it could not come together with others."""
    return {node: report["apart"] for node, report in found.items() if "apart" in report}


def problems(found: dict[str, Report], nodes: list[str], gpus: int) -> dict[str, str]:
    """Node -> what is wrong with it, in a few words. `gpus`: of a node, 0 where none is needed."""
    usual = Counter(json_text(report["versions"], sort_keys=True) for report in found.values())
    clock_s = sorted(report["time_s"] for report in found.values())
    middle_s = clock_s[len(clock_s) // 2] if clock_s else 0.0
    checks: list[Callable[[Report], str | None]] = [
        lambda one: one.get("problem"),
        lambda one: other_versions(one, json.loads(usual.most_common(1)[0][0])),
        lambda one: (
            f"its clock is {one['time_s'] - middle_s:+.0f} s off"
            if abs(one["time_s"] - middle_s) > SKEW_S
            else None
        ),
        lambda one: (
            f"{RUN_FOLDER} has only {one['free_bytes'] / 1e9:.1f} GB free"
            if one.get("free_bytes", LEAST_FREE_BYTES) < LEAST_FREE_BYTES
            else None
        ),
        lambda one: (
            f"only {one['available_bytes'] / 1e9:.1f} GB of memory are free"
            if one["available_bytes"] < LEAST_MEMORY_BYTES
            else None
        ),
        lambda one: broken_gpu(one, gpus),
    ]
    wrong = {node: "it does not answer" for node in nodes if node not in found}
    for node, report in found.items():
        reason = next(filter(None, (check(report) for check in checks)), None)
        if reason is not None:
            wrong[node] = reason
    return wrong


def other_versions(report: Report, usual: dict[str, str]) -> str | None:
    """In what a node's versions differ from the usual ones; None: in nothing."""
    theirs = report["versions"]
    differing = sorted(name for name in usual | theirs if usual.get(name) != theirs.get(name))
    if not differing:
        return None
    name = differing[0]
    return f"its {name} is {theirs.get(name, 'missing')}, that of others {usual.get(name, 'none')}"


def broken_gpu(report: Report, gpus: int) -> str | None:
    """What is wrong with a node's GPUs, of which there should be so many; None: nothing."""
    if len(report["gpus"]) < gpus:
        return f"the driver shows {counted(len(report['gpus']), 'GPU')} instead of {gpus}"
    for gpu in report["gpus"]:
        errors = gpu.get("ecc.errors.uncorrected.volatile.total", "0")
        if errors.isdigit() and int(errors):
            return f"GPU {gpu['index']} has {errors} uncorrected memory errors"
        used, whole = gpu.get("memory.used", ""), gpu.get("memory.total", "")
        if used.isdigit() and whole.isdigit() and int(used) > MOST_USED * int(whole):
            return f"somebody else has {used} of {whole} MiB of GPU {gpu['index']}"
    return None


def preflight(
    place: InJob, attempt: Attempt, nodes: list[str], spares: Sequence[str]
) -> dict[str, str]:
    """Checks the nodes; what is wrong with those that are not fit. The report stays in the
    attempt's folder. `spares` may help to find out."""
    port = port_of(place.number, attempt.number)
    folder, full = attempt.folder / "preflight", place.settings.preflight == "full"
    return check_nodes(place, folder, port, nodes, spares, full)[1]


def summary(folder: Path) -> str:
    """One line: the slowest disk, and the bandwidth of the sum."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    writes = [one["write_mb_per_s"] for one in reports if "write_mb_per_s" in one]
    sums = [one["reduce_gb_per_s"] for one in reports if "reduce_gb_per_s" in one]
    parts = [answering(len({one["node"] for one in reports}))]
    parts += [f"write {min(writes):.0f} MB/s"] if writes else []
    parts += [f"all-reduce {min(sums):.2f} GB/s"] if sums else []
    return ", ".join(parts)


def answering(nodes: int) -> str:
    """Return 1 node answers, 2 nodes answer, and so on."""
    return counted(nodes, "node") + (" answers" if nodes == 1 else " answer")


def report_lines(found: dict[str, Report], wrong: dict[str, str]) -> list[str]:
    """A line for each node: what it has, and what is wrong with it."""
    lines = []
    for node in sorted(found.keys() | wrong.keys()):
        one = found.get(node, {})
        parts = [counted(len(one["gpus"]), "GPU")] if one.get("gpus") else []
        if "available_bytes" in one:
            parts.append(f"{one['available_bytes'] / 1e9:.0f} GB of memory free")
        if "write_mb_per_s" in one:
            parts.append(f"{one['free_bytes'] / 1e9:.0f} GB of disk free")
            parts.append(f"write {one['write_mb_per_s']:.0f} MB/s")
        if "reduce_gb_per_s" in one:
            parts.append(f"all-reduce {one['reduce_gb_per_s']:.2f} GB/s")
        lines.append(f"{node}: {', '.join([*parts, wrong.get(node, 'fit')])}")
    return lines


def check_job(run_dir: Path, per_node: int) -> int:
    """``elemdist doctor --job``: checks all nodes of the surrounding job; the exit code, 1 where
    one is not fit. Raises UserError outside of a job."""
    if not number_here():
        raise UserError("--job checks the nodes of a job of SLURM; run it in one (salloc, sbatch)")
    gpus = count_gpus()
    settings = LaunchSettings(ranks_per_node=per_node, gpus_per_node=max(1, gpus))
    settings.device = "cuda" if gpus else "cpu"
    place = InJob(settings, run_dir, run_dir, own_job())
    folder = run_dir / f"preflight-{place.job}"
    port = port_of(place.number, 0)
    found, wrong = check_nodes(place, folder, port, place.all_nodes, [], reduce=True)
    print("\n".join(report_lines(found, wrong)))
    return 1 if wrong else 0
