"""What `elemdist sample` can be told. Here, as its help loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from elemdist.config import at_least
from elemdist.errors import UserError


@dataclass
class SampleSettings:
    """Sampling"""

    run: str | None = None
    """Run folder (its newest checkpoint) or checkpoint folder, of a decoder."""
    prompt: str = ""
    """The text to go on with; empty: a document from its start. A material that the prompt begins
    is not completed: with segmenter word, end it in a space rather than within a word."""
    prompt_file: str | None = None
    """File with the prompt, UTF-8."""
    materials: int = 200
    """Materials to write at most (input byte: bytes, canine: characters, subword: tokens). Should
    the last one end within a character, the rest of that character follows."""
    documents: int = 1
    """Documents to write, each from the same prompt; a line of three dashes parts them."""
    temperature: float = 1.0
    """Divisor of the logits: below 1 the likely becomes likelier. 0: always the likeliest byte."""
    top_k: int = 0
    """Choose among the so many likeliest bytes (subword: tokens); 0: among all."""
    top_p: float = 1.0
    """Choose among the likeliest bytes (subword: tokens) that together have this probability."""
    seed: int = 1
    """Of the choices: the same seed gives the same text."""
    tokenizer: str | None = None
    """The tokenizer.json of a model of input subword, or of shards of segmenter subword;
    none: where it was in training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""

    def check(self) -> None:
        """Raises UserError on what can be said without looking at the run."""
        if not self.run:
            raise UserError("name a run: elemdist sample RUN --prompt TEXT")
        if self.prompt and self.prompt_file is not None:
            raise UserError("prompt: there is a prompt_file, too; give one of them")
        at_least(1, materials=self.materials, documents=self.documents)
        at_least(0, top_k=self.top_k, seed=self.seed)
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature: {self.temperature} is no number from 0 on")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: {self.top_p} is not in (0, 1]")
