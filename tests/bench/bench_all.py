"""All benchmarks in one call, each a process of its own: one table, one JSON file, one figure.

    elemdist bench all [--only NAME ...] [--quick] [--out bench]

OUT/bench.json is written anew after each of them, so that a call that is interrupted keeps what is
done: the environment, and of each benchmark its tables as its own --json gives them, its seconds,
and why it failed, if it did. OUT/bench.png shows every ratio of ours to a peer. Exit code 1: a
benchmark failed; the others ran all the same.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from elemdist import run_folder
from elemdist.atomic import write_result
from elemdist.bench import benchmarks
from elemdist.errors import EXIT_BUG, EXIT_INTERRUPTED, UserError, nearest
from tests.bench.all_figure import draw, save
from tests.bench.rounds import number, spread

PEERS = ["transformers", "tokenizers", "litdata"]  # beside those that the environment names
GRACE_S = 20  # that an interrupted benchmark may take to clear up
HEAD = ("benchmark", "ours", "peer", "ratio (min to max)", "target", "verdict", "seconds")

Done = dict[str, Any]


def command_of(name: str, quick: bool, figures: Path) -> list[str]:
    words = ["bench", name, "--json", str(figures), *(["--quick"] if quick else [])]
    return [sys.executable, "-m", "elemdist", *words]


def end(process: subprocess.Popen[str]) -> None:
    """Has an interrupted benchmark clear up, and ends whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)


def run(command: list[str]) -> str | None:
    """Runs a benchmark, what it prints going to the terminal; what it failed with."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    last = ""
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,  # an interrupt ends it with all that it started, see end()
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                print(line, end="", file=sys.stderr, flush=True)
                last = line.strip() or last
            code = process.wait()
        except BaseException:
            end(process)
            raise
    if code == 0:
        return None
    return last.rpartition(": error: ")[2] or f"exit code {code}"


def run_one(name: str, quick: bool) -> Done:
    """One benchmark: its seconds, what it failed with (None: it did not), its tables."""
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder, "figures.json")
        error = run(command_of(name, quick, figures))
        tables = json.loads(figures.read_text()) if error is None else []
    if error is not None:
        print(f"FAILED: {name}: {error}", file=sys.stderr)
    return {"seconds": time.perf_counter() - start, "error": error, "tables": tables}


def environment() -> dict[str, Any]:
    """What it runs on, and with."""
    found = run_folder.environment()
    found["packages"] |= {name: run_folder.version(name) for name in PEERS}
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"date": now.isoformat(timespec="seconds"), "cpu": cpu_model(), **found}


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def rows_of(name: str, done: Done) -> list[tuple[str, ...]]:
    """The lines of the last table about one benchmark; of several only the first has its time."""
    verdicts = {True: "met", False: "MISSED", None: ""}
    rows = []
    for table in done["tables"]:
        title = f"{name}, {table['label']}" if table["label"] else name
        aim = "<=" if table["less_is_better"] else ">="
        for one in table["compared"]:
            ratio = spread(one["ratio"], one["min"], one["max"])
            target = "" if one["target"] is None else f"{aim} x{one['target']}"
            rows.append((title, one["ours"], one["peer"], ratio, target, verdicts[one["met"]]))
        for one in table["bounds"]:
            value, bound = (f"{number(one[key])} {table['unit']}" for key in ("median", "target"))
            rows.append((title, one["ours"], "", value, f"{aim} {bound}", verdicts[one["met"]]))
    if not rows:
        rows.append((name, "", "", "", "", "FAILED" if done["error"] else "no peer"))
    seconds = [f"{done['seconds']:.1f}", *[""] * len(rows)]
    return [(*row, second) for row, second in zip(rows, seconds, strict=False)]


def summary(found: dict[str, Done]) -> list[str]:
    """The last table."""
    rows = [HEAD, *(row for name, done in found.items() for row in rows_of(name, done))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def markdown(found: dict[str, Done]) -> str:
    """The same as a Markdown table, without the seconds."""
    rows = [row[:-1] for name, done in found.items() for row in rows_of(name, done)]
    lines = [HEAD[:-1], tuple("---" for _ in HEAD[:-1]), *rows]
    return "".join(f"| {' | '.join(cell.strip() for cell in line)} |\n" for line in lines)


def chosen_names(only: list[str] | None) -> list[str]:
    """Raises UserError where one of them does not exist."""
    known = [name for name in benchmarks() if name != "all"]
    for name in only or ():
        if name not in known:
            raise UserError(
                f"--only: no benchmark '{name}'{nearest(name, known)}; there are {', '.join(known)}"
            )
    return [name for name in known if only is None or name in only]


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--only", nargs="+", metavar="NAME", help="these alone (all)")
    options.add_argument("--quick", action="store_true", help="tiny inputs: does it all run?")
    options.add_argument("--out", type=Path, default=Path("bench"), help="a folder (bench)")
    chosen = options.parse_args()
    names = chosen_names(chosen.only)
    try:
        chosen.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make {chosen.out}: {error.strerror}") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report: dict[str, Any] = {"environment": environment(), "quick": chosen.quick, "seconds": 0.0}
    found: dict[str, Done] = {}
    report["benchmarks"] = found
    start, interrupted = time.perf_counter(), False
    try:
        for name in names:
            found[name] = run_one(name, chosen.quick)
            report["seconds"] = time.perf_counter() - start
            write_result(chosen.out / "bench.json", json.dumps(report, indent=1) + "\n")
            write_result(chosen.out / "bench.md", markdown(found))
    except KeyboardInterrupt:
        interrupted = True
    if found:
        save(draw(report), chosen.out / "bench.png")
        print("\n".join(summary(found)))
        print(f"{report['seconds']:.0f} s; {chosen.out / 'bench.json'}, {chosen.out / 'bench.png'}")
    if chosen.quick:
        print("tiny inputs (--quick) tell that it runs, not how fast")
    if failed := [name for name, done in found.items() if done["error"]]:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    if interrupted:
        left = ", ".join(name for name in names if name not in found)
        print(f"interrupted; not done: {left}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_BUG if failed else 0


if __name__ == "__main__":
    sys.exit(main())
