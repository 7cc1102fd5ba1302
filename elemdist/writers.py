"""What is chosen out of a decoder's predictions, and the text that it makes.

Bytes are chosen so that the text is always valid UTF-8: only from those that can follow.
Shape suffixes: see elemdist/rows.py; E values of an element.
"""

from __future__ import annotations

import itertools
from typing import Protocol

import torch
from torch import Tensor, nn

from elemdist.evaluate import check_finite
from elemdist.heads import generate
from elemdist.inputs import open_tokenizer
from elemdist.model_config import ModelConfig
from elemdist.rows import DOC, ELEMENTS, FIRST_SPECIAL, PAD
from elemdist.sample_settings import SampleSettings

# The range of a character's second byte, where it is not that of every other one.
SECOND = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}


class Choice:
    """Chooses among the values that are allowed, by their logits. Raises NotFiniteError where one
    is NaN or infinite."""

    def __init__(self, settings: SampleSettings) -> None:
        self.temperature = settings.temperature
        self.top_k, self.top_p = settings.top_k, settings.top_p
        # On the CPU, whatever the model runs on, so that a seed means the same everywhere.
        self.generator = torch.Generator().manual_seed(settings.seed % (1 << 63))

    def __call__(self, logits_E: Tensor, allowed_E: Tensor) -> int:
        logits_E = logits_E.float().cpu()
        check_finite(logits_E.numpy())
        logits_E = logits_E.masked_fill(~allowed_E, -torch.inf)
        if self.temperature == 0:
            return int(logits_E.argmax())
        # The largest becomes 0 first, so that no division overflows.
        scaled_E = (logits_E - logits_E.max()) / max(self.temperature, 1e-30)
        share_E, value_E = scaled_E.softmax(0).sort(descending=True)
        share_E = share_E[: self.top_k or None]
        share_E = share_E / share_E.sum()
        # Those before which less than top_p is covered: the first one always.
        share_E = share_E * (share_E.cumsum(0) - share_E < self.top_p)
        return int(value_E[torch.multinomial(share_E, 1, generator=self.generator)])


class Utf8:
    """Which bytes can follow in UTF-8, by the well-formed sequences of the Unicode Standard
    (chapter 3, table 3-7)."""

    def __init__(self) -> None:
        self.missing = 0  # bytes of the present character
        self.range = (0, 0)  # of its next byte

    def allowed(self) -> Tensor:
        """(256,) bool."""
        allowed_E = torch.zeros(ELEMENTS, dtype=torch.bool)
        for low, high in [self.range] if self.missing else [(0, 0x7F), (0xC2, 0xF4)]:
            allowed_E[low : high + 1] = True
        return allowed_E

    def take(self, byte: int) -> None:
        """`byte`, an allowed one, follows."""
        if self.missing:
            self.missing, self.range = self.missing - 1, (0x80, 0xBF)
        else:
            self.missing = (byte >= 0xC2) + (byte >= 0xE0) + (byte >= 0xF0)
            self.range = SECOND.get(byte, (0x80, 0xBF))


class Writer(Protocol):
    """Makes rows out of a decoder's outputs, and text out of the rows."""

    @property
    def whole(self) -> bool:
        """Whether the rows so far end with a whole character."""

    def row(self, head: nn.Module, x_1W: Tensor, table: Tensor | None) -> Tensor:
        """The next row, (1, V)."""

    def text(self, row_1V: Tensor) -> str | None:
        """What the row adds to the text, whole characters only; None: the document ends."""


class ByteWriter:
    """Rows of bytes. A character may go on in the next row; the end mark and the end of the
    document come between characters only. A row of input canine is one character."""

    def __init__(self, choose: Choice, config: ModelConfig) -> None:
        self.choose, self.utf8, self.held = choose, Utf8(), b""
        self.character = config.model.input == "canine"

    @property
    def whole(self) -> bool:
        """Whether no character is begun and unfinished."""
        return not self.utf8.missing

    def row(self, head: nn.Module, x_1W: Tensor, table: Tensor | None) -> Tensor:
        """As Writer.row."""
        slots = itertools.count()

        def choose(logits_1E: Tensor) -> Tensor:
            allowed_E, slot = self.utf8.allowed(), next(slots)
            if slot and self.whole and self.character:
                allowed_E[:] = False
            # A row that starts with the end mark would be padding.
            allowed_E[PAD if slot else DOC] = self.whole
            byte = self.choose(logits_1E[0], allowed_E)
            if byte < FIRST_SPECIAL:
                self.utf8.take(byte)
            return torch.tensor([byte])

        return generate(head, x_1W, table, choose)

    def text(self, row_1V: Tensor) -> str | None:
        """As Writer.text."""
        row = bytes(row_1V[0].tolist())
        if row[0] == DOC:
            return None
        self.held += row.rstrip(bytes([PAD]))
        if not self.whole:  # its first bytes wait for the others
            return ""
        text, self.held = self.held.decode(), b""
        return text


class TokenWriter:
    """Rows of one token of input subword."""

    whole = True  # nothing says which token would complete a character

    def __init__(
        self, choose: Choice, config: ModelConfig, path: str | None, prompt: list[int]
    ) -> None:
        from tokenizers.decoders import DecodeStream

        assert config.symbols is not None
        self.choose, self.end = choose, config.symbols.doc
        self.tokenizer = open_tokenizer(path)
        added = self.tokenizer.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special}
        text = set(self.tokenizer.get_vocab().values()) - special
        self.allowed_E = torch.zeros(config.elements, dtype=torch.bool)
        self.allowed_E[[*text, self.end]] = True
        self.stream = DecodeStream(skip_special_tokens=True)
        for number in prompt:  # whether a space stands before the first token hangs on it
            if number in text:
                self.stream.step(self.tokenizer, number)

    def row(self, head: nn.Module, x_1W: Tensor, table: Tensor | None) -> Tensor:
        """As Writer.row."""
        logits_E = head(x_1W, table)[0, 0]
        number = self.choose(logits_E, self.allowed_E)
        return torch.tensor([[number]], dtype=torch.int32, device=x_1W.device)

    def text(self, row_1V: Tensor) -> str | None:
        """As Writer.text."""
        number = int(row_1V)
        return None if number == self.end else self.stream.step(self.tokenizer, number) or ""
