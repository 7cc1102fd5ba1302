"""What the benchmarks share: peers that take turns, ratios within a round, and the table.

A change in the machine's speed meets all peers of a round, so the ratios of a round say more than
those of the medians; the table has their median and their range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from elemdist.errors import UserError

Peer = Callable[[], float]
Compared = tuple[str, str, float | None]  # ours, a peer, the ratio that is aimed at, if one is


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """With the options that every benchmark has."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}")
    made.add_argument("--quick", action="store_true", help="tiny input, two rounds: does it run?")
    made.add_argument("--json", type=Path, help="also write the figures to this file")
    return made


@dataclass
class Rates:
    """What each peer did in each round, in units a second, or what it took.

    Attributes:
        unit: of the rates. compared: ours with its peers, and what is aimed at.
        bounds: (ours, bound): the smallest rate that is aimed at; with `less` the largest.
        label: the table in a word or two. less: the rates are costs, the less the better.
        details: what else is known, for --json.
    """

    title: str
    unit: str
    compared: list[Compared]
    bounds: list[tuple[str, float]] = field(default_factory=list)
    label: str = ""
    less: bool = False
    details: Any = None
    rates: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, peers: dict[str, Peer], rounds: int) -> None:
        """Every peer once to warm up, then all in turn; a peer returns how many units it did."""
        self.rates = {name: [] for name in peers}
        for peer in peers.values():
            peer()
        for _ in range(rounds):
            for name, peer in peers.items():
                start = time.perf_counter()
                done = peer()
                self.rates[name].append(done / (time.perf_counter() - start))

    def ratios(self, name: str, base: str) -> list[float]:
        return [a / b for a, b in zip(self.rates[name], self.rates[base], strict=True)]

    def met(self, value: float, bound: float) -> bool:
        return value <= bound if self.less else value >= bound

    def lines(self) -> list[str]:
        """The table, and whether the targets are met."""
        width = max(len(name) for name in self.rates)
        bases = list(dict.fromkeys(base for _, base, _ in self.compared))
        found = [self.title, f"{'':{width}} {self.unit:>14}" + "".join(
            f"  {'against ' + base:>30}" for base in bases
        )]  # fmt: skip
        for name, rates in self.rates.items():
            line = f"{name:{width}} {number(statistics.median(rates)):>14}"
            for base in bases:
                ratios = self.ratios(name, base)
                line += f"  {spread(statistics.median(ratios), min(ratios), max(ratios)):>30}"
            found.append(line)
        for name, base, bound in self.compared:
            if bound is not None:
                ratio = statistics.median(self.ratios(name, base))
                aim = f"at most x{bound} of" if self.less else f"at least x{bound} against"
                verdict = "met" if self.met(ratio, bound) else "MISSED"
                found.append(f"target: {name} {aim} {base}: x{ratio:.2f}, {verdict}")
        for name, bound in self.bounds:
            rate = statistics.median(self.rates[name])
            aim = f"at {'most' if self.less else 'least'} {bound} {self.unit}"
            verdict = "met" if self.met(rate, bound) else "MISSED"
            found.append(f"target: {name} {aim}: {number(rate)}, {verdict}")
        return found

    def figures(self) -> dict[str, Any]:
        """For --json."""
        compared, bounds = [], []
        for name, base, bound in self.compared:
            ratios = self.ratios(name, base)
            ratio = statistics.median(ratios)
            one = {"ours": name, "peer": base, "ratio": ratio}
            one |= {"min": min(ratios), "max": max(ratios), "target": bound}
            compared.append(one | {"met": None if bound is None else self.met(ratio, bound)})
        for name, bound in self.bounds:
            rate = statistics.median(self.rates[name])
            bounds.append(
                {"ours": name, "median": rate, "target": bound, "met": self.met(rate, bound)}
            )
        return {
            "title": self.title,
            "label": self.label,
            "unit": self.unit,
            "less_is_better": self.less,
            "rates": self.rates,
            "medians": {name: statistics.median(rates) for name, rates in self.rates.items()},
            "compared": compared,
            "bounds": bounds,
            "details": self.details,
        }


def number(value: float) -> str:
    """A rate or a cost, however small."""
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def spread(ratio: float, least: float, most: float) -> str:
    """A ratio with its range: "x3.00 (2.00 to 4.00)"."""
    middle, low, high = (f"{x:.2f}" if x >= 0.1 else f"{x:.2g}" for x in (ratio, least, most))
    return f"x{middle} ({low} to {high})"


def report(tables: list[Rates], path: Path | None) -> None:
    """Prints the tables and writes their figures."""
    for table in tables:
        print("\n".join(table.lines()), end="\n\n")
    write_figures(tables, path)


def write_figures(tables: list[Rates], path: Path | None) -> None:
    """Writes the figures of the tables, if to anywhere."""
    if path is not None:
        path.write_text(json.dumps([table.figures() for table in tables], indent=2) + "\n")


def user_text(path: Path) -> bytes:
    """Return the text of a file by the readers of `elemdist shard`: unpacked, of records the text.

    Raises:
        UserError: a document in it cannot be taken, or there is no text.
    """
    from data_prep.readers.stream import open_documents

    texts = []
    for one in open_documents([str(path)]):
        if isinstance(one, UserError):
            raise one
        texts.append(one.text.encode())
    if not any(texts):
        raise UserError(f"{path}: no text in it")
    return b"\n".join(texts)


def made_text(path: Path, megabytes: float) -> None:
    """Writes about so many MB of made-up prose: words of Zipf's frequencies, lines of sentences."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    shares = 1 / np.arange(2, 28)
    words = np.array(
        [
            "".join(rng.choice(letters, length, p=shares / shares.sum()))
            for length in rng.integers(1, 12, 20_000)
        ]
    )
    left = int(megabytes * 1e6)
    with path.open("w") as file:
        while left > 0:
            places = rng.zipf(1.2, 100_000) % len(words)
            ends = rng.choice(
                np.array([" ", ", ", ". ", ".\n"]), 100_000, p=[0.86, 0.07, 0.05, 0.02]
            )
            text = "".join(np.char.add(words[places], ends))[:left]
            left -= file.write(text)
