"""What `elemdist sample` can be told. Here, as its help loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from elemdist.errors import UserError
from elemdist.json_types import Amount, Count, CountOrNone, Seed, Share, check_types


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
    materials: Count = 200
    """Materials to write at most (input byte: bytes, canine: characters, subword: tokens). Should
    the last one end within a character, the rest of that character follows."""
    documents: Count = 1
    """Documents to write, each from the same prompt; a line of three dashes parts them."""
    temperature: Amount = 1.0
    """Divisor of the logits: below 1 the likely becomes likelier. 0: always the likeliest byte."""
    top_k: CountOrNone = 0
    """Choose among the so many likeliest bytes (subword: tokens); 0: among all."""
    top_p: Share = 1.0
    """Choose among the likeliest bytes (subword: tokens) that together have this probability."""
    seed: Seed = 1
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
        check_types(self)
