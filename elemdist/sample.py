"""Sampling: a decoder goes on with a text, ``elemdist sample RUN --prompt TEXT``.

elemdist/writers.py says how bytes, or tokens, are chosen.
Shape suffixes: see elemdist/rows.py; T rows read at once, P rows read before.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from elemdist.errors import UserError
from elemdist.inputs import open_tokenizer
from elemdist.model import Model
from elemdist.model_config import ModelConfig
from elemdist.os_errors import reason_of
from elemdist.output import write_out
from elemdist.rows import DOC, special_row
from elemdist.sample_settings import SampleSettings
from elemdist.trained import Trained
from elemdist.writers import ByteWriter, Choice, TokenWriter, Writer

MOST_BYTES = 1 << 24  # of a prompt
READ_AT_ONCE = 512  # rows of a prompt, so that no mask grows with the square of its length

CutRows = Callable[[bytes, int, str, str | None], np.ndarray]


class Context:
    """What a decoder has read of a document, as the keys and values of every block: one more row
    costs no more than its own projections and a product with the keys before it.

    The model was trained on segments of so many positions and no more. When they are taken, the
    last half of the rows is read again as a segment of its own; over a long text every row is
    computed twice.
    """

    def __init__(self, model: Model) -> None:
        self.encoder, self.most = model.encoder, model.config.positions
        self.rows_PV: Tensor | None = None
        self.past: list[tuple[Tensor, Tensor] | None] = [None] * model.config.model.layers

    def read(self, rows_TV: Tensor) -> Tensor:
        """The outputs (T, W) of the next T rows; there must be room for them."""
        outputs = []
        for part_TV in rows_TV.split(READ_AT_ONCE):
            outputs.append(self.read_part(part_TV))
            known = [] if self.rows_PV is None else [self.rows_PV]
            self.rows_PV = torch.cat([*known, part_TV])
        return torch.cat(outputs)

    def read_part(self, rows_TV: Tensor) -> Tensor:
        """Takes rows (T, V) in behind those before; the vectors (T, W) of them."""
        first = 0 if self.rows_PV is None else len(self.rows_PV)
        position_T = torch.arange(first, first + len(rows_TV), device=rows_TV.device)
        x_TW, turn = self.encoder.embed(rows_TV, position_T), self.encoder.turn(position_T)
        for number, block in enumerate(self.encoder.each_block()):
            seen_TW = x_TW if block.post_norm else block.attention_norm(x_TW)
            q, k, v = block.project(seen_TW, turn)
            past = self.past[number]
            if past is not None:
                k, v = torch.cat([past[0], k]), torch.cat([past[1], v])
            self.past[number] = k[-block.window :], v[-block.window :]  # all with window 0
            x_THD = attend(q, k, v, block.window)
            x_TW = block.finish(x_TW, block.out(x_THD.flatten(-2)))
        return self.encoder.final_norm(x_TW)

    def make_room(self) -> None:
        """Sees to it that one more row can be read."""
        if self.rows_PV is not None and len(self.rows_PV) == self.most:
            kept_TV = self.rows_PV[self.most - self.most // 2 :]
            self.rows_PV, self.past = None, [None] * len(self.past)
            if len(kept_TV):
                self.read(kept_TV)


def attend(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, window: int) -> Tensor:
    """Causal attention of T rows, (T, H, D), that are the last ones of the P + T with keys and
    values; with a window, of each to itself and so many before it."""
    past = len(k_THD) - len(q_THD)
    place_T = torch.arange(past, len(k_THD), device=q_THD.device).unsqueeze(1)
    behind_TK = place_T - torch.arange(len(k_THD), device=q_THD.device)
    seen_TK = (behind_TK >= 0) & (behind_TK <= (window or len(k_THD)))
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THD, k_THD, v_THD))
    return F.scaled_dot_product_attention(q, k, v, seen_TK).squeeze(0).transpose(0, 1)


def write(model: Model, prompt_TV: Tensor, writer: Writer, materials: int) -> Iterator[str]:
    """The text that follows `prompt_TV` (T, V), whose first row is as a rule DOC, piece by piece
    until the document ends, or `materials` rows and the character that the last one begins."""
    table = model.table
    with torch.no_grad():
        context = Context(model)
        x_1W = context.read(prompt_TV)[-1:]
        for number in itertools.count(1):
            row_1V = writer.row(model.head, x_1W, table)
            text = writer.text(row_1V)
            if text is None:
                return
            yield text
            if number >= materials and writer.whole:
                return
            context.make_room()
            x_1W = context.read(row_1V)[-1:]


def read_prompt(settings: SampleSettings) -> str:
    """Return the prompt. Raises UserError on a file that cannot be read, is not valid UTF-8 or has
    over MOST_BYTES."""
    path = settings.prompt_file
    if path is None:
        return settings.prompt
    try:
        with open(path, "rb") as file:  # or a pipe of the shell's
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UserError(f"prompt_file: {path} has over {MOST_BYTES:,} bytes; give its end only")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        told = f"byte {error.start} is 0x{data[error.start]:02x}; save it as UTF-8"
        raise UserError(f"prompt_file: {path} is not valid UTF-8, {told}") from None
    except OSError as error:
        raise UserError(f"prompt_file: cannot read {path}: {reason_of(error)}") from None
    except ValueError as error:  # a NUL in the path
        raise UserError(f"prompt_file: cannot read {path}: {error}") from None


def prompt_rows(config: ModelConfig, prompt: str, tokenizer: str | None, cut: CutRows) -> Tensor:
    """The rows that a model reads of a document that begins with `prompt`, the DOC row included:
    (T, V) uint8, or int32 of input subword. Raises UserError as `cut` does."""
    if config.symbols is not None:
        ids = open_tokenizer(tokenizer).encode(prompt, add_special_tokens=False).ids
        return torch.tensor([config.symbols.doc, *ids], dtype=torch.int32).unsqueeze(1)
    rows_TV = [special_row(DOC, config.slots)[None]]
    if prompt:
        segmenter = {"byte": "byte", "canine": "char"}.get(config.model.input, config.segmenter)
        rows_TV.append(cut(prompt.encode(), config.slots, segmenter, tokenizer))
    return torch.from_numpy(np.concatenate(rows_TV))


def run(settings: SampleSettings, cut: CutRows) -> int:
    """``elemdist sample``: writes the text to standard output as it comes; the exit code.

    `cut(text, v, segmenter, tokenizer)` cuts UTF-8 into rows (T, v) uint8.
    """
    settings.check()
    prompt = read_prompt(settings)
    assert settings.run is not None
    trained = Trained(settings.run, settings.tokenizer, settings.device, "clm")
    model, config = trained.model, trained.config
    tokenizer = config.model.tokenizer
    prompt_TV = prompt_rows(config, prompt, tokenizer, cut)
    if len(prompt_TV) > config.positions:
        half = max(1, config.positions // 2)
        print(
            f"the prompt has {len(prompt_TV)} rows, the model {config.positions} positions: it"
            f" reads the last {half} of them",
            file=sys.stderr,
        )
        prompt_TV = prompt_TV[-half:]
    prompt_TV = prompt_TV.to(trained.device)
    choose = Choice(settings)
    for number in range(settings.documents):
        write_out("---\n" if number else "")
        writer: Writer = ByteWriter(choose, config)
        if config.symbols is not None:
            writer = TokenWriter(choose, config, tokenizer, prompt_TV[:, 0].tolist())
        for text in write(model, prompt_TV, writer, settings.materials):
            write_out(text)
        write_out("\n")
    return 0
