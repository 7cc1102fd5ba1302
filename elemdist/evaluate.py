"""Figures of a checkpoint on held-out shards: ``elemdist eval RUN --data SHARDS``.

Masked or next materials: bits per byte. Classification: F1, precision, recall, ROC AUC and average
precision, micro and macro, per document: a document that was cut into several samples counts
once, by the mean of their logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from elemdist.config import EvalSettings, TrainSettings
from elemdist.data import Batch, evaluation_batches
from elemdist.errors import UserError
from elemdist.geometry import check_geometry, label_columns
from elemdist.inputs import open_reading
from elemdist.metrics import eval_line
from elemdist.model import Model
from elemdist.model_config import ModelConfig
from elemdist.objectives import NATS_PER_BIT, label_nats, share_batch, share_rows, targets_of
from elemdist.remote import public
from elemdist.rows import DOC
from elemdist.sequence_parallel import Share, once
from elemdist.shards import ShardSet

EVAL_SEED = 0x5EED  # the masks of an evaluation are always the same


def gather_ranks(part: Any) -> list[Any]:
    """The parts of all ranks, in order."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [part]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


Forward = Callable[..., Any]


def prediction_figures(
    forward: Forward,
    batches: Any,
    device: torch.device,
    config: ModelConfig,
    mask_rate: float,
    share: Share | None = None,
) -> dict[str, Any]:
    """Bits per byte over the predicted materials, and the share of them that is right to the
    letter (each byte the likeliest given those before it, where they are predicted in turn)."""
    nats = correct = materials = text_bytes = 0.0
    for batch, counted in batches:
        batch = batch.to(device)
        targets = targets_of(batch, config, mask_rate, EVAL_SEED)
        nats_M, correct_M = forward(*share_batch(batch, targets, share))
        if not counted:
            continue
        nats += nats_M.double().sum().item()
        correct += correct_M.sum().item()
        materials += len(nats_M)
        text_bytes += once(targets.text_bytes.item(), share)
    parts = gather_ranks(np.array([nats, correct, materials, text_bytes]))
    nats, correct, materials, text_bytes = np.sum(parts, axis=0).tolist()
    loss = nats / max(1.0, text_bytes)
    return {
        "loss": loss,
        "bits_per_byte": loss / NATS_PER_BIT,
        "material_accuracy": correct / max(1.0, materials),
        "materials": int(materials),
        "bytes": int(text_bytes),
    }


def by_document(starts_B: np.ndarray, logits_BL: np.ndarray) -> np.ndarray:
    """Mean logits per document of consecutive samples; `starts_B` tells where one begins."""
    document_B = np.cumsum(starts_B) - 1
    sums = np.zeros((document_B[-1] + 1, logits_BL.shape[1]))
    np.add.at(sums, document_B, logits_BL)
    return sums / np.bincount(document_B)[:, None]


def classify_figures(
    forward: Forward,
    batches: Any,
    device: torch.device,
    config: ModelConfig,
    columns_L: np.ndarray,
    threshold: float,
    share: Share | None = None,
) -> dict[str, Any]:
    """Multilabel figures per document; `columns_L` says where the shards' labels stand."""
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
    starts_B[0] = True
    loss = label_nats(torch.from_numpy(logits_BL), torch.from_numpy(truth_BL)).mean()
    figures = multilabel_figures(
        1 / (1 + np.exp(-by_document(starts_B, logits_BL))),
        truth_BL[starts_B] > 0.5,
        config.labels or [],
        threshold,
    )
    return {"loss": float(loss), **figures}


def spread(batch: Batch, columns_L: np.ndarray, config: ModelConfig) -> Tensor:
    """The batch's labels (B, L of the shards) in the columns of the model's labels."""
    assert batch.labels_BL is not None
    out = torch.zeros(len(batch.labels_BL), len(config.labels or []), device=batch.labels_BL.device)
    out[:, torch.from_numpy(columns_L).to(out.device)] = batch.labels_BL
    return out


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where whole is 0."""
    return part / np.maximum(whole, 1)


def areas(truth_BL: np.ndarray, score_BL: np.ndarray) -> dict[str, float | None]:
    """Micro and macro ROC AUC and average precision, macro over the labels with both a positive
    and a negative document; None where there is no such label."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    both = np.flatnonzero(truth_BL.any(0) & ~truth_BL.all(0))
    result: dict[str, float | None] = {}
    for name, score in (("roc_auc", roc_auc_score), ("average_precision", average_precision_score)):
        micro = float(score(truth_BL.ravel(), score_BL.ravel())) if len(both) else None
        each = [score(truth_BL[:, k], score_BL[:, k]) for k in both]
        result |= {f"micro_{name}": micro, f"macro_{name}": float(np.mean(each)) if each else None}
    return result


