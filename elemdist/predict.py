"""Labels of text by a trained classifier: ``elemdist predict RUN FILE.jsonl``, or in a pipe.

    echo 'Wheat exports rose.' | elemdist predict RUN

Every document becomes a line of JSON: id, labels, and their scores. Lines are read by a thread, so
that what has arrived is answered as soon as no more comes.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from elemdist.errors import UserError
from elemdist.json_text import json_text
from elemdist.predict_settings import PredictSettings
from elemdist.text_input import Document, documents, open_lines
from elemdist.trained import CutSamples, TextClassifier

PAUSE_S = 0.05  # without another line, after which those that are there are answered


def run(settings: PredictSettings, cut: CutSamples) -> int:
    """``elemdist predict``; the exit code."""
    settings.check()
    run_dir, *paths = settings.inputs
    for path in paths:
        if path != "-":
            open_lines(path).close()  # said before the model is loaded
    model = TextClassifier(run_dir, settings.tokenizer, settings.device, cut, settings.overlong)
    at = settings.threshold
    at = model.settings.classify.threshold if at is None else at
    skipped = 0
    for batch in batches(paths, settings):
        wrong = [one for one in batch if isinstance(one, UserError)]
        stops = wrong[:1] if settings.on_error == "stop" else []
        before = batch[: batch.index(stops[0])] if stops else batch
        good = [one for one in before if isinstance(one, Document)]
        score_BL = model.scores([one.text for one in good], settings.micro_samples)
        for one, score_L in zip(good, score_BL, strict=True):
            told = answer(one, score_L, model.labels, at, settings)
            print(json_text(told))
        sys.stdout.flush()
        if stops:
            raise stops[0]
        for problem in wrong:
            print(f"elemdist predict: left out: {problem}", file=sys.stderr)
        skipped += len(wrong)
    if skipped:
        print(f"elemdist predict: {skipped} lines were left out", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class Ended:
    """Nothing more can be read; for this reason, or because there is no more."""

    reason: BaseException | None = None


def batches(paths: list[str], settings: PredictSettings) -> Iterator[list[Document | UserError]]:
    """What has arrived, in order, `micro_samples` at most. Raises UserError where a file cannot be
    read."""
    most = settings.micro_samples
    # As far as the reader may be ahead.
    lines: queue.Queue[Document | UserError | Ended] = queue.Queue(2 * most)

    def read() -> None:
        try:
            for one in documents(paths, settings.format, settings.text_field):
                lines.put(one)
            lines.put(Ended())
        except BaseException as error:  # handed to the one who asks
            lines.put(Ended(error))

    threading.Thread(target=read, name="reader", daemon=True).start()
    batch: list[Document | UserError] = []
    while True:
        try:
            one = lines.get(timeout=PAUSE_S if batch else None)
        except queue.Empty:
            yield batch
            batch = []
            continue
        if isinstance(one, Ended):
            if batch:
                yield batch
            if one.reason is not None:
                raise one.reason
            return
        batch.append(one)
        if len(batch) == most:
            yield batch
            batch = []


def answer(
    one: Document, score_L: np.ndarray, labels: list[str], at: float, settings: PredictSettings
) -> dict[str, Any]:
    """The line of a document: labels and scores, the likeliest first."""
    order_L = np.argsort(-score_L, kind="stable")
    predicted = [labels[place] for place in order_L if score_L[place] >= at]
    shown = order_L[: settings.top or len(predicted)]
    scores = {labels[place]: round(float(score_L[place]), 6) for place in shown}
    known = one.fields.get(settings.id_field, one.number)
    return {"id": known, "labels": predicted, "scores": scores}
