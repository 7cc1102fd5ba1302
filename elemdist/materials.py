"""Rows of bytes as materials: which are alike, which are frequent, and how they are read.

Shape suffixes: see elemdist/rows.py; U distinct rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elemdist.objectives import hash_uniform
from elemdist.rows import PAD


def uncased(rows_V: Tensor) -> Tensor:
    """The rows with A to Z as a to z, and without the space behind a word: (..., V) -> (..., V).

    "Wheat ", "wheat" and "WHEAT " become the same row. Other letters stay as they are, as bytes of
    theirs alone do not say what they are.
    """
    upper_V = (rows_V >= ord("A")) & (rows_V <= ord("Z"))
    rows_V = torch.where(upper_V, rows_V + (ord("a") - ord("A")), rows_V)
    last_V = torch.ones_like(upper_V)
    last_V[..., :-1] = rows_V[..., 1:] == PAD
    last_V[..., 0] = False  # a space by itself is a material
    return torch.where(last_V & (rows_V == ord(" ")), PAD, rows_V)


def shuffled(rows_V: Tensor) -> Tensor:
    """Every row's bytes in an order that is a hash of the row: (..., V) -> (..., V). Equal rows
    stay equal, on every device and in every run."""
    v = rows_V.shape[-1]
    slot_V = torch.arange(v, device=rows_V.device)
    order_V = hash_uniform(row_key(rows_V).unsqueeze(-1) * v + slot_V, seed=0, stream=0)
    return rows_V.gather(-1, order_V.argsort(dim=-1, stable=True))


def row_key(rows_V: Tensor) -> Tensor:
    """A number for each row, (..., V) -> (...) int64: the same for equal rows."""
    key = torch.zeros_like(rows_V[..., 0], dtype=torch.int64)
    for byte in rows_V.unbind(-1):
        key = key * 0x100000001B3 + byte
    return key


def distinct(rows_TV: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct ones of some rows, (U, V), and for each row which of them it is, (T,) int64."""
    key_U, place_T = row_key(rows_TV).unique(return_inverse=True)
    number_T = torch.arange(len(place_T), device=place_T.device)
    # One of those with the same key, whichever.
    rows_UV = rows_TV[torch.empty_like(key_U).scatter_(0, place_T, number_T)]
    if torch.equal(rows_UV[place_T], rows_TV):
        return rows_UV, place_T
    return rows_TV, number_T  # two different rows have the same key


def most_frequent(rows_NV: Tensor) -> Tensor:
    """The distinct ones of some rows, (U, V), the most frequent first."""
    key_U, place_N, count_U = row_key(rows_NV).unique(return_inverse=True, return_counts=True)
    number_N = torch.arange(len(place_N), device=place_N.device)
    rows_UV = rows_NV[torch.empty_like(key_U).scatter_(0, place_N, number_N)]
    return rows_UV[count_U.argsort(descending=True, stable=True)]