def multilabel_figures(
    score_BL: np.ndarray, truth_BL: np.ndarray, labels: list[str], threshold: float
) -> dict[str, Any]:
    """Micro and macro F1, precision, recall, ROC AUC and average precision, and per label.

    `score_BL` are probabilities, `truth_BL` booleans. Macro figures are means over the labels
    that occur in `truth_BL`; a figure without meaning (no positives at all) is None.
    """
    guess_BL = score_BL >= threshold
    correct_L = (truth_BL & guess_BL).sum(0)
    guessed_L, true_L = guess_BL.sum(0), truth_BL.sum(0)
    each = {
        "precision": ratio(correct_L, guessed_L),
        "recall": ratio(correct_L, true_L),
        "f1": ratio(2 * correct_L, guessed_L + true_L),
    }
    correct, guessed, true = correct_L.sum(), guessed_L.sum(), true_L.sum()
    present = true_L > 0
    result: dict[str, Any] = {
        "documents": len(truth_BL),
        "threshold": threshold,
        "micro_f1": float(ratio(2 * correct, guessed + true)),
        "micro_precision": float(ratio(correct, guessed)),
        "micro_recall": float(ratio(correct, true)),
    }
    for name, figure_L in each.items():
        result[f"macro_{name}"] = float(figure_L[present].mean()) if present.any() else None
    result |= areas(truth_BL, score_BL)
    result["labels_present"] = int(present.sum())
    result["labels"] = {
        label: {
            "documents": int(true_L[k]),
            "predicted": int(guessed_L[k]),
            "correct": int(correct_L[k]),
            **{name: float(figure_L[k]) for name, figure_L in each.items()},
        }
        for k, label in enumerate(labels)
    }
    return result


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
    """The figures of a model on `shards`, the same on every rank. All ranks call it together.

    `rank` of `world_size` says which of the batches are this rank's. Where ranks share sequences
    it is the number of the group, and how many groups there are.
    """
    reading = open_reading(config)
    batches = evaluation_batches(shards, micro_samples, rank, world_size, samples, reading)
    if config.objective != "classify":
        rate = settings.mlm.mask_rate
        return prediction_figures(forward, batches, device, config, rate, share)
    columns_L = label_columns(config.labels or [], shards)
    return classify_figures(
        forward, batches, device, config, columns_L, settings.classify.threshold, share
    )


def run(settings: EvalSettings) -> int:
    """``elemdist eval``: prints or writes the figures as JSON; the exit code."""
    from elemdist import checkpoint
    from elemdist.engine import choose_device, use_threads

    settings.check()
    assert settings.run is not None
    assert settings.data is not None
    if settings.out and not Path(settings.out).resolve().parent.is_dir():
        raise UserError(f"out: the folder of {settings.out} does not exist")
    shards = ShardSet(settings.data)
    shards.verify()
    chosen = checkpoint.find(settings.run)
    config = chosen.config()
    if settings.tokenizer is not None:
        if config.symbols is None:
            raise UserError(f"tokenizer: the input of {settings.run} is {config.model.input}")
        config.model.tokenizer = settings.tokenizer
    check_geometry(config, shards)
    trained = chosen.settings()
    if settings.threshold is not None:
        trained.classify.threshold = settings.threshold
    device = choose_device(settings.device, 0)
    use_threads(1)
    model = Model(config)
    chosen.load_weights(model, as_trained=True)
    model.eval().to(device)
    figures = evaluate(
        model, config, shards, trained, device, settings.micro_samples, settings.samples
    )
    facts = {"checkpoint": str(chosen.path), "step": chosen.step, "data": public(settings.data)}
    text = json.dumps({**facts, "objective": config.objective, **figures}, indent=2)
    if settings.out:
        checkpoint.write_atomically(Path(settings.out), text + "\n")
        print(f"{eval_line(None, figures)}  {settings.out}")
    else:
        print(text)
    return 0
