"""Text to rows of bytes, without a vocabulary: what a tokenizer is to other models.

A material, say a word, is a row of v bytes, with 0xFF in the slots it leaves. A sequence starts
with a row for the document. Bytes that UTF-8 never contains stand for all that is no text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BatchEncoding
from transformers.utils import cached_file

PAD, MASK, DOC, SEP = 0xFF, 0xFE, 0xFD, 0xFC
FIRST_SPECIAL = SEP
# CANINE's code points for them, Unicode's private ones, and one for a character that was cut.
CANINE_CODES = {PAD: 0, DOC: 0xE000, SEP: 0xE001, MASK: 0xE003}
CUT_CHARACTER = 0xE005
CONFIG = "tokenizer_config.json"
# Letters and digits with the one space behind them; white space; one and the same punctuation mark;
# any other character by itself. {alone}: the characters that are in no word.
WORDS = r"[^{alone}\t-\r !-/:-@\[-`{{-~]+ ?|[\t-\r ]+|([!-/:-@\[-`{{-~])\1*|."


class ElemdistTokenizer:
    """Cuts text as the model's training data were cut.

    Args:
        n: rows of a sequence at most, the document's included; the rest of a text is lost.
        v: bytes of a row.
        segmenter: word, char or byte: what a material is.
        input: elementwise, byte or canine: what a position of the model is.
        alone: for words, ranges of code points that are no part of one: [[first, last], ...].
    """

    model_input_names: ClassVar = ["input_ids", "attention_mask"]
    padding_side = "right"
    is_fast = False

    def __init__(
        self,
        n: int,
        v: int,
        segmenter: str = "word",
        input: str = "elementwise",
        alone: list[list[int]] | None = None,
        **_: Any,
    ) -> None:
        self.n, self.v, self.segmenter, self.input = n, v, segmenter, input
        self.alone = alone or []
        self.pad_token_id = CANINE_CODES[PAD] if input == "canine" else PAD
        self.mask_token_id = CANINE_CODES[MASK] if input == "canine" else MASK
        self.model_max_length = n
        ranges = "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in self.alone)
        patterns = {"word": WORDS.format(alone=ranges), "char": ".", "byte": ".+"}
        self.material = re.compile(patterns[segmenter], re.DOTALL)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **kwargs: Any) -> ElemdistTokenizer:
        """The tokenizer of an exported folder, or of one on a hub."""
        known = {"cache_dir", "force_download", "local_files_only", "revision", "token"}
        found = cached_file(path, CONFIG, **{k: kwargs[k] for k in known & set(kwargs)})
        return cls(**json.loads(Path(str(found)).read_text(encoding="utf-8")))

    @classmethod
    def register_for_auto_class(cls, *_: Any) -> None:
        """AutoTokenizer calls this; the saved file names the class anyway."""

    def save_pretrained(self, folder: str | os.PathLike[str], **_: Any) -> tuple[str]:
        """Writes the settings and this file, and so all that :meth:`from_pretrained` needs."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = ("n", "v", "segmenter", "input", "alone")
        tree = {name: getattr(self, name) for name in names} | {
            "tokenizer_class": type(self).__name__,
            "auto_map": {"AutoTokenizer": [f"{Path(__file__).stem}.{type(self).__name__}", None]},
        }
        (folder / CONFIG).write_text(json.dumps(tree), encoding="utf-8")
        code = Path(__file__).read_text(encoding="utf-8")
        (folder / Path(__file__).name).write_text(code, encoding="utf-8")
        return (str(folder / CONFIG),)

    def rows(self, text: str) -> Iterator[bytes]:
        """The bytes of the rows of a text, v each at most, in order; joined they are the text."""
        anywhere = self.segmenter == "byte"
        text = text.encode("utf-8", "replace").decode("utf-8")
        for found in self.material.finditer(text):
            data, start = found.group().encode("utf-8"), 0
            while len(data) - start > self.v:
                end = start + self.v
                while not anywhere and end > start and data[end] & 0xC0 == 0x80:
                    end -= 1  # no character is cut
                end = end if end > start else start + self.v
                yield data[start:end]
                start = end
            yield data[start:]

    def positions(self, text: str) -> Tensor:
        """One text as the model takes it: (N, v) int64, or (N,) of input byte and canine."""
        rows = list(islice(self.rows(text), self.n - 1))
        if self.input == "elementwise":
            filled = [row.ljust(self.v, bytes([PAD])) for row in (bytes([DOC]), *rows)]
            return torch.tensor(list(b"".join(filled))).view(-1, self.v)
        data = b"".join(rows)
        if self.input == "byte":
            return torch.tensor([DOC, *data])
        codes = [ord(character) for character in data.decode("utf-8", "ignore")]
        whole = sum(len(chr(code).encode("utf-8")) for code in codes) == len(data)
        return torch.tensor([CANINE_CODES[DOC], *codes] + [CUT_CHARACTER] * (not whole))

    def __call__(self, text: str | list[str], **_: Any) -> BatchEncoding:
        """One text or several as a padded batch of tensors: input_ids (B, N, v) or (B, N), int64;
        attention_mask (B, N), 1 where there is text. Longer texts are always cut, shorter ones
        always padded: settings for that are taken and not looked at."""
        texts = [text] if isinstance(text, str) else list(text)
        return self.pad([{"input_ids": self.positions(text)} for text in texts])

    def pad(self, encoded: list[dict[str, Any]], **_: Any) -> BatchEncoding:
        """Sequences of `input_ids`, one each, as a batch."""
        sequences = [torch.as_tensor(one["input_ids"]) for one in encoded]
        padded = torch.nn.utils.rnn.pad_sequence(sequences, True, self.pad_token_id)
        lengths = torch.tensor([len(one) for one in sequences])
        mask_BN = torch.arange(padded.shape[1]) < lengths.unsqueeze(1)
        return BatchEncoding({"input_ids": padded, "attention_mask": mask_BN.long()})

    def decode(self, ids: Tensor | list[Any], **_: Any) -> str:
        """The text of one sequence, without what is no text."""
        flat = torch.as_tensor(ids).flatten().tolist()
        if self.input == "canine":
            special = {*CANINE_CODES.values(), CUT_CHARACTER}
            return "".join(chr(code) for code in flat if code not in special)
        return bytes(byte for byte in flat if byte < FIRST_SPECIAL).decode("utf-8", "replace")

    def batch_decode(self, batch: Tensor | list[Any], **options: Any) -> list[str]:
        """As decode, of several."""
        return [self.decode(ids, **options) for ids in batch]
