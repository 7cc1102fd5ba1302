"""Figures of text for choosing n and v: lengths of materials, rows of documents, what is padding.

A Tally counts documents; advice_for makes tables of its counts, and advice_lines shows them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.documents import Batch
from data_prep.inspect.row_counts import count_rows
from data_prep.segment import Segmenter
from data_prep.words import counted

WIDTHS = (4, 6, 8, 10, 12, 16, 24, 32)
LONGEST = 1024  # bytes of a material that are still told apart
SMALLEST_N, LARGEST_N = 64, 1 << 24
FIT_SHARE = 0.99  # the table of n ends where so many documents fit
# What the sentence below the tables asks of v and n.
GOOD_V_SHARE, GOOD_N_SHARE = 0.95, 0.90
# The last bytes of each line of the histogram; what is longer has a line of its own.
EDGES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 64, 128, 256, LONGEST - 1)
BAR = 30
NOUNS = {
    "word": "words",
    "char": "characters",
    "byte": "blocks",
    "uax29": "words",
    "sentence": "sentences",
    "subword": "tokens",
}


class Tally:
    """Counts documents.

    Args:
        segmenter: cuts them. v: the width that the table of n is for.

    Attributes:
        segmenter, v: as given. widths: the values of v that rows are counted for, sorted.
        lengths: (LONGEST + 1,) int64, materials by their bytes, the last entry those of LONGEST
            bytes and more.
        unfinished: how many documents were counted without their end.
    """

    def __init__(self, segmenter: Segmenter, v: int) -> None:
        self.segmenter, self.v = segmenter, v
        self.widths = np.array(sorted({*WIDTHS, v}), np.int64)
        self.lengths = np.zeros(LONGEST + 1, np.int64)
        self.unfinished = 0
        self._rows = [np.zeros((0, len(self.widths)), np.int64)]
        self._bytes = [np.zeros(0, np.int64)]

    def add(self, batch: Batch) -> None:
        """Counts the documents of a batch.

        A document that comes in several batches counts once; where it is cut, a material may
        count as two.

        Raises:
            UserError: as Segmenter.marks.
        """
        data, starts, ends = batch.data, batch.starts, batch.ends
        marks = self.segmenter.marks(data, starts, ends)
        rows_DW = np.empty((len(starts), len(self.widths)), np.int64)
        anywhere = self.segmenter.anywhere
        count_rows(data, marks, starts, ends, self.widths, anywhere, self.lengths, rows_DW)
        sizes = ends - starts
        if batch.begun and len(starts) and len(self._rows[-1]):
            self._rows[-1][-1] += rows_DW[0]
            self._bytes[-1][-1] += sizes[0]
            rows_DW, sizes = rows_DW[1:], sizes[1:]
        if len(sizes):
            self._rows.append(rows_DW)
            self._bytes.append(sizes)

    def rows(self) -> np.ndarray:
        """The rows of each document at each width, DOC left out: (D, W) int64."""
        return np.concatenate(self._rows)

    def bytes(self) -> np.ndarray:
        """The bytes of each document: (D,) int64."""
        return np.concatenate(self._bytes)


def advice_for(tally: Tally) -> dict[str, Any]:
    """The figures of a tally, for JSON: shares from 0 to 1, None where they mean nothing.

    Returns:
        documents, unfinished_documents, bytes, materials; histogram: the materials up to each
        number of bytes (None: longer); v: what each width gives; n_at_v, n: what each n gives at
        that width, one document a sample.
    """
    rows_DW, sizes_D = tally.rows(), tally.bytes()
    total, documents = int(sizes_D.sum()), len(sizes_D)
    materials = int(tally.lengths.sum())
    upper = [0, *(edge + 1 for edge in EDGES), LONGEST + 1]
    counts = np.add.reduceat(np.append(tally.lengths, 0), upper[:-1])
    histogram = [
        {"up_to_bytes": edge, "materials": int(count)}
        for edge, count in zip([*EDGES, None], counts, strict=True)
    ]
    by_v = []
    for v, rows in zip(tally.widths.tolist(), rows_DW.sum(0).tolist(), strict=True):
        short = int(tally.lengths[: min(v, LONGEST - 1) + 1].sum())
        by_v.append(
            {
                "v": v,
                "materials_in_one_row_share": share(short, materials, tally.segmenter.anywhere),
                "rows_per_document": rows / documents if documents else None,
                "padding_share": share(rows * v - total, rows * v),
            }
        )
    rows_D = rows_DW[:, tally.widths.tolist().index(tally.v)]
    return {
        "documents": documents,
        "unfinished_documents": tally.unfinished,
        "bytes": total,
        "materials": None if tally.segmenter.anywhere else materials,
        "histogram": None if tally.segmenter.anywhere else histogram,
        "v": by_v,
        "n_at_v": tally.v,
        "n": n_table(rows_D, total, tally.v),
    }


def n_table(rows_D: np.ndarray, total: int, v: int) -> list[dict[str, Any]]:
    """What each n gives for documents of so many rows and `total` bytes, one document a sample.

    Every sample has one more row, DOC or SEP. padding_share is of all slots, as the manifest has
    it; empty_rows_share of the rows, the part of the padding that costs storage but, where
    attention leaves it out, no time.
    """
    table: list[dict[str, Any]] = []
    documents, n = len(rows_D), SMALLEST_N
    while documents and n <= LARGEST_N:
        samples = int(np.maximum(1, -(-rows_D // (n - 1))).sum())
        fitting = int((rows_D <= n - 1).sum())
        slots = samples * n * v
        table.append(
            {
                "n": n,
                "documents_in_one_sample_share": share(fitting, documents),
                "samples_per_document": samples / documents,
                "empty_rows_share": share(samples * (n - 1) - int(rows_D.sum()), samples * n),
                "padding_share": share(slots - total - samples, slots),
            }
        )
        if fitting >= FIT_SHARE * documents:
            break
        n *= 2
    return table


def share(part: int, whole: int, void: bool = False) -> float | None:
    """part / whole, rounded for reading; None where there is nothing, or it is void."""
    return None if void or not whole else round(part / whole, 6)


def percent(value: float | None) -> str:
    """A share in seven columns."""
    return f"{'-':>7}" if value is None else f"{100 * value:5.1f} %"


def histogram_lines(figures: dict[str, Any], noun: str) -> list[str]:
    """The lengths of materials, a line for each range that has some, and an empty line."""
    if not figures["materials"]:
        return []
    lines = [f"{counted(figures['materials'], noun.removesuffix('s'))}, by bytes:"]
    shares = [entry["materials"] / figures["materials"] for entry in figures["histogram"]]
    largest, sum_so_far, before = max(shares), 0.0, 0
    for entry, part in zip(figures["histogram"], shares, strict=True):
        last = entry["up_to_bytes"]
        sum_so_far += part
        if entry["materials"]:
            first = before + 1
            name = f"{first:,} on" if last is None else f"{first}-{last}" if last > first else last
            bar = "#" * round(BAR * part / largest)
            lines.append(f"{name:>9}  {percent(part)}  {percent(sum_so_far)}  {bar}".rstrip())
        before = last or before
    return [*lines, ""]


def advice_lines(figures: dict[str, Any], noun: str) -> list[str]:
    """Both tables, and the smallest v and n that hold most, for a reader."""
    lines = [f"{'v':>9}  {f'{noun} in one row':>21}  rows per document  padding in rows"]
    for entry in figures["v"]:
        held = percent(entry["materials_in_one_row_share"])
        rows = entry["rows_per_document"]
        told = "-" if rows is None else f"{rows:,.1f}"
        lines.append(
            f"{entry['v']:>9}  {held:>21}  {told:>17}  {percent(entry['padding_share']):>15}"
        )
    lines += ["", f"one document a sample, at v = {figures['n_at_v']}:"]
    lines.append(f"{'n':>9}  documents in one sample  samples each  empty rows  padding in all")
    for entry in figures["n"]:
        fitting = percent(entry["documents_in_one_sample_share"])
        lines.append(
            f"{entry['n']:>9,}  {fitting:>23}  {entry['samples_per_document']:>12,.2f}  "
            f"{percent(entry['empty_rows_share']):>10}  {percent(entry['padding_share']):>14}"
        )
    return [*lines, *choice_lines(figures, noun)]


def choice_lines(figures: dict[str, Any], noun: str) -> list[str]:
    """The smallest v and n of the tables that hold most."""
    found = []
    for name, key, good, what in (
        ("v", "materials_in_one_row_share", GOOD_V_SHARE, noun),
        ("n", "documents_in_one_sample_share", GOOD_N_SHARE, "documents"),
    ):
        for entry in figures[name]:
            if entry[key] is not None and entry[key] >= good:
                held, padding = percent(entry[key]).strip(), percent(entry["padding_share"]).strip()
                found.append(
                    f"smallest {name} for {100 * good:.0f} % of the {what}: {entry[name]:,} "
                    f"({held}, padding {padding})"
                )
                break
    return ["", *found] if found else []
