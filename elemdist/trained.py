"""A trained model, ready to be asked: out of a run folder or a checkpoint."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from elemdist import checkpoint
from elemdist.batch import unpad
from elemdist.data import Batch
from elemdist.engine import choose_device, use_threads
from elemdist.errors import UserError
from elemdist.evaluate import document_scores
from elemdist.inputs import open_reading, open_symbols

# What a model of another objective cannot do, and which can.
ONLY = {
    "clm": "only a decoder can go on with a text; train one with --model.backbone decoder"
    " --objective clm",
    "classify": "only a classifier predicts labels; train one with --objective classify",
}
# (texts as UTF-8, n, v, segmenter, overlong, tokenizer) -> samples (B, N, V) uint8
CutSamples = Callable[[Sequence[bytes], int, int, str, str, str | None], np.ndarray]


class Trained:
    """The newest checkpoint of a run, with its model on a device.

    Args:
        run: a run folder, or a checkpoint's.
        tokenizer: of a subword model; None: where it was in training.
        device: auto, cpu or cuda.
        objective: that it must have; None: any.

    Attributes:
        checkpoint, config, settings, model, device.

    Raises:
        UserError: there is no checkpoint, it cannot be used or has another objective, or the
            tokenizer is another.
    """

    def __init__(
        self, run: str, tokenizer: str | None, device: str, objective: str | None = None
    ) -> None:
        with contextlib.redirect_stdout(sys.stderr):  # what it tells is no result
            self.checkpoint = checkpoint.find(run)
        self.config, self.settings = self.checkpoint.config(), self.checkpoint.settings()
        if objective is not None and self.config.objective != objective:
            raise UserError(
                f"{run}: its objective is {self.config.objective}, and {ONLY[objective]}"
            )
        if tokenizer is not None:
            if self.config.symbols is None:
                raise UserError(f"tokenizer: the input of {run} is {self.config.model.input}")
            self.config.model.tokenizer = tokenizer
        used = self.config.model.tokenizer
        if self.config.symbols is not None and open_symbols(used) != self.config.symbols:
            raise UserError(f"tokenizer: {used} is not the one that the model was trained with")
        self.device = choose_device(device, 0)
        use_threads(1)
        self.model = self.checkpoint.model(self.config)
        self.model.eval().to(self.device)


class TextClassifier(Trained):
    """A trained classifier that takes text.

    Args:
        cut: how text becomes samples.
        overlong: split: of a document longer than n rows all parts are read, and the mean of their
            logits counts, as in evaluation. truncate: its first n rows.

    Raises:
        UserError: it is no classifier; see Trained.
    """

    def __init__(
        self, run: str, tokenizer: str | None, device: str, cut: CutSamples, overlong: str
    ) -> None:
        super().__init__(run, tokenizer, device, "classify")
        self.labels = self.config.labels or []
        self.cut, self.overlong = cut, overlong
        self.reading = open_reading(self.config)

    def scores(self, texts: Sequence[str], micro_samples: int) -> np.ndarray:
        """Probabilities of the labels of each text, (B, L) float64, `micro_samples` at a time."""
        if not texts:
            return np.zeros((0, len(self.labels)))
        config = self.config
        data = [text.encode("utf-8", "replace") for text in texts]
        used = (config.n, config.v, config.segmenter, self.overlong, config.model.tokenizer)
        rows_BNV = self.cut(data, *used)
        every_L = np.arange(len(self.labels))
        batches = self.batches(rows_BNV, micro_samples)
        return document_scores(self.model, batches, self.device, config, every_L).score_BL

    def batches(self, rows_BNV: np.ndarray, micro_samples: int) -> Iterator[tuple[Batch, int]]:
        """Samples (B, N, V) as batches, each with how many samples it has."""
        for first in range(0, len(rows_BNV), micro_samples):
            part = rows_BNV[first : first + micro_samples]
            nothing_BL = np.zeros((len(part), len(self.labels)), np.uint8)
            places = np.arange(first, first + len(part))
            yield unpad(part, nothing_BL, places, self.reading), len(part)
