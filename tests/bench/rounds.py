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

Peer = Callable[[], float]


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """With the options that every benchmark has."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}")
    made.add_argument("--quick", action="store_true", help="tiny input, two rounds: does it run?")
    made.add_argument("--json", type=Path, help="also write the figures to this file")
    return made


@dataclass
class Rates:
    """What each peer did in each round, in units a second.

    Attributes:
        unit: of the rates. bases: those peers that the others are compared with.
        targets: (peer, base, least): the smallest ratio within a round that is aimed at.
        floors: (peer, least): the smallest rate.
    """

    title: str
    unit: str
    bases: list[str]
    targets: list[tuple[str, str, float]] = field(default_factory=list)
    floors: list[tuple[str, float]] = field(default_factory=list)
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

    def lines(self) -> list[str]:
        """The table, and whether the targets are met."""
        width = max(len(name) for name in self.rates)
        found = [self.title, f"{'':{width}} {self.unit:>14}" + "".join(
            f"  {'against ' + base:>30}" for base in self.bases
        )]  # fmt: skip
        for name, rates in self.rates.items():
            line = f"{name:{width}} {statistics.median(rates):14,.1f}"
            for base in self.bases:
                ratios = self.ratios(name, base)
                text = f"x{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                line += f"  {text:>30}"
            found.append(line)
        for name, base, least in self.targets:
            ratio = statistics.median(self.ratios(name, base))
            verdict = "met" if ratio >= least else "MISSED"
            found.append(
                f"target: {name} at least x{least} against {base}: x{ratio:.2f}, {verdict}"
            )
        for name, least in self.floors:
            rate = statistics.median(self.rates[name])
            verdict = "met" if rate >= least else "MISSED"
            found.append(f"target: {name} at least {least} {self.unit}: {rate:,.1f}, {verdict}")
        return found

    def figures(self) -> dict[str, Any]:
        """For --json."""
        return {
            "title": self.title,
            "unit": self.unit,
            "rates": self.rates,
            "medians": {name: statistics.median(rates) for name, rates in self.rates.items()},
            "ratios": {
                base: {name: statistics.median(self.ratios(name, base)) for name in self.rates}
                for base in self.bases
            },
        }


def report(tables: list[Rates], path: Path | None) -> None:
    """Prints the tables and writes their figures."""
    for table in tables:
        print("\n".join(table.lines()), end="\n\n")
    if path is not None:
        path.write_text(json.dumps([table.figures() for table in tables], indent=2) + "\n")


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
