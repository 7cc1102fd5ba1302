"""A pass: one forward and backward of a rank, from its batch to its share of the loss.

Shape suffixes: see elemdist/rows.py; S segments, M rows that carry loss, K sources.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elemdist.attention import Segments
from elemdist.batch import Batch
from elemdist.batch_plan import BatchPlan
from elemdist.config import TrainSettings
from elemdist.model_config import ModelConfig
from elemdist.objectives import label_loss, share_batch, targets_of
from elemdist.sequence_parallel import Share
from elemdist.source_loss import bytes_by_source, labels_by_source, nats_by_source


@dataclass(frozen=True)
class Pass:
    """A micro-batch of this rank's group, and this rank's part of it.

    Attributes:
        batch: whole, on the device.
        inputs: rows_TV, position_T, segments, select_M, target_MV, this rank's.
        predicted_rows, text_bytes: of the whole batch, how many rows predict, and bytes of text in
            what they predict, 0-d int64.
        dropout_seed: of this rank's part.
    """

    batch: Batch
    inputs: tuple[Tensor, Tensor, Segments, Tensor, Tensor]
    predicted_rows: int
    text_bytes: Tensor
    dropout_seed: int


def passes_of(
    batches: list[Batch],
    number: int,
    plan: BatchPlan,
    group: int,
    share: Share | None,
    config: ModelConfig,
    settings: TrainSettings,
    device: torch.device,
) -> Iterator[Pass]:
    """A group's micro-batches of the global batch `number` of the order, ready for the model."""
    classify = config.objective == "classify"
    rate = settings.classify.mask_rate if classify else settings.mlm.mask_rate
    for place, batch in enumerate(batches):
        batch = batch.to(device)
        targets = targets_of(batch, config, rate, settings.seed)
        # Dropout hangs on the samples, so that the number of ranks, and a resume, change nothing
        # as long as the passes hold the same ones.
        seed = number * plan.micro_batches + plan.micro_batch(group, place)
        if share is not None:  # other rows, so other ones of them are dropped
            seed = seed * share.size + share.rank
        yield Pass(
            batch,
            share_batch(batch, targets, share),
            len(targets.select_M),
            targets.text_bytes,
            settings.seed * 1_000_003 + seed,
        )


def loss_of(
    engine: Any, one: Pass, whole: float, share: Share | None, sources: int
) -> tuple[Tensor, Tensor]:
    """This rank's share of the loss of the global batch, and its parts by source.

    The loss is the sum of all nats over `whole`, the bytes of text (or samples) of the global
    batch, so it does not hang on how that is cut into ranks and passes.

    Returns:
        The share, 0-d; and of each source its nats and what they are to be divided by, (K, 2)
        float64, zeros where there is one source only.
    """
    rows_TV, position_T, segments, select_M, target_MV = one.inputs
    batch, config = one.batch, engine.module.config
    by_source = (torch.zeros(sources, dtype=torch.float64, device=engine.device),) * 2
    if config.objective == "classify":
        logits_SL = engine(rows_TV, position_T, segments)
        assert batch.labels_BL is not None
        truth_SL = batch.labels_BL[batch.sample_S[segments.own]]
        nats = label_loss(logits_SL, truth_SL, config.loss)
        if sources > 1:
            by_source = labels_by_source(nats, segments.own, batch, sources)
    else:
        nats, _ = engine(rows_TV, position_T, segments, select_M, target_MV)
        if sources > 1:
            first = 0 if share is None else share.part(len(batch.rows_TV)).start
            place_M, next_row = select_M + first, config.objective == "clm"
            by_source = (
                nats_by_source(nats, place_M, batch, sources),
                bytes_by_source(target_MV, place_M, batch, sources, next_row),
            )
    return nats.sum() / whole, torch.stack(by_source, 1)
