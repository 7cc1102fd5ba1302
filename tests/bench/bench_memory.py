"""Peak memory of `elemdist shard` against the size of its input: it should not grow.

    elemdist bench memory [--sizes 10 100 1000] [--quick] [--json FILE]

Each cell is the peak resident memory of one whole process, in MB, for made-up text of so many MB:
JSON Lines, one single document, a compressed file, and JSON Lines with duplicates left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import zstandard

PIECE = 1 << 20
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
        sys.executable, "-m", "elemdist.cli", "shard", str(source), "--out", str(out),
        "--processes", "1", "--quiet", *options,
    ]  # fmt: skip
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="in MB")
    parser.add_argument("--quick", action="store_true", help="sizes 2 and 8")
    parser.add_argument("--json", help="write the table to this file, too")
    options = parser.parse_args()
    sizes = [2, 8] if options.quick else options.sizes
    table: dict[str, dict[int, float]] = {}
    print(f"{'peak memory in MB of input of':32}" + "".join(f"{size:>8} MB" for size in sizes))
    for kind, (name, more) in KINDS.items():
        table[kind] = {}
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder, name), size)
                table[kind][size] = peak_mb(Path(folder, name), Path(folder, "set"), more)
        print(f"{kind:32}" + "".join(f"{table[kind][size]:>8.0f}   " for size in sizes))
    if options.json:
        Path(options.json).write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
