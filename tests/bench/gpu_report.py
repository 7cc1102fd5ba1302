"""Everything about the speed of a GPU in one call: rows as they come, tables at the end.

    python tests/bench/gpu_report.py [--out FILE] [--device cpu] [--quick] [--only PART ...]

Every part is a process of its own with a time of its own (PART_SECONDS in the environment: so many
for each), so that one that fails or hangs takes nothing else along. Exit code 1: one did.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from itertools import groupby
from pathlib import Path
from typing import IO, Any

SECONDS = {
    "environment": 20,
    "attention": 45,
    "table": 45,
    "throughput": 130,
    "compile": 50,
    "longest": 130,
}
TITLES = {
    "environment": "what it ran on",
    "attention": "attention, forward and backward, 12 heads of 64: back ends side by side",
    "table": "the gradient of the element table",
    "throughput": "training on masked materials: forward, backward, AdamW on such weights",
    "compile": "torch.compile off and on",
    "longest": "the longest sequence that trains, recomputed and in tiles, one step",
}
GRACE_S = 20  # that a part may take to end its last case

Row = dict[str, Any]


def run_part(part: str, seconds: float, options: list[str], out: IO[str]) -> tuple[list[Row], str]:
    """(rows, error) of one part; the rows go to the terminal and to `out` as they come."""
    script = str(Path(__file__).resolve().parent / "gpu_parts.py")
    command = [sys.executable, script, part, "--seconds", str(seconds), *options]
    late = threading.Event()
    rows: list[Row] = []
    with (
        tempfile.TemporaryFile("w+") as errors,
        # A session of its own: what the part started ends with it.
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as process,
    ):

        def end() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds + GRACE_S, end)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            out.write(line)
            out.flush()
            rows.append(json.loads(line))
        process.wait()
        timer.cancel()
        errors.seek(0)
        told = [line for line in errors.read().splitlines() if line.strip()]
    if late.is_set():
        return rows, f"not done after {seconds + GRACE_S:.0f} s"
    if process.returncode:
        return rows, told[-1] if told else f"exit code {process.returncode}"
    return rows, next((row["error"] for row in rows if "error" in row), "")


def shown(value: object) -> str:
    """A cell of a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table_of(rows: list[Row]) -> list[str]:
    """Rows as aligned columns, one for each key; a single row as one line for each. Rows of
    several tables come table by table."""
    if "table" in rows[0]:
        lines = []
        for title, some in groupby(rows, lambda row: row["table"]):
            rest = [{key: row[key] for key in row if key != "table"} for row in some]
            lines += [title, *table_of(rest)]
        return lines
    rows = [
        {key: shown(row[key]) for key in row if key != "part" and row[key] is not None}
        for row in rows
    ]
    if len(rows) == 1:
        width = max(map(len, rows[0]))
        return [f"{key:{width}}  {value}" for key, value in rows[0].items()]
    names = list(dict.fromkeys(key for row in rows for key in row))
    names = [name for name in names if any(row.get(name) for row in rows)]
    widths = [max(len(name), *(len(row.get(name, "")) for row in rows)) for name in names]
    lines = [dict(zip(names, names, strict=True)), *rows]
    return [
        "  ".join(f"{line.get(name, ''):>{w}}" for name, w in zip(names, widths, strict=True))
        for line in lines
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="rows (gpu.jsonl)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(cuda)")
    parser.add_argument("--quick", action="store_true", help="in small: does it run?")
    parser.add_argument("--only", nargs="+", choices=SECONDS, default=list(SECONDS), help="(all)")
    chosen = parser.parse_args()
    options = ["--device", chosen.device, *(["--quick"] if chosen.quick else [])]
    found: dict[str, tuple[list[Row], str]] = {}
    with chosen.out.open("w") as out:
        for part in chosen.only:
            seconds = float(os.environ.get("PART_SECONDS") or SECONDS[part])
            found[part] = run_part(part, seconds, options, out)
    for part, (rows, error) in found.items():
        print(f"\n{TITLES[part]}")
        if rows:
            print("\n".join(table_of(rows)))
        if error:
            print(f"FAILED: {part}: {error}")
    return int(any(error for _, error in found.values()))


if __name__ == "__main__":
    sys.exit(main())
