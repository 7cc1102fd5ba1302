"""Bits per byte of parts of what is predicted: by the position of a row, by a material's length.

The parts of a breakdown sum up to the whole: their nats and their bytes.
Shape suffixes: see elemdist/rows.py; K parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from elemdist.evaluate import Predicted
from elemdist.objectives import NATS_PER_BIT

POSITION_PARTS = 8


class Breakdown:
    """Sums of nats, bytes and materials over parts.

    Args:
        firsts: the smallest number of each part, ascending, the first of them 0.
    """

    def __init__(self, firsts: list[int]) -> None:
        self.firsts = torch.tensor(firsts)
        pairs = zip(firsts, [after - 1 for after in firsts[1:]], strict=False)
        self.names = [str(a) if a == b else f"{a} to {b}" for a, b in pairs]
        self.names.append(f"{firsts[-1]} and more")
        self.sums_K3 = torch.zeros(len(firsts), 3, dtype=torch.float64)

    def add(self, number_M: torch.Tensor, predicted: Predicted) -> None:
        """Adds targets of these numbers."""
        part_M = torch.searchsorted(self.firsts, number_M.cpu(), right=True) - 1
        ones_M = torch.ones_like(predicted.bytes_M)
        each = (predicted.nats_M, predicted.bytes_M, ones_M)
        self.sums_K3.index_add_(0, part_M, torch.stack([x.double().cpu() for x in each], dim=1))

    def figures(self) -> dict[str, Any]:
        """Part -> its figures, of the parts that something was predicted of."""
        rows = zip(self.names, self.sums_K3.tolist(), strict=True)
        return {name: figures_of(*sums) for name, sums in rows if sums[2]}


def figures_of(nats: float, text_bytes: float, materials: float) -> dict[str, Any]:
    """Figures of a part: bits per byte (None without bytes), nats, and how much it is."""
    bits = nats / text_bytes / NATS_PER_BIT if text_bytes else None
    counts = {"bytes": int(text_bytes), "materials": int(materials)}
    return {"bits_per_byte": bits, "nats": nats, **counts}


def by_position(positions: int) -> Breakdown:
    """By the place of the row that predicts, in its document or in its part of one."""
    firsts = np.linspace(0, positions, min(positions, POSITION_PARTS) + 1).astype(int)[:-1]
    return Breakdown(firsts.tolist())


def by_length(longest: int) -> Breakdown:
    """By the bytes of text in what is predicted: 0 (the end of a document), 1, 2, 3 to 4, 5 to 8
    and so on. `longest`: the most that are told apart."""
    powers = [1 << k for k in range(longest.bit_length())]
    return Breakdown([0, 1, *(power + 1 for power in powers if power < longest)])


def counted(predicted: Iterable[Predicted], *parts: Breakdown) -> Iterator[Predicted]:
    """The same, each added to the breakdowns by position and by length on its way."""
    position, length = parts
    for one in predicted:
        position.add(one.position_M, one)
        length.add(one.bytes_M, one)
        yield one
