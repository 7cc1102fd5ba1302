"""What a model says of held-out shards, and the figures that follow: while it trains, and after.

Masked or next materials: bits per byte. Classification: F1, precision, recall, ROC AUC and average
precision, micro and macro, per document: a document that was cut into several samples counts
once, by the mean of their logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from elemdist.config import TrainSettings
from elemdist.data import Batch, evaluation_batches
from elemdist.errors import UserError
from elemdist.geometry import label_columns
from elemdist.inputs import open_reading
from elemdist.model_config import ModelConfig
from elemdist.multilabel import multilabel_figures
from elemdist.objectives import (
    NATS_PER_BIT,
    label_nats,
    own_targets,
    share_batch,
    share_rows,
    targets_of,
)
from elemdist.rows import DOC
from elemdist.sequence_parallel import Share
from elemdist.shards import ShardSet

EVAL_SEED = 0x5EED  # the masks of an evaluation are always the same


def gather_ranks(part: Any) -> list[Any]:
    """The parts of all ranks, in order."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [part]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


class NotFiniteError(UserError):
    """A model's outputs are NaN or infinite; raised on all ranks alike."""


def check_finite(outputs: np.ndarray) -> None:
    """Raise NotFiniteError where an output is NaN or infinite."""
    if not np.isfinite(outputs).all():
        raise NotFiniteError(
            "the model's outputs are NaN or infinite: they overflow, or the training has diverged;"
            " take an earlier checkpoint, or train with a lower optim.lr"
        )


Forward = Callable[..., Any]


@dataclass(frozen=True)
class Predicted:
    """What a model said of the targets of one batch, on this rank.

    Attributes:
        nats_M, correct_M: see heads.score. bytes_M: of text in each target. position_M: of the row
            that predicts, in its segment.
    """

    nats_M: Tensor
    correct_M: Tensor
    bytes_M: Tensor
    position_M: Tensor


def predictions(
    forward: Forward,
    batches: Any,
    device: torch.device,
    config: ModelConfig,
    mask_rate: float,
    share: Share | None = None,
) -> Iterator[Predicted]:
    """Of the batches that count, one after the other; always of the same masks."""
    for batch, counted in batches:
        batch = batch.to(device)
        targets = targets_of(batch, config, mask_rate, EVAL_SEED)
        inputs = share_batch(batch, targets, share)
        nats_M, correct_M = forward(*inputs)
        if counted:
            own, _ = own_targets(targets, share)
            position_M = batch.position_T[targets.select_M[own]]
            yield Predicted(nats_M, correct_M, targets.bytes_M[own], position_M)


def prediction_sums(predicted: Iterable[Predicted]) -> np.ndarray:
    """(nats, materials right to the letter, materials, bytes of text), summed up."""
    sums = np.zeros(4)
    for one in predicted:
        nats, right = one.nats_M.double().sum().item(), one.correct_M.sum().item()
        sums += [nats, right, len(one.nats_M), one.bytes_M.sum().item()]
    return sums


def prediction_figures(sums: np.ndarray) -> dict[str, Any]:
    """Return bits per byte over the predicted materials, and the share of them that is right to
    the letter (each byte the likeliest given those before it, where they are predicted in turn);
    None for a figure over no bytes or no materials.

    Raises:
        NotFiniteError: the nats are no finite number.
    """
    check_finite(sums)
    nats, correct, materials, text_bytes = sums.tolist()
    loss = nats / text_bytes if text_bytes else None
    return {
        "loss": loss,
        "bits_per_byte": None if loss is None else loss / NATS_PER_BIT,
        "material_accuracy": correct / materials if materials else None,
        "materials": int(materials),
        "bytes": int(text_bytes),
    }


def by_document(starts_B: np.ndarray, logits_BL: np.ndarray) -> np.ndarray:
    """Mean logits per document of consecutive samples; `starts_B` tells where one begins."""
    document_B = np.cumsum(starts_B) - 1
    sums = np.zeros((document_B[-1] + 1, logits_BL.shape[1]))
    np.add.at(sums, document_B, logits_BL)
    return sums / np.bincount(document_B)[:, None]


