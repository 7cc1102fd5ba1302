"""CANINE's parts (Clark et al. 2021, arXiv 2103.06874): characters by hashes, and sampling.

Shape suffixes: see modeling_elemdist.py; M molecules, R positions of one, J width of a convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks_elemdist import layer_norm
from .configuration_elemdist import ElemdistConfig

PRIMES = (31, 43, 59, 61, 73, 97, 103, 113, 137, 149, 157, 173, 181, 193, 211, 223)


class HashEmbedding(nn.Module):
    """Code points to vectors, ``(B, N) -> (B, N, W)``: each of several hashes gives a part."""

    def __init__(self, config: ElemdistConfig) -> None:
        super().__init__()
        hashes, buckets = config.canine["hashes"], config.canine["buckets"]
        self.tables = nn.Parameter(torch.empty(hashes, buckets, config.embedded // hashes))

    def forward(self, code_BN: Tensor) -> Tensor:
        """Code points (B, N) -> (B, N, W)."""
        hashes, buckets, _ = self.tables.shape
        rows = [
            (code_BN + 1) * prime % buckets + k * buckets for k, prime in enumerate(PRIMES[:hashes])
        ]
        return F.embedding(torch.stack(rows, -1), self.tables.flatten(0, 1)).flatten(-2)


def molecule_mask(mask_BN: Tensor, rate: int) -> Tensor:
    """Which molecules stand for text, (B, M): length // rate of a sequence's, at least one."""
    count_B1 = (mask_BN.sum(1, keepdim=True) // rate).clamp(min=1)
    return torch.arange(molecules(mask_BN.shape[1], rate), device=mask_BN.device) < count_B1


def molecules(positions: int, rate: int) -> int:
    """How many there are of so many positions."""
    return max(1, positions // rate)


class DownSampling(nn.Module):
    """Positions to molecules, ``(B, N, W) -> (B, M, W)``: the first is the first position, the
    others a convolution of width and stride R each."""

    def __init__(self, config: ElemdistConfig) -> None:
        super().__init__()
        self.rate = config.canine["rate"]
        self.tanh = "tanh" if config.activation == "gelu_tanh" else "none"
        self.conv = nn.Linear(self.rate * config.width, config.width, config.biases)
        self.norm = layer_norm(config.width, config.biases)

    def forward(self, x_BNW: Tensor) -> Tensor:
        """(B, N, W) -> molecules (B, M, W)."""
        others = molecules(x_BNW.shape[1], self.rate) - 1
        x_BMF = x_BNW[:, : others * self.rate].unflatten(1, (others, self.rate)).flatten(2)
        x_BMW = F.gelu(self.conv(x_BMF), approximate=self.tanh)
        return self.norm(torch.cat([x_BNW[:, :1], x_BMW], dim=1))


class UpSampling(nn.Module):
    """Positions and molecules to positions, ``(B, N, W)``: a convolution of width J over each
    position with its molecule, zeros outside of the sequence."""

    def __init__(self, config: ElemdistConfig) -> None:
        super().__init__()
        self.rate, self.kernel = config.canine["rate"], config.canine["kernel"]
        self.tanh = "tanh" if config.activation == "gelu_tanh" else "none"
        self.conv = nn.Linear(2 * self.kernel * config.width, config.width, config.biases)
        self.norm = layer_norm(config.width, config.biases)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x_BNW: Tensor, x_BMW: Tensor, mask_BN: Tensor) -> Tensor:
        """Positions (B, N, W), each with its molecule, -> (B, N, W)."""
        count_B1 = (mask_BN.sum(1, keepdim=True) // self.rate).clamp(min=1)
        place_N = torch.arange(x_BNW.shape[1], device=x_BNW.device)
        own_BN = torch.minimum(place_N // self.rate + 1, count_B1 - 1)
        index_BNW = own_BN.unsqueeze(-1).expand(-1, -1, x_BMW.shape[-1])
        both_BNW = torch.cat([x_BNW, x_BMW.gather(1, index_BNW)], dim=-1) * mask_BN.unsqueeze(-1)
        before = (self.kernel - 1) // 2
        both_BNW = F.pad(both_BNW, (0, 0, before, self.kernel - 1 - before))
        window_BNJ = both_BNW.unfold(1, self.kernel, 1).transpose(2, 3).flatten(2)
        return self.drop(self.norm(F.gelu(self.conv(window_BNJ), approximate=self.tanh)))
