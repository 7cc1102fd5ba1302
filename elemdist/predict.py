"""Labels of text by a trained classifier: ``elemdist predict RUN FILE.jsonl``, or in a pipe.

    echo 'Wheat exports rose.' | elemdist predict RUN

Every document becomes a line of JSON: id, labels, and their scores. Documents are read by a thread,
so that what has arrived is answered as soon as no more comes.
"""

from __future__ import annotations

import math
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from elemdist.errors import UserError
from elemdist.json_text import json_text
from elemdist.output import write_out
from elemdist.predict_settings import PredictSettings
from elemdist.text_input import Document, Documents, OpenDocuments, for_verb, tell_losses
from elemdist.trained import CutSamples, TextClassifier

READING = (  # settings that `elemdist shard` has as input.*
    "format", "text_field", "id_field", "members", "max_document_mb", "max_record_mb",
)  # fmt: skip
PAUSE_S = 0.05  # without another document, after which those that are there are answered


def run(settings: PredictSettings, cut: CutSamples, open_documents: OpenDocuments) -> int:
    """Run ``elemdist predict``; return the exit code."""
    settings.check()
    run_dir, *paths = settings.inputs
    paths = paths or ["-"]
    try:
        documents = open_documents(  # what cannot be read is said before the model is loaded
            paths,
            settings.on_invalid,
            settings.strict,
            document="line",
            **{name: getattr(settings, name) for name in READING},
        )
    except UserError as error:
        raise for_verb(error) from None
    model = TextClassifier(run_dir, settings.tokenizer, settings.device, cut, settings.overlong)
    at = settings.threshold
    at = model.settings.classify.threshold if at is None else at
    answered = 0
    for batch in batches(documents, settings.micro_samples):
        answered += answer_batch(batch, model, at, settings)
    tell_losses("predict", documents)
    if not answered:
        shown = ", ".join("standard input" if path == "-" else path for path in paths[:3])
        raise UserError(f"{shown}{', ...' if len(paths) > 3 else ''}: no documents in it")
    return 0


def answer_batch(
    batch: list[Document | UserError], model: TextClassifier, at: float, settings: PredictSettings
) -> int:
    """Print the lines of some documents; return how many. Raises the error of one that cannot be
    taken, after those before it, unless such are skipped."""
    good: list[Document] = []
    stop: UserError | None = None
    for one in batch:
        if not isinstance(one, UserError):
            good.append(one)
        elif settings.on_error == "stop":
            stop = for_verb(one)
            break
        else:
            print(f"elemdist predict: left out: {for_verb(one)}", file=sys.stderr)
    score_BL = model.scores([one.text for one in good], settings.micro_samples)
    pairs = zip(good, score_BL, strict=True)
    lines = [json_text(answer(*pair, model.labels, at, settings.top)) + "\n" for pair in pairs]
    write_out("".join(lines))
    if stop is not None:
        raise stop
    return len(good)


@dataclass(frozen=True)
class Ended:
    """Nothing more can be read; for this reason, or because there is no more."""

    reason: BaseException | None = None


def batches(documents: Documents, most: int) -> Iterator[list[Document | UserError]]:
    """Yield what has arrived, in order, `most` at a time. Raises UserError where a file cannot be
    read."""
    # As far as the reader may be ahead.
    coming: queue.Queue[Document | UserError | Ended] = queue.Queue(2 * most)

    def read() -> None:
        try:
            for one in documents:
                coming.put(one)
            coming.put(Ended())
        except BaseException as error:  # handed to the one who asks
            coming.put(Ended(error))

    threading.Thread(target=read, name="reader", daemon=True).start()
    batch: list[Document | UserError] = []
    while True:
        try:
            one = coming.get(timeout=PAUSE_S if batch else None)
        except queue.Empty:
            yield batch
            batch = []
            continue
        if isinstance(one, Ended):
            if batch:
                yield batch
            if isinstance(one.reason, UserError):
                raise for_verb(one.reason)
            if one.reason is not None:
                raise one.reason
            return
        batch.append(one)
        if len(batch) == most:
            yield batch
            batch = []


def answer(
    one: Document, score_L: np.ndarray, labels: list[str], at: float, top: int
) -> dict[str, Any]:
    """Return the line of a document: its id, or number where it has none, the labels whose score
    reaches `at`, and the scores of these, or of the `top` likeliest, the likeliest first."""
    order_L = np.argsort(-score_L, kind="stable")
    predicted = [labels[place] for place in order_L if score_L[place] >= at]
    shown = order_L[: top or len(predicted)]
    scores = {labels[place]: round(float(score_L[place]), 6) for place in shown}
    nameless = one.id is None or (isinstance(one.id, float) and not math.isfinite(one.id))
    return {"id": one.number if nameless else one.id, "labels": predicted, "scores": scores}