@dataclass(frozen=True)
class Scored:
    """What a classifier said of documents.

    Attributes:
        loss: mean over samples and labels, in nats. score_BL: probabilities, float64. truth_BL:
            booleans.
    """

    loss: float
    score_BL: np.ndarray
    truth_BL: np.ndarray


@torch.no_grad()
def document_scores(
    forward: Forward,
    batches: Any,
    device: torch.device,
    config: ModelConfig,
    columns_L: np.ndarray,
    share: Share | None = None,
) -> Scored:
    """Of all documents, in the order of the shards, on every rank; `columns_L` says where the
    shards' labels stand among the model's.

    Raises:
        NotFiniteError: a score is no finite number.
    """
    doc = config.symbols.doc if config.symbols else DOC
    ids, starts, logits, truth = [], [], [], []
    for batch, counted in batches:
        batch = batch.to(device)
        inputs = share_rows(batch.rows_TV, batch, share)
        logits_SL = forward(*inputs)
        if not counted:
            continue
        own = inputs[2].own
        first_S = batch.segments.cu_lengths[:-1].long()
        logits.append(logits_SL.float().cpu().numpy())
        starts.append((batch.rows_TV[first_S, 0] == doc)[own].cpu().numpy())
        ids.append(batch.place_S[own].cpu().numpy())
        truth.append(spread(batch, columns_L, config)[batch.sample_S[own]].cpu().numpy())
    parts = gather_ranks((ids, starts, logits, truth))
    joined = [np.concatenate([x for part in parts for x in part[k]]) for k in range(4)]
    order = np.argsort(joined[0], kind="stable")
    starts_B, logits_BL, truth_BL = (x[order] for x in joined[1:])
    check_finite(logits_BL)
    starts_B[0] = True
    loss = label_nats(torch.from_numpy(logits_BL), torch.from_numpy(truth_BL)).mean()
    with np.errstate(over="ignore"):  # exp of a large number is infinity, and 1 over that 0
        score_BL = 1 / (1 + np.exp(-by_document(starts_B, logits_BL)))
    return Scored(float(loss), score_BL, truth_BL[starts_B] > 0.5)


def spread(batch: Batch, columns_L: np.ndarray, config: ModelConfig) -> Tensor:
    """The batch's labels (B, L of the shards) in the columns of the model's labels."""
    assert batch.labels_BL is not None
    out = torch.zeros(len(batch.labels_BL), len(config.labels or []), device=batch.labels_BL.device)
    out[:, torch.from_numpy(columns_L).to(out.device)] = batch.labels_BL
    return out


@torch.no_grad()
def evaluate(
    forward: Forward,
    config: ModelConfig,
    shards: ShardSet,
    settings: TrainSettings,
    device: torch.device,
    micro_samples: int,
    samples: int = 0,
    rank: int = 0,
    world_size: int = 1,
    share: Share | None = None,
) -> dict[str, Any]:
    """Return the figures of a model on `shards`; of a classifier all but the loss on rank 0 alone,
    as they take long with many labels. All ranks call it together.

    `rank` of `world_size` says which of the batches are this rank's. Where ranks share sequences
    it is the number of the group, and how many groups there are.

    Raises:
        NotFiniteError: the model's outputs are no finite numbers.
    """
    reading = open_reading(config)
    batches = evaluation_batches(shards, micro_samples, rank, world_size, samples, reading)
    if config.objective != "classify":
        rate = settings.mlm.mask_rate
        predicted = predictions(forward, batches, device, config, rate, share)
        return prediction_figures(np.sum(gather_ranks(prediction_sums(predicted)), axis=0))
    columns_L = label_columns(config.labels or [], shards)
    scored = document_scores(forward, batches, device, config, columns_L, share)
    if dist.is_initialized() and dist.get_rank():
        return {"loss": scored.loss}
    return {"loss": scored.loss} | multilabel_figures(
        scored.score_BL, scored.truth_BL, config.labels or [], settings.classify.threshold
    )
