"""Peak memory of `elemdist shard` against the size of its input: it should not grow.

    elemdist bench memory [--sizes 10 100 1000] [--quick] [--json FILE]

Each cell is the peak resident memory of one whole process, in MB, for made-up text of so many MB:
JSON Lines, one single document, a compressed file, and JSON Lines with duplicates left out.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import zstandard

from tests.bench.rounds import Rates, parser, report

PIECE = 1 << 20
MOST_MB = 300  # of a process, whatever the input
KINDS = {
    "JSON Lines": ("a.jsonl", []),
    "one document": ("a.txt", []),
    "one document, .zst": ("a.txt.zst", []),
    "JSON Lines, dedup": ("a.jsonl", ["--dedup", "exact"]),
}


def pieces(megabytes: int, lines: bool) -> list[bytes]:
    """Made-up text in pieces of 1 MB, as JSON Lines or as it is."""
    rng = np.random.default_rng(0)
    words = [
        "".join(map(chr, rng.integers(97, 123, length))) for length in rng.integers(1, 14, 3000)
    ]
    found = []
    for number in range(min(megabytes, 16)):  # these repeat: what is measured is not the text
        text = " ".join(rng.choice(words, 130_000))[: PIECE - 64]
        found.append(
            b"".join(
                json.dumps({"text": f"{number} {text[k : k + 2000]}"}).encode() + b"\n"
                for k in range(0, len(text), 2000)
            )
            if lines
            else text.encode()
        )
    return found


def write(path: Path, megabytes: int) -> None:
    """Writes the input of one measurement."""
    some = pieces(megabytes, path.name == "a.jsonl")
    raw = path.open("wb")
    file = zstandard.ZstdCompressor(3).stream_writer(raw) if path.suffix == ".zst" else raw
    with file:
        for number in range(megabytes):
            file.write(some[number % len(some)])


def peak_mb(source: Path, out: Path, options: list[str]) -> float:
    """Peak resident memory of one conversion on one process, in MB."""
    command = [
        sys.executable, "-m", "elemdist", "shard", str(source), "--out", str(out),
        "--processes", "1", "--quiet", *options,
    ]  # fmt: skip
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    options = parser(__doc__, rounds=1)
    options.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="in MB")
    chosen = options.parse_args()
    sizes = [2, 8] if chosen.quick else sorted(chosen.sizes)
    names = {size: f"of {size:,} MB" for size in sizes}
    tables = []
    for kind, (file, more) in KINDS.items():
        table = Rates(
            f"{kind}: peak memory by the size of the input",
            "MB",
            [(names[sizes[-1]], names[sizes[0]], None)],
            [(names[sizes[-1]], MOST_MB)],
            less=True,
            label=kind,
            rates={name: [] for name in names.values()},
        )
        for _ in range(chosen.rounds):
            for size, name in names.items():
                with tempfile.TemporaryDirectory() as folder:
                    write(Path(folder, file), size)
                    peak = peak_mb(Path(folder, file), Path(folder, "set"), more)
                    table.rates[name].append(peak)
        tables.append(table)
    report(tables, chosen.json)


if __name__ == "__main__":
    main()
