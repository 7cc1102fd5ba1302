"""Text to rows of bytes, without a vocabulary: what a tokenizer is to other models.

A material, say a word, is a row of v bytes, with 0xFF in the slots it leaves. A sequence starts
with a row for the document. Bytes that UTF-8 never contains stand for all that is no text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding
from transformers.utils import cached_file
from transformers.utils.logging import get_logger

from .collation_elemdist import Collator, stacked
from .options_elemdist import CALL, DECODE, LOAD, PAD_CALL, SAVE, check_options

PAD, MASK, DOC, SEP = 0xFF, 0xFE, 0xFD, 0xFC
FIRST_SPECIAL = SEP
# CANINE's code points for them, Unicode's private ones, and one for a character that was cut.
CANINE_CODES = {PAD: 0, DOC: 0xE000, SEP: 0xE001, MASK: 0xE003}
CUT_CHARACTER = 0xE005
CONFIG = "tokenizer_config.json"
CODE = ("tokenization_elemdist.py", "collation_elemdist.py", "options_elemdist.py")
logger: Any = get_logger(__name__)  # with warning_once, which its annotation lacks
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
        check_options("from_pretrained", kwargs, LOAD, all_known=False)
        hub = "cache_dir force_download local_files_only revision subfolder token"
        found = cached_file(path, CONFIG, **{k: kwargs[k] for k in hub.split() if k in kwargs})
        return cls(**json.loads(Path(str(found)).read_text(encoding="utf-8")))

    @classmethod
    def register_for_auto_class(cls, *_: Any) -> None:
        """AutoTokenizer calls this; the saved file names the class anyway."""

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> tuple[str]:
        """Write the settings and the code, and so all that :meth:`from_pretrained` needs."""
        check_options("save_pretrained", options, SAVE, all_known=False)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = ("n", "v", "segmenter", "input", "alone")
        tree = {name: getattr(self, name) for name in names} | {
            "tokenizer_class": type(self).__name__,
            "auto_map": {"AutoTokenizer": [f"{Path(__file__).stem}.{type(self).__name__}", None]},
        }
        (folder / CONFIG).write_text(json.dumps(tree), encoding="utf-8")
        for name in CODE:
            code = Path(__file__).with_name(name).read_text(encoding="utf-8")
            (folder / name).write_text(code, encoding="utf-8")
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

    def positions(self, text: str, most: int = 0, cut: bool = True) -> Tensor:
        """Return one text as the model takes it: (N, v) int64, or (N,) of input byte and canine.

        Args:
            most: rows at most, the document's included; 0: n. cut: a longer text loses its end.

        Raises:
            ValueError: the text is longer, and not to be cut.
        """
        most = most or self.n
        rows = list(islice(self.rows(text), most))
        if len(rows) == most:
            told = f"a text has more than the {most - 1} rows beside its document's"
            if not cut:
                raise ValueError(f"tokenizer: truncation=False: {told}; cut it, or let it be cut")
            logger.warning_once(f"{told}; its end is cut off")
            rows.pop()
        if self.input == "elementwise":
            filled = [row.ljust(self.v, bytes([PAD])) for row in (bytes([DOC]), *rows)]
            return torch.tensor(list(b"".join(filled))).view(-1, self.v)
        data = b"".join(rows)
        if self.input == "byte":
            return torch.tensor([DOC, *data])
        codes = [ord(character) for character in data.decode("utf-8", "ignore")]
        whole = sum(len(chr(code).encode("utf-8")) for code in codes) == len(data)
        return torch.tensor([CANINE_CODES[DOC], *codes] + [CUT_CHARACTER] * (not whole))

    def __call__(
        self, text: str | list[str], *more: Any, max_length: int | None = None, **options: Any
    ) -> BatchEncoding:
        """Return one text or several as a padded batch of tensors: input_ids (B, N, v) or (B, N),
        int64; attention_mask (B, N), 1 where there is text. Texts of more than n rows are cut,
        which is said once; shorter ones are padded to the longest.

        Args:
            text: one text or several. max_length: rows at most, up to n; of input elementwise only.
            options: those of transformers' tokenizers, where they say what is done anyway.

        Raises:
            ValueError: an option that means nothing here, or truncation=False and a long text.
        """
        if more:
            options["text_pair"] = more[0]
        texts = [text] if isinstance(text, str) or text is None else list(text)
        if len(texts) == 1 and options.get("padding") in (False, "do_not_pad"):
            del options["padding"]
        check_options("call", options, CALL)
        if not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError("tokenizer call: text is a string, or a list of one or more of them")
        if max_length is not None and (self.input != "elementwise" or not 0 < max_length <= self.n):
            raise ValueError(
                f"tokenizer call: max_length={max_length}: this model reads up to {self.n} rows;"
                " leave it out"
            )
        cut = options.get("truncation") not in (False, "do_not_truncate")
        return self.pad([{"input_ids": self.positions(one, max_length or 0, cut)} for one in texts])

    batch_encode_plus = encode_plus = __call__  # their older names

    def encode(self, text: str, *more: Any, **options: Any) -> list[Any]:
        """Return the input_ids of one text as a list. Raises ValueError as a call does."""
        ids = self(text, *more, **options)["input_ids"]
        if len(ids) > 1:
            raise ValueError("tokenizer encode: it takes one text; call the tokenizer with several")
        return ids[0].tolist()

    def pad(self, encoded: Any, max_length: int | None = None, **options: Any) -> BatchEncoding:
        """Return sequences of `input_ids`, each a mapping of its own or all in one, as a batch.

        An `attention_mask` ends a sequence where it does; `labels` of positions are padded by -100;
        all else becomes a tensor as it is. Raises ValueError where it cannot, or on an option that
        means nothing here.
        """
        check_options("pad", options | {"max_length": max_length}, PAD_CALL)
        if isinstance(encoded, Mapping):
            names = list(encoded)
            encoded = [
                dict(zip(names, one, strict=True))
                for one in zip(*(encoded[name] for name in names), strict=True)
            ]
        sequences = [self.sequence(one) for one in encoded]
        batch = {"input_ids": pad_sequence(sequences, True, self.pad_token_id)}
        lengths = torch.tensor([len(one) for one in sequences])
        mask_BN = torch.arange(batch["input_ids"].shape[1]) < lengths.unsqueeze(1)
        batch["attention_mask"] = mask_BN.long()
        for name in encoded[0]:
            if name not in batch:
                batch[name] = stacked(name, [one[name] for one in encoded], lengths.tolist())
        return BatchEncoding(batch)

    def sequence(self, encoded: Mapping[str, Any]) -> Tensor:
        """Return the positions of a sequence, without padding at its end."""
        axes = 2 if self.input == "elementwise" else 1
        ids = torch.as_tensor(encoded["input_ids"])
        mask = torch.as_tensor(encoded.get("attention_mask", 1))
        if ids.ndim == axes + 1 and len(ids) == 1:  # the call of a single text gives a batch
            ids = ids[0]
        if ids.ndim != axes:
            raise ValueError(f"tokenizer pad: input_ids of shape {list(ids.shape)} are no sequence")
        return ids[: int(mask.sum())] if mask.ndim else ids

    def special(self, ids: Tensor) -> Tensor:
        """Return which bytes, or code points, are no text: bool."""
        if self.input == "canine":
            codes = torch.tensor([*CANINE_CODES.values(), CUT_CHARACTER], device=ids.device)
            return torch.isin(ids, codes)
        return ids >= FIRST_SPECIAL

    def get_special_tokens_mask(
        self, ids: Any, ids_of_pair: None = None, already_has_special_tokens: bool = False
    ) -> list[Any]:
        """Return 1 for each of `ids` that is no text, else 0, in lists as nested as they are."""
        if ids_of_pair is not None:
            raise ValueError("tokenizer: a sequence is one text")
        return self.special(torch.as_tensor(ids)).long().tolist()

    @property
    def mask_token(self) -> NoReturn:
        """Raise AttributeError: what hides single bytes would leave the rest of a word in sight."""
        raise AttributeError(
            "an elementwise model hides whole materials and has no mask_token for one byte of them;"
            " take Trainer(data_collator=tokenizer.collator())"
        )

    def collator(self, hidden: float = 0.15) -> Collator:
        """Return what makes batches with labels of sequences: Trainer(data_collator=...).

        Args:
            hidden: share of the materials that a masked language model is to predict; 0: labels for
                a causal one.
        """
        return Collator(self, hidden)

    def decode(self, ids: Tensor | list[Any], **options: Any) -> str:
        """Return the text of one sequence, without what is no text."""
        check_options("decode", options, DECODE)
        flat_ids = torch.as_tensor(ids).flatten()
        flat = flat_ids[~self.special(flat_ids)].tolist()
        if self.input == "canine":
            return "".join(map(chr, flat))
        return bytes(flat).decode("utf-8", "replace")

    def batch_decode(self, batch: Tensor | list[Any], **options: Any) -> list[str]:
        """As decode, of several."""
        return [self.decode(ids, **options) for ids in batch]
