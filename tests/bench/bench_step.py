"""Training steps, time and memory: ours against BertForMaskedLM, padding, a position per byte.

    elemdist bench step [--only a b c d] [--rounds 5] [--threads 2] [--quick] [--json FILE]

fp32 on a CPU: forward, backward, AdamW; dropout 0.1, none of attention's weights. Choosing what to
mask is part of our step, BERT's tokens are masked already. BERT scores all its positions, as
transformers does; ours finishes the last block for those that carry loss, and scores them. Peak
memory is that of three steps in a process of its own, less what that had before the model was made.

a: BERT of 4 layers x 512, n = 512.      b: BERT-base, 12 layers x 768, n = 128.
c: documents of mixed length, unpadded and padded.     d: the same text, a position per byte.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elemdist.batch import unpad
from elemdist.inputs import open_reading
from elemdist.model_config import ModelConfig
from tests.bench.models import (
    Bert,
    Ours,
    Trainer,
    import_bert,
    news_lengths,
    padded,
    samples_of,
    shape,
    text_rows,
)
from tests.bench.rounds import Compared, Peer, Rates, parser, report

OURS, BERT, PADDED, BYTES = "ours", "BertForMaskedLM", "ours, padded", "a position per byte"
BERT_PADDED, BLOCKS = "BertForMaskedLM, padded", "ours, blocks of v bytes"
STEPS_OF_MEMORY = 3

Made = tuple[Trainer, float]  # and the units of one step
Maker = Callable[[], Made]


@dataclass
class Case:
    """One table: its peers, made when they are needed, and what is aimed at.

    Attributes:
        compared: as of the rates, see :class:`Rates`.
        most: the same of the peak memory; None: it is not measured.
    """

    title: str
    unit: str
    peers: dict[str, Maker]
    compared: list[Compared]
    most: Compared | None = None


def ours_on(config: ModelConfig, samples_BNV: np.ndarray, pad: bool = False) -> Ours:
    """Our training steps on some samples, unpadded unless told."""
    batch = unpad(samples_BNV, None, np.arange(len(samples_BNV)), open_reading(config))
    return Ours(config, padded(batch, samples_BNV) if pad else batch)


def full_case(
    title: str, n: int, v: int, samples: int, ratio: float, most: float, **model: Any
) -> Case:
    """Samples without padding, ours against BERT of the same shape."""
    config = shape(n, v, **model)
    lengths_B = np.full(samples, n - 1)

    def ours() -> Made:
        rows_TV = text_rows(samples * n, v)
        return ours_on(config, samples_of(rows_TV, lengths_B, n)), samples * n

    def bert() -> Made:
        return Bert(config, lengths_B + 1), samples * n

    peers = {OURS: ours, BERT: bert}
    return Case(title, "rows/s", peers, [(OURS, BERT, ratio)], (OURS, BERT, most))


def case_a(quick: bool) -> Case:
    n, layers, width, samples = (64, 1, 64, 1) if quick else (512, 4, 512, 4)
    title = f"a: {layers} layers x {width}, {samples} samples of n = {n}"
    return full_case(title, n, 16, samples, 2.0, 0.6, layers=layers, width=width, heads=8)


def case_b(quick: bool) -> Case:
    n, layers, width, samples = (32, 2, 96, 2) if quick else (128, 12, 768, 8)
    title = f"b: {layers} layers x {width}, {samples} samples of n = {n}"
    return full_case(title, n, 12, samples, 1.333, 0.8, layers=layers, width=width, heads=12)


def case_c(quick: bool) -> Case:
    """Documents of mixed length: what padding costs."""
    n, v, documents = (64, 16, 4) if quick else (512, 16, 8)
    config = shape(n, v, layers=1 if quick else 4, width=64 if quick else 512, heads=8)
    lengths_B = news_lengths(documents, n)
    share = 1 - (lengths_B.sum() + documents) / (documents * n)

    def ours(pad: bool) -> Made:
        rows_TV = text_rows(lengths_B.sum(), v)
        return ours_on(config, samples_of(rows_TV, lengths_B, n), pad), documents

    title = (
        f"c: {documents} documents of {lengths_B.min()} to {lengths_B.max()} rows,"
        f" {share:.0%} padding at n = {n}; {config.model.layers} layers x {config.model.width}"
    )
    peers: dict[str, Maker] = {
        OURS: lambda: ours(False),
        PADDED: lambda: ours(True),
        BERT_PADDED: lambda: (Bert(config, lengths_B + 1), documents),
    }
    return Case(title, "documents/s", peers, [(OURS, PADDED, 2.0), (OURS, BERT_PADDED, None)])


def case_d(quick: bool) -> Case:
    """The same text as materials and as single bytes."""
    n, v, samples = (32, 16, 1) if quick else (256, 16, 4)
    size = {"layers": 1 if quick else 4, "width": 64 if quick else 256, "heads": 8}

    def on(segmenter: str, kind: str) -> Made:
        rows_TV = text_rows(samples * n, v, segmenter)
        samples_BNV = samples_of(rows_TV, np.full(samples, n - 1), n)
        trainer = ours_on(shape(n, v, input=kind, **size), samples_BNV)
        return trainer, trainer.batch.text_bytes

    peers: dict[str, Maker] = {
        OURS: lambda: on("word", "elementwise"),
        BLOCKS: lambda: on("byte", "elementwise"),
        BYTES: lambda: on("word", "byte"),
    }
    title = f"d: {samples} samples of {n} words, v = {v}; {size['layers']} layers x {size['width']}"
    return Case(title, "bytes/s", peers, [(OURS, BYTES, 8.0)])


CASES = {"a": case_a, "b": case_b, "c": case_c, "d": case_d}


def measure_rates(case: Case, rounds: int) -> Rates:
    """A step of each peer in turn."""

    def peer(made: Made) -> Peer:
        trainer, units = made

        def run() -> float:
            loss = trainer.step().item()
            assert np.isfinite(loss)
            return units

        return run

    table = Rates(case.title, case.unit, case.compared, label=case.title[0])
    table.measure({name: peer(make()) for name, make in case.peers.items()}, rounds)
    return table


class Trivial(Trainer):
    """Steps that only load what torch loads at a first one."""

    def loss(self, number: int) -> Tensor:
        return self.model(torch.ones(1, 1)).sum()


def resident() -> int:
    """Bytes of memory that this process has now."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def child(case: Case, name: str) -> None:
    """Prints the memory that some steps of one peer take, in MB."""
    make = case.peers[name]
    # The code of transformers, of the segmenter and of a first step is no memory of a model.
    if name.startswith(BERT):
        import_bert()
    text_rows(64, 4)
    Trivial(torch.nn.Linear(1, 1)).step()
    before = resident()
    trainer, _ = make()
    loss = torch.stack([trainer.step() for _ in range(STEPS_OF_MEMORY)]).sum().item()
    assert np.isfinite(loss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"before": before / 1e6, "peak": peak / 1e6}))


