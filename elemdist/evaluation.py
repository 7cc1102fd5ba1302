"""Figures of a checkpoint on held-out shards: ``elemdist eval RUN --data SHARDS``.

Masked or next materials: bits per byte, by source, position and length. Classification: F1,
precision, recall, ROC AUC and average precision, micro, macro and per label, with intervals,
calibration, and by how often a label was seen in training; per document: a document that was cut
into several samples counts once, by the mean of their logits.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elemdist import thresholds
from elemdist.atomic import result, write_result
from elemdist.breakdown import by_length, by_position, counted, figures_of
from elemdist.data import evaluation_batches
from elemdist.errors import UserError
from elemdist.eval_settings import EvalSettings
from elemdist.evaluate import (
    Scored,
    document_scores,
    prediction_figures,
    prediction_sums,
    predictions,
)
from elemdist.geometry import check_geometry, label_columns
from elemdist.inputs import open_reading
from elemdist.json_text import json_text
from elemdist.metrics import eval_line
from elemdist.mixture import check_filled
from elemdist.multilabel import by_frequency, calibration, label_counts, multilabel_figures
from elemdist.output import write_out
from elemdist.remote import public
from elemdist.resampling import intervals
from elemdist.shards import ShardSet
from elemdist.trained import Trained


class Judge(Trained):
    """A trained model, ready to be asked about shards. Raises UserError, see Trained."""

    def __init__(self, settings: EvalSettings) -> None:
        assert settings.run is not None
        super().__init__(settings.run, settings.tokenizer, settings.device)
        self.asked = settings

    def open(self, setting: str, path: str) -> ShardSet:
        """Open a set that `setting` names, and compare its hashes. Raises UserError where the
        model cannot read it, or it is empty."""
        shards = ShardSet(path)
        check_filled(setting, shards)
        shards.verify()
        check_geometry(self.config, shards)
        return shards

    def batches(self, shards: ShardSet, samples: int) -> Any:
        """Batches of a set, the first `samples` of it; 0: all."""
        reading = open_reading(self.config)
        return evaluation_batches(shards, self.asked.micro_samples, 0, 1, samples, reading)

    def scores(self, shards: ShardSet, samples: int = 0) -> Scored:
        """What a classifier says of the documents of the first samples; 0: of all."""
        columns_L = label_columns(self.config.labels or [], shards)
        batches = self.batches(shards, samples)
        return document_scores(self.model, batches, self.device, self.config, columns_L)

    @torch.no_grad()
    def prediction_figures(self, sources: dict[str, ShardSet]) -> dict[str, Any]:
        """Bits per byte of all sets together, of each by its name, and by position and length."""
        position = by_position(self.config.positions)
        length = by_length(max(self.config.v, self.config.slots))
        rate, sums = self.settings.mlm.mask_rate, {}
        for name, shards in sources.items():
            batches = self.batches(shards, self.asked.samples)
            told = predictions(self.model, batches, self.device, self.config, rate)
            sums[name] = prediction_sums(counted(told, position, length))
        found = prediction_figures(np.sum(list(sums.values()), axis=0))
        if not found["bytes"]:
            raise UserError(
                f"data: nothing in {', '.join(sources)} is predicted, so there are no figures: its"
                " samples are too few, or too short; name a larger set"
            )
        parts = {"by_position": position.figures(), "by_material_bytes": length.figures()}
        if len(sources) > 1:
            each = {name: figures_of(x[0], x[3], x[2]) for name, x in sums.items()}
            parts = {"by_source": each, **parts}
        return found | parts


def run(settings: EvalSettings) -> int:
    """``elemdist eval``: prints or writes the figures as JSON; the exit code."""
    settings.check()
    assert settings.run is not None
    assert settings.data is not None
    judge = Judge(settings)
    if judge.config.objective == "classify":
        if settings.more_data:
            raise UserError("more_data: a classifier is judged on one set; merge them first")
        figures = classification(judge)
    else:
        for name in ("tune_on", "train_data", "scores"):
            if getattr(settings, name):
                raise UserError(f"{name}: {settings.run} is no classifier")
        places = [("data", settings.data), *(("more_data", path) for path in settings.more_data)]
        figures = judge.prediction_figures(
            {public(path): judge.open(setting, path) for setting, path in places}
        )
    facts = {
        "checkpoint": str(judge.checkpoint.path),
        "step": judge.checkpoint.step,
        "data": public(settings.data),
        "objective": judge.config.objective,
    }
    text = json_text({**facts, **figures}, indent=2)
    if settings.out:
        write_result(settings.out, text + "\n")
        write_out(f"{eval_line(None, figures)}  {settings.out}\n")
    else:
        write_out(text + "\n")
    return 0


def classification(judge: Judge) -> dict[str, Any]:
    """All figures of a classifier. Raises UserError."""
    settings, labels = judge.asked, judge.config.labels or []
    assert settings.data is not None
    scored = judge.scores(judge.open("data", settings.data), settings.samples)
    score_BL, truth_BL = scored.score_BL, scored.truth_BL
    threshold = chosen_threshold(judge)
    each = label_counts(score_BL, truth_BL, threshold)
    figures = multilabel_figures(score_BL, truth_BL, labels, threshold, each)
    found: dict[str, Any] = {"loss": scored.loss} | figures
    found["thresholds"] = each.threshold_L.tolist()
    found |= interval_figures(scored, each.threshold_L, settings.bootstrap)
    measured = calibration(score_BL, truth_BL)
    found |= {name: measured.pop(name) for name in list(measured) if name != "bins"}
    found["calibration_bins"] = measured["bins"]
    if (count_L := training_documents(judge)) is not None:
        found["by_frequency"] = by_frequency(each, count_L)
    if settings.scores:
        write_scores(Path(settings.scores), score_BL, truth_BL, labels)
    return found


def interval_figures(scored: Scored, threshold_L: np.ndarray, count: int) -> dict[str, Any]:
    """Return the intervals by drawing the documents anew, and how many draws are left out of them,
    which is printed, too."""
    bounds, left_out = intervals(scored.score_BL, scored.truth_BL, threshold_L, count)
    for name, number in left_out.items():
        told = "left out of its interval" if bounds[name] else "so it has no interval"
        print(
            f"{name}: not defined for {number:,} of {count:,} draws of the documents, {told}",
            file=sys.stderr,
        )
    return {"intervals": bounds, **({"undefined_draws": left_out} if left_out else {})}


def chosen_threshold(judge: Judge) -> float | np.ndarray:
    """As the settings ask for: that of all labels, or (L,). Raises UserError."""
    settings = judge.asked
    if settings.thresholds == "fixed":
        stated = settings.threshold
        return judge.settings.classify.threshold if stated is None else stated
    assert settings.tune_on is not None
    held_out = judge.scores(judge.open("tune_on", settings.tune_on))
    choose = thresholds.per_label if settings.thresholds == "per_label" else thresholds.best
    return choose(held_out.score_BL, held_out.truth_BL)


def training_documents(judge: Judge) -> np.ndarray | None:
    """How many training documents have each of the model's labels, (L,) int64; None where the
    training data is not named and not where it was. Raises UserError where it is named and not
    there."""
    named = judge.asked.train_data
    path = named or judge.settings.data.train
    if path is None:
        return None
    try:
        shards = ShardSet(path)
        check_filled("train_data", shards)
        counts = shards.manifest["label_counts"] or {}
    except UserError as error:
        if named:
            raise
        told = "no figures by label frequency: the training data is not there any more"
        print(f"{told} ({error}); name it with --train-data", file=sys.stderr)
        return None
    return np.array([counts.get(label, 0) for label in judge.config.labels or []])


def write_scores(path: Path, score_BL: np.ndarray, truth_BL: np.ndarray, labels: list[str]) -> None:
    """Writes probabilities (B, L), truth (B, L) and labels (L,), whole or not at all, as arrays
    that numpy loads without pickle. Raises UserError."""
    names = np.array(labels, dtype=np.str_)
    # A zip file that cannot be written prints a traceback when it is collected.
    packed = io.BytesIO()
    np.savez(packed, probabilities=score_BL, truth=truth_BL, labels=names)
    with result(path) as file:
        file.write(packed.getbuffer())
