"""Speed of the segmenters, packing into rows included, against simple peers in Python and numpy.

python tests/bench/bench_segment.py --text corpus.txt

The contenders take turns, so that a change in the machine's speed meets all of them; the table
shows the median and the spread of each.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable

import numpy as np

from data_prep.pack import Packer
from elemdist.rows import PAD

N, V = 512, 12
BLOCK_SAMPLES = 4096
WORDS = re.compile(r"\w+ ?|[^\S\n ]+|\s+|.", re.DOTALL)
SENTENCE = "The heron's nest -- 3,5 m high -- wasn't empty; Żółta łódź płynie, ο γάτος κοιμάται. "


def packed_by(segmenter: str) -> Callable[[bytes], int]:
    """Our own way: text to a block of samples; the rows made."""
    block = np.empty((BLOCK_SAMPLES, N * V), np.uint8)

    def work(text: bytes) -> int:
        packer = Packer(
            block,
            lambda _: None,
            n=N,
            v=V,
            segmenter=segmenter,
            packing="packed",
            overlong="split",
        )
        packer.add(np.frombuffer(text, np.uint8), np.array([0]), np.array([len(text)]))
        return packer.finish()["rows"]

    return work


def by_regular_expression(text: bytes) -> int:
    """Words by `re`, each padded to a row (cut off if longer)."""
    return (
        len(b"".join(m.encode()[:V].ljust(V, b"\xff") for m in WORDS.findall(text.decode()))) // V
    )


def by_split(text: bytes) -> int:
    """Words by bytes.split, without their white space, each padded to a row."""
    return len(b"".join(word[:V].ljust(V, b"\xff") for word in text.split())) // V


def characters_by_numpy(text: bytes) -> int:
    """Characters as rows by numpy: starts, lengths, and a mask."""
    data = np.frombuffer(text, np.uint8)
    lengths = np.diff(np.flatnonzero(data & 0xC0 != 0x80), append=len(data))
    rows_TV = np.full((len(lengths), V), PAD, np.uint8)
    rows_TV[np.arange(V) < lengths[:, None]] = data
    return len(rows_TV)


CONTENDERS: dict[str, Callable[[bytes], int]] = {
    "word": packed_by("word"),
    "char": packed_by("char"),
    "byte": packed_by("byte"),
    "peer: words by re": by_regular_expression,
    "peer: words by split": by_split,
    "peer: char by numpy": characters_by_numpy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", help="a UTF-8 file; default: made-up sentences")
    parser.add_argument("--megabytes", type=float, default=8.0, help="text to use (default 8)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each (default 7)")
    arguments = parser.parse_args()
    size = int(arguments.megabytes * 1e6)
    text = SENTENCE.encode()
    if arguments.text:
        with open(arguments.text, "rb") as file:
            text = file.read()
    text = (text * (size // len(text) + 1))[:size].decode(errors="ignore").encode()
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    rows = {name: work(text[:1000]) for name, work in CONTENDERS.items()}  # compiles, too
    for _ in range(arguments.rounds):
        for name, work in CONTENDERS.items():
            start = time.perf_counter()
            rows[name] = work(text)
            speeds[name].append(len(text) / 1e6 / (time.perf_counter() - start))
    print(f"{'':24}{'MB/s':>8}{'lowest':>8}{'highest':>8}{'bytes/row':>11}")
    for name, found in speeds.items():
        median = statistics.median(found)
        per_row = len(text) / rows[name]
        print(f"{name:24}{median:8.1f}{min(found):8.1f}{max(found):8.1f}{per_row:11.2f}")


if __name__ == "__main__":
    main()
