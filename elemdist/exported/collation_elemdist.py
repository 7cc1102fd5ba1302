"""Sequences to batches with labels, for Trainer(data_collator=...).

Shape suffixes: see blocks_elemdist.py; M positions of text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding

IGNORED = -100  # as in all of transformers: labels that are not predicted


def stacked(name: str, values: list[Any], lengths: list[int]) -> Tensor:
    """Return what sequences have beside their positions as one tensor. Raises ValueError."""
    try:
        tensors = [torch.as_tensor(value) for value in values]
        if name == "labels" and [len(one) if one.ndim else 0 for one in tensors] == lengths:
            return pad_sequence(tensors, True, IGNORED)
        return torch.stack(tensors)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"tokenizer pad: {name} cannot become one tensor; remove that column"
        ) from None


@dataclass
class Collator:
    """Sequences to a batch with labels, as elemdist trains: of 10 materials to be predicted 8 are
    hidden, 1 is another one of its text, 1 stays as it is, always all of its bytes together."""

    tokenizer: Any  # ElemdistTokenizer
    hidden: float

    def __post_init__(self) -> None:
        if not 0 <= self.hidden <= 1:
            raise ValueError(f"tokenizer collator: hidden={self.hidden} is no share, 0 to 1")

    def __call__(self, features: list[Any]) -> BatchEncoding:
        """Return the batch of texts, or of mappings with their `input_ids`; what else those hold is
        left out."""
        own = self.tokenizer
        kept = ("input_ids", "attention_mask")
        batch = own.pad([
            {"input_ids": own.positions(one)}
            if isinstance(one, str)
            else {name: one[name] for name in kept if name in one}
            for one in features
        ])  # fmt: skip
        ids, mask_BN = batch["input_ids"], batch["attention_mask"].bool()
        first_BN = ids if ids.ndim == 2 else ids[..., 0]
        text_BN = mask_BN & ~own.special(first_BN)
        if not self.hidden:
            batch["labels"] = torch.where(like(text_BN, ids), ids, IGNORED)
            return batch
        group_BN = torch.stack([self.groups(one) for one in ids])
        chosen_BN = text_BN & (torch.rand(text_BN.shape).gather(1, group_BN) < self.hidden)
        kind_BN = torch.rand(text_BN.shape).gather(1, group_BN)
        place_BN = torch.stack([others(one) for one in text_BN])
        other = ids.gather(1, like(place_BN, ids).expand_as(ids))
        batch["labels"] = torch.where(like(chosen_BN, ids), ids, IGNORED)
        other = torch.where(like(kind_BN < 0.9, ids), other, ids)
        changed = torch.where(like(kind_BN < 0.8, ids), own.mask_token_id, other)
        batch["input_ids"] = torch.where(like(chosen_BN, ids), changed, ids)
        return batch

    def groups(self, ids: Tensor) -> Tensor:
        """Return a number of each position of a sequence, (N,) int64, the same for those that are
        hidden together: the bytes of a material, where a position is one."""
        own, count_N = self.tokenizer, torch.arange(len(ids))
        text_N = ~own.special(ids) if own.input == "byte" else torch.zeros(0)
        sizes = [len(row) for row in own.rows(own.decode(ids))] if len(text_N) else []
        if not sizes or sum(sizes) != int(text_N.sum()):  # cut within a character: each by itself
            return count_N
        count_N[text_N] = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        return count_N


def like(x_BN: Tensor, ids: Tensor) -> Tensor:
    """Return it with the axes of `ids`."""
    return x_BN.view(*x_BN.shape, *[1] * (ids.ndim - 2))


def others(text_N: Tensor) -> Tensor:
    """Return for each position the place of a random one of text: (N,) int64."""
    place_M = text_N.nonzero().squeeze(1)
    if not len(place_M):
        return torch.arange(len(text_N))
    return place_M[torch.randint(len(place_M), text_N.shape)]
