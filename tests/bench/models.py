"""What the benchmarks of models share: shapes, text as samples, training steps of ours and BERT.

Shape suffixes: see elemdist/rows.py.
"""

from __future__ import annotations

import abc
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from elemdist.attention import Segments
from elemdist.batch import Batch, unpad
from elemdist.config import TrainSettings
from elemdist.model import Model
from elemdist.model_config import ModelConfig, model_config
from elemdist.model_settings import ModelSettings
from elemdist.objectives import targets_of
from elemdist.rows import DOC, PAD, special_row
from elemdist.run_settings import MemorySettings
from tests.bench.rounds import made_text

MASK_RATE = 0.15
DROPOUT = 0.1
SEED = 1
BERT_VOCABULARY = 30_522
IGNORED = -100  # the label of a position that transformers' loss leaves out


def shape(n: int, v: int, **model: Any) -> ModelConfig:
    """The shape of a model of masked materials."""
    settings = TrainSettings(model=ModelSettings(dropout=DROPOUT, **model))
    return model_config(settings, n, v)


def text_rows(rows: int, v: int, segmenter: str = "word") -> np.ndarray:
    """(rows, v) uint8: made-up prose, cut into materials as `elemdist shard` does."""
    from data_prep.segment import rows_of  # numba: not there on every machine with a GPU

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "text")
        made_text(path, rows * v / 1e6)
        return rows_of(path.read_bytes(), v, segmenter)[:rows]


def samples_of(rows_TV: np.ndarray, lengths_B: np.ndarray, n: int) -> np.ndarray:
    """(B, n, v) uint8: a document each, of so many rows of `rows_TV` behind its DOC row."""
    v = rows_TV.shape[1]
    samples_BNV = np.full((len(lengths_B), n, v), PAD, np.uint8)
    samples_BNV[:, 0] = special_row(DOC, v)
    ends_B = np.cumsum(lengths_B)
    for sample_NV, end, length in zip(samples_BNV, ends_B, lengths_B, strict=True):
        sample_NV[1 : length + 1] = rows_TV[end - length : end]
    return samples_BNV


def news_lengths(documents: int, n: int) -> np.ndarray:
    """Rows of documents of very different length, as news agencies' are: log-normal, with half of
    them below a quarter of n, and cut off where a sample ends."""
    rng = np.random.default_rng(SEED)
    lengths = rng.lognormal(np.log(n / 4), 0.9, documents)
    return lengths.clip(8, n - 1).astype(np.int64)


def padded(batch: Batch, samples_BNV: np.ndarray) -> Batch:
    """The same samples with their padding: every segment has n rows."""
    b, n, v = samples_BNV.shape
    number_T = torch.arange(b * n)
    return replace(
        batch,
        rows_TV=torch.from_numpy(samples_BNV.reshape(-1, v)),
        position_T=number_T % n,
        key_T=number_T,
        segments=Segments(torch.arange(0, b * n + 1, n, dtype=torch.int32), [n] * b),
        sample_S=torch.arange(b),
        place_S=torch.arange(b),
        ended_S=torch.ones(b, dtype=torch.bool),
    )


class Trainer(abc.ABC):
    """A model and its AdamW; a step is forward, backward, optimizer, no gradients left."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model.train()
        # One kernel for all parameters, for every peer: the larger a table, the more it saves.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.steps = itertools.count()

    @abc.abstractmethod
    def loss(self, number: int) -> Tensor:
        """The loss of step `number`, 0-d, with its gradient to come."""

    def step(self) -> Tensor:
        """One training step; its loss, 0-d."""
        loss = self.loss(next(self.steps))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class Ours(Trainer):
    """Our model on one batch, masked anew in every step."""

    def __init__(
        self,
        config: ModelConfig,
        batch: Batch,
        memory: MemorySettings | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        torch.manual_seed(SEED)
        device = batch.rows_TV.device
        self.ours = Model(config, memory).to(device, dtype)
        super().__init__(self.ours)
        self.config, self.batch = config, batch

    def compile_blocks(self) -> None:
        """See :meth:`Model.compile_blocks`; the next step takes the time."""
        self.ours.compile_blocks()

    def loss(self, number: int) -> Tensor:
        batch = self.batch
        targets = targets_of(batch, self.config, MASK_RATE, number)
        nats_M, _ = self.ours(
            targets.rows_TV, batch.position_T, batch.segments, targets.select_M, targets.target_MV
        )
        return nats_M.sum() / targets.text_bytes


def import_bert() -> tuple[Any, Any]:
    """BertConfig and BertForMaskedLM of transformers."""
    from elemdist.streaming_compat import fit_torchvision

    fit_torchvision()  # transformers imports torchvision, too, which fails beside a CPU torch
    from transformers import BertConfig, BertForMaskedLM

    return BertConfig, BertForMaskedLM


class Shaped(Protocol):
    """What says the shape of a model."""

    width: int
    layers: int
    heads: int
    feedforward: int


def same_shape(
    config_class: Any, shape: Shaped, vocabulary: int, positions: int, **options: Any
) -> Any:
    """transformers' configuration of such a model; no dropout of attention's weights."""
    return config_class(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feedforward,
        max_position_embeddings=positions,
        attention_probs_dropout_prob=0.0,
        **options,
    )


class Bert(Trainer):
    """BertForMaskedLM of transformers on samples of so many positions each, padded to n.

    Its attention is torch's scaled dot product, without dropout of its weights, which ours has not
    either: on a CPU it would take the slow way. The tokens are random and already masked.
    """

    def __init__(self, config: ModelConfig, positions_B: np.ndarray) -> None:
        config_class, model_class = import_bert()
        torch.manual_seed(SEED)
        bert = same_shape(
            *(config_class, config.model, BERT_VOCABULARY, config.n),
            hidden_dropout_prob=DROPOUT,
            attn_implementation="sdpa",
        )
        super().__init__(model_class(bert))
        there_BN = torch.arange(config.n) < torch.from_numpy(positions_B).unsqueeze(1)
        ids_BN = torch.randint(1000, BERT_VOCABULARY, there_BN.shape)
        chosen_BN = there_BN & (torch.rand(there_BN.shape) < MASK_RATE)
        self.inputs = {
            "input_ids": ids_BN,
            "labels": ids_BN.masked_fill(~chosen_BN, IGNORED),
            **({} if there_BN.all() else {"attention_mask": there_BN.long()}),
        }

    def loss(self, number: int) -> Tensor:
        return self.model(**self.inputs).loss


def random_rows(rows: int, v: int) -> np.ndarray:
    """(rows, v) uint8: letters, from 1 to v of them in a row, where text is of no matter."""
    rng = np.random.default_rng(SEED)
    rows_TV = rng.integers(ord("a"), ord("z") + 1, (rows, v)).astype(np.uint8)
    rows_TV[np.arange(v) >= rng.integers(1, v + 1, rows)[:, None]] = PAD
    return rows_TV


def full_batch(rows: int, n: int, v: int, device: torch.device) -> Batch:
    """So many random rows as samples of n each, without padding."""
    samples_BNV = samples_of(random_rows(rows, v), np.full(rows // n, n - 1), n)
    return unpad(samples_BNV, None, np.arange(rows // n)).to(device)