def measure_peaks(letter: str, case: Case, options: list[str]) -> Rates:
    """The peak memory of each peer, in a process of its own."""
    assert case.most is not None
    found: dict[str, list[float]] = {}
    for name in case.peers:
        command = [sys.executable, __file__, "--only", letter, "--child", name, *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr}")
        memory = json.loads(done.stdout.splitlines()[-1])
        found[name] = [memory["peak"] - memory["before"]]
        print(f"{name}: {memory['before']:,.0f} MB before, {memory['peak']:,.0f} MB at the peak")
    title = f"{case.title}: peak memory of {STEPS_OF_MEMORY} steps less what was there before"
    return Rates(title, "MB", [case.most], less=True, label=f"{letter}, memory", rates=found)


def main() -> None:
    options = parser(__doc__, 5)
    options.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="(all)")
    options.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    options.add_argument("--child", help="measure the memory of this peer, and nothing else")
    chosen = options.parse_args()
    torch.set_num_threads(1 if chosen.quick else chosen.threads)
    cases = {letter: CASES[letter](chosen.quick) for letter in chosen.only}
    if chosen.child:
        return child(cases[chosen.only[0]], chosen.child)
    tables: list[Rates] = []
    for letter, case in cases.items():
        if case.most:
            same = ["--threads", str(chosen.threads), *(["--quick"] if chosen.quick else [])]
            tables.append(measure_peaks(letter, case, same))
        tables.append(measure_rates(case, 2 if chosen.quick else chosen.rounds))
    report(tables, chosen.json)


if __name__ == "__main__":
    main()
