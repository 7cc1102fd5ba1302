"""Speed of the segmenters, packing into rows included, against simple peers in Python and numpy.

elemdist bench segment [--text FILE] [--megabytes 8] [--rounds 7] [--quick] [--json FILE]
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.pack import Packer
from elemdist.rows import PAD
from tests.bench.rounds import Rates, parser, report, user_text

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
    "uax29": packed_by("uax29"),
    "sentence": packed_by("sentence"),
    "words by re": by_regular_expression,
    "words by split": by_split,
    "char by numpy": characters_by_numpy,
}


def main() -> None:
    options = parser(__doc__, 7)
    options.add_argument(
        "--text", type=Path, help="any that shard reads; default: made-up sentences"
    )
    options.add_argument("--megabytes", type=float, default=8.0, help="of text (default 8)")
    chosen = options.parse_args()
    size, rounds = (20_000, 2) if chosen.quick else (int(chosen.megabytes * 1e6), chosen.rounds)
    text = user_text(chosen.text) if chosen.text else SENTENCE.encode()
    text = (text * (size // len(text) + 1))[:size].decode(errors="ignore").encode()

    def peer(work: Callable[[bytes], int]) -> Callable[[], float]:
        def run() -> float:
            work(text)
            return len(text) / 1e6

        return run

    table = Rates(
        f"{len(text) / 1e6:,.1f} MB of text to rows, one core",
        "MB/s",
        [
            ("word", "words by re", None),
            ("word", "words by split", None),
            ("char", "char by numpy", None),
        ],
    )
    table.measure({name: peer(work) for name, work in CONTENDERS.items()}, rounds)
    report([table], chosen.json)


if __name__ == "__main__":
    main()
