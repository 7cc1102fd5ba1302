"""The encoder of CANINE (Clark et al. 2021, arXiv 2103.06874), on unpadded rows of any input.

Long inputs are expensive where every row goes through every block. Here one block mixes rows
nearby, a strided convolution makes one molecule of `rate` rows, the deep blocks run on the
molecules, and a convolution and one last block bring what they found back to the rows.
Shape suffixes: see elemdist/rows.py; S segments, M molecules of a batch (not masked rows), R rate,
K width of the up-sampling convolution.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elemdist.attention import Segments, starts
from elemdist.blocks import Block, layer_norm, recomputed
from elemdist.model import Encoder
from elemdist.model_config import ModelConfig
from elemdist.model_settings import ModelSettings
from elemdist.run_settings import MemorySettings
from elemdist.sequence_parallel import Fetch


@dataclass(frozen=True)
class Molecules:
    """Which rows the molecules of a batch come from, and which rows get them back. Worked out on
    the device, by the lengths that the host knows, so that neither waits for the other.

    Molecule 0 of a segment is its first row; molecule k stands for rows (k - 1) rate to k rate - 1.
    There are length // rate of them, at least 1: as in the original the last one that the
    convolution could give has no place, as molecule 0 took it, and rows without a molecule of
    their own get the last there is.

    Ranks that share the rows share the molecules as well, each in equal parts. T and M are then
    this rank's, and what it needs beside them it fetches.
    """

    segments: Segments  # of all molecules
    fetch_rows: Fetch  # the rows that molecules come from
    fetch_molecules: Fetch  # the molecules that rows get
    position_M: Tensor  # int64, place of a molecule in its segment
    row_M: Tensor  # int64, the first row it stands for, of the fetched ones
    molecule_T: Tensor  # int64, the molecule that a row gets, of the fetched ones
    place_T: Tensor  # int64, place of a row in its segment
    length_T: Tensor  # int64, length of the segment of a row

    @classmethod
    def of(cls, segments: Segments, rate: int) -> Molecules:
        """The molecules of these segments of rows."""
        counts = [max(1, length // rate) for length in segments.lengths]
        keys = segments.keys
        if keys is not None:  # a molecule is a key where any of `rate` rows from its place on is
            keys = [min(-(-key // rate), count) for key, count in zip(keys, counts, strict=True)]
        start_S = segments.cu_lengths.long()
        length_S = start_S.diff()
        count_S = (length_S // rate).clamp(min=1)
        first_S = F.pad(count_S.cumsum(0), (1, 0))
        molecules = Segments(first_S.to(segments.cu_lengths.dtype), counts, keys, segments.share)
        fetch_rows, fetch_molecules = exchanged(segments, molecules, rate)
        segment_T, place_T = places(start_S, length_S, segments)
        segment_M, position_M = places(first_S, count_S, molecules)
        own_T = torch.minimum(place_T // rate + 1, count_S[segment_T] - 1)
        row_M = start_S[segment_M] + (position_M - 1).clamp(min=0) * rate
        return cls(
            molecules,
            fetch_rows,
            fetch_molecules,
            position_M,
            row_M - fetch_rows.first,
            first_S[segment_T] + own_T - fetch_molecules.first,
            place_T,
            length_S[segment_T],
        )


def places(start_S: Tensor, length_S: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """(segment, place in it), (T,) int64 each, of this rank's rows. `start_S`, `length_S`: where
    the segments start and how long they are, on the device."""
    mine = segments.mine
    segment_T = torch.repeat_interleave(length_S, output_size=segments.rows)[mine]
    row_T = torch.arange(mine.start, mine.stop, device=start_S.device)
    return segment_T, row_T - start_S[segment_T]


def exchanged(rows: Segments, molecules: Segments, rate: int) -> tuple[Fetch, Fetch]:
    """What the ranks that share rows and molecules get from each other: the rows that their
    molecules come from, and the molecules that their rows get."""
    share = rows.share
    if share is None:
        return Fetch(None, [], []), Fetch(None, [], [])
    start_S, first_S = starts(rows.lengths), starts(molecules.lengths)

    def rows_of(some: range) -> range:
        """From the first row of the first molecule to the last one of the last."""
        if not some:
            return some
        ends = []
        for molecule in (some[0], some[-1]):
            segment = bisect_right(first_S, molecule) - 1
            ends.append(start_S[segment] + max(0, molecule - first_S[segment] - 1) * rate)
        # Only the window of a molecule 0 can pass the end, and of that only one row is used.
        return range(ends[0], min(ends[1] + rate, rows.rows))

    def molecules_of(some: range) -> range:
        if not some:
            return some
        ends = []
        for row in (some[0], some[-1]):
            segment = bisect_right(start_S, row) - 1
            own = min((row - start_S[segment]) // rate + 1, molecules.lengths[segment] - 1)
            ends.append(first_S[segment] + own)
        return range(ends[0], ends[1] + 1)

    row_cuts, molecule_cuts = share.cuts(rows.rows), share.cuts(molecules.rows)
    return (
        Fetch(share, row_cuts, [rows_of(range(*pair)) for pair in pairwise(molecule_cuts)]),
        Fetch(share, molecule_cuts, [molecules_of(range(*pair)) for pair in pairwise(row_cuts)]),
    )


class DownSampling(nn.Module):
    """Rows to molecules, (T, W) -> (M, W): a convolution of width and stride R, without padding.

    ``conv`` is its matrix, (W, R W): row by row of the window, W inputs each.
    """

    def __init__(self, model: ModelSettings) -> None:
        super().__init__()
        self.rate, self.tanh = model.canine.rate, tanh(model)
        self.conv = nn.Linear(self.rate * model.width, model.width, model.biases)
        self.norm = layer_norm(model.width, model.biases)

    def forward(self, x_TW: Tensor, molecules: Molecules) -> Tensor:
        """Rows (T, W) to molecules (M, W)."""
        x_TW = molecules.fetch_rows(x_TW)
        row_MR = molecules.row_M.unsqueeze(1) + torch.arange(self.rate, device=x_TW.device)
        # Only the window of a molecule 0 can pass the end, and of that only the first row is used.
        row_MR = row_MR.clamp(max=len(x_TW) - 1)
        x_MRW = x_TW.index_select(0, row_MR.flatten()).unflatten(0, row_MR.shape)
        x_MW = F.gelu(self.conv(x_MRW.flatten(1)), approximate=self.tanh)
        first_M1 = (molecules.position_M == 0).unsqueeze(1)
        return self.norm(torch.where(first_M1, x_MRW[:, 0], x_MW))


class UpSampling(nn.Module):
    """Rows and what the molecules found to rows, (T, W), (M, W) -> (T, W): a convolution of width K
    over [row, its molecule], with zeros outside the segment.

    ``conv`` is its matrix, (W, K 2W): row by row of the window, W inputs of the row, W of the
    molecule each.
    """

    def __init__(self, model: ModelSettings) -> None:
        super().__init__()
        self.kernel, self.tanh = model.canine.kernel, tanh(model)
        self.conv = nn.Linear(2 * self.kernel * model.width, model.width, model.biases)
        self.norm = layer_norm(model.width, model.biases)
        self.drop = nn.Dropout(model.dropout)

    def forward(self, x_TW: Tensor, x_MW: Tensor, molecules: Molecules) -> Tensor:
        """Rows (T, W), each with its molecule out of (M, W), to rows (T, W)."""
        x_MW = molecules.fetch_molecules(x_MW)
        both_T2W = torch.cat([x_TW, x_MW.index_select(0, molecules.molecule_T)], dim=-1)
        before = (self.kernel - 1) // 2
        fetch = molecules.fetch_rows.nearby(before, self.kernel - 1 - before)
        offset_K = torch.arange(-before, self.kernel - before, device=x_TW.device)
        place_TK = molecules.place_T.unsqueeze(1) + offset_K
        outside_TK = (place_TK < 0) | (place_TK >= molecules.length_T.unsqueeze(1))
        both_R2W = fetch(both_T2W)  # R: rows nearby as well
        row_T1 = torch.arange(len(x_TW), device=x_TW.device).unsqueeze(1) + fetch.before
        row_TK = (row_T1 + offset_K).masked_fill(outside_TK, len(both_R2W))  # a row of zeros
        window_TK2W = F.pad(both_R2W, (0, 0, 0, 1)).index_select(0, row_TK.flatten())
        x_TW = self.conv(window_TK2W.view(len(x_TW), 2 * self.kernel * x_TW.shape[1]))
        return self.drop(self.norm(F.gelu(x_TW, approximate=self.tanh)))


def tanh(model: ModelSettings) -> str:
    """Which GELU follows the convolutions; a gate is for feed-forward layers only."""
    return "tanh" if model.activation == "gelu_tanh" else "none"


class CanineEncoder(Encoder):
    """Rows to vectors as :class:`elemdist.model.Encoder`, ``(T, V) -> (T, W)``, with the `layers`
    deep blocks on molecules of `model.canine.rate` rows each.

    Without padding rows the result is that of transformers' CanineModel on each document alone.
    With ``segments.keys`` it is that of CanineModel on a batch padded to equal length, whose
    padding its convolutions and last molecules do see.

    A `window` counts molecules in the deep blocks and rows in the last block.
    """

    def __init__(self, config: ModelConfig, memory: MemorySettings) -> None:
        # The first block is the local one, so it gets the slot by slot projection, if any.
        ablation = replace(config.model.ablation, first_projection="dense")
        super().__init__(replace(config, model=replace(config.model, ablation=ablation)), memory)
        model = config.model
        apart = model.ablation.first_projection == "block_diagonal"
        self.local = Block(model, slots=config.v if apart else 0, tile_rows=memory.tile_rows)
        self.down = DownSampling(model)
        self.up = UpSampling(model)
        self.last = Block(model, window=model.window, tile_rows=memory.tile_rows)
        # Blocks that norm their inputs leave a sum that no one has normed.
        pre = model.norm == "pre"
        self.local_norm = layer_norm(model.width, model.biases) if pre else nn.Identity()
        self.deep_norm = layer_norm(model.width, model.biases) if pre else nn.Identity()

    def outer(self, part: Callable[..., Tensor], *inputs: object) -> Tensor:
        """part(*inputs), for a part that works on rows; with `checkpoint_every` nothing of its
        inside is kept, as there are `rate` times as many rows as molecules."""
        if self.checkpoint_every and self.training:
            return recomputed(part, *inputs)
        return part(*inputs)

    def contextual(
        self,
        x_TW: Tensor,
        position_T: Tensor,
        segments: Segments,
        select_P: Tensor | None = None,
    ) -> Tensor:
        """As Encoder.contextual, by way of the molecules; P rows are selected."""
        canine, turn = self.model.canine, self.turn(position_T)
        molecules = Molecules.of(segments, canine.rate)
        x_TW = self.outer(self.local, x_TW, segments.chunks(canine.local), turn)
        x_TW = self.local_norm(x_TW)
        x_MW = self.outer(self.down, x_TW, molecules)
        x_MW = self.stack(x_MW, molecules.segments, self.turn(molecules.position_M))
        x_TW = self.outer(self.up, x_TW, self.deep_norm(x_MW), molecules)
        return self.final_norm(self.outer(self.last, x_TW, segments, turn, select_P))
