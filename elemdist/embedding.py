"""The embeddings: what each kind of input makes of the bytes of a row.

:class:`ElementwiseEmbedding` is the method: a material is the concatenation of the embeddings of
its bytes (Kim & Kim 2023, arXiv 2302.13475). The others are what it is compared with.
Shape suffixes: see elemdist/rows.py; C = W / V.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elemdist.errors import UserError, nearest
from elemdist.materials import distinct, most_frequent, shuffled, uncased
from elemdist.model_config import CHARACTER_BYTES, ModelConfig, check_width
from elemdist.rows import DOC, ELEMENTS, MASK, PAD, SEP
from elemdist.table_gradient import lookup

INIT_STD = 0.02  # BERT's
# Of a unit of the mixing layer that answers to a material: its input is SHARPNESS * (cosine -
# LIKENESS). Measured: at a start three or four units answer to a word.
SHARPNESS, LIKENESS = 10.0, 0.7
FULL = SHARPNESS * (1 - LIKENESS)  # what it gives to that material itself
FEW = 32  # of so many pairs of a unit and a material at most one must count, to compute those alone

# CANINE's code points (Clark et al. 2022, arXiv 2103.06874), out of Unicode's private ones.
CANINE_CODES = {PAD: 0, DOC: 0xE000, SEP: 0xE001, MASK: 0xE003}
INVALID_CODE = 0xE005  # ours, of bytes that are no character; CANINE gives it no meaning
PRIMES = (31, 43, 59, 61, 73, 97, 103, 113, 137, 149, 157, 173, 181, 193, 211, 223)


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises UserError on a value that is not known."""
    if value not in known:
        raise UserError(
            f"{name}: there is no '{value}'{nearest(value, known)}; it is {' or '.join(known)}"
        )


def check_rows(rows_V: Tensor, v: int) -> None:
    """Raises UserError on anything but rows of v bytes. Other integers than uint8 have their values
    looked at, which waits for the device."""
    if rows_V.ndim == 0 or rows_V.shape[-1] != v:
        raise UserError(
            f"rows of v={v} bytes are needed, a last dimension of {v}; the shape is"
            f" {tuple(rows_V.shape)}"
        )
    if rows_V.dtype == torch.uint8:
        return
    if rows_V.dtype == torch.bool or rows_V.is_floating_point() or rows_V.is_complex():
        raise UserError(f"rows are bytes: take torch.uint8, or integers, not {rows_V.dtype}")
    if rows_V.numel():
        least, most = (int(bound) for bound in rows_V.long().aminmax())
        if least < 0 or most >= ELEMENTS:
            raise UserError(f"rows are bytes, 0 to 255; there are values from {least} to {most}")


class SlotMixing(nn.Module):
    """A residual layer, (..., W) -> (..., W), of inner width r, that starts as the identity.

    ``x + out(relu(into(x')))``, where x' is x with a mean of 0 and a variance of 1: embeddings
    start around 0, where all words would look alike. Each unit answers to a few materials and is
    silent, exactly 0, to all others. Holds plain matrices, which no general initialisation of
    linear layers overwrites.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.into = nn.Parameter(torch.empty(inner, width))
        nn.init.normal_(self.into, std=width**-0.5)
        self.bias = nn.Parameter(torch.zeros(inner))
        self.out = nn.Parameter(torch.zeros(width, inner))

    @torch.no_grad()
    def answer_to(self, x_KW: Tensor) -> None:
        """Starts K of the inner units at these vectors: unit k then answers to what is like the
        k-th of them, the more the more alike, and not to what is less than `LIKENESS` so."""
        unit_KW = F.layer_norm(x_KW, x_KW.shape[-1:])
        self.into[: len(x_KW)] = SHARPNESS / x_KW.shape[-1] * unit_KW
        self.bias[: len(x_KW)] = -SHARPNESS * LIKENESS

    def forward(self, x_UW: Tensor, answers: bool = False) -> tuple[Tensor, Tensor | None]:
        """The mixed vectors, and with `answers` how much each unit answers to each of them,
        (U, r): 1 to the material that it started at, above 0 to those that are like it, else 0."""
        unit_UW = F.layer_norm(x_UW, x_UW.shape[-1:])
        inner_UK = F.linear(unit_UW, self.into, self.bias)
        if not inner_UK.is_cuda:  # where products are cheap, and to look at them makes it wait
            heard_UK = inner_UK > 0
            if heard_UK.count_nonzero() * FEW < heard_UK.numel():
                return self.mixed_by_few(x_UW, unit_UW, heard_UK, answers)
        answer_UK = F.relu(inner_UK)
        return x_UW + F.linear(answer_UK, self.out), answer_UK / FULL if answers else None

    def mixed_by_few(
        self, x_UW: Tensor, unit_UW: Tensor, heard_UK: Tensor, answers: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The same of the I pairs of a material and a unit that answers to it, and no others."""
        row_I, unit_I = heard_UK.nonzero(as_tuple=True)
        answer_I = (unit_UW[row_I] * self.into[unit_I]).sum(-1) + self.bias[unit_I]
        x_UW = x_UW.index_add(0, row_I, answer_I.unsqueeze(-1) * self.out.T[unit_I])
        if not answers:
            return x_UW, None
        silent_UK = answer_I.new_zeros(heard_UK.shape)
        return x_UW, silent_UK.index_put((row_I, unit_I), answer_I / FULL)


class ElementwiseEmbedding(nn.Module):
    """Rows of bytes to vectors: ``(..., V) uint8 -> (..., W)``, by a table of 256 x (W / V).

    The vectors of a row's bytes, unused slots (PAD, whose vector starts at 0) included, stand side
    by side (Kim & Kim 2023, arXiv 2302.13475). In front of any transformer that takes vectors::

        embedding = ElementwiseEmbedding(v=12, width=192)
        rows = torch.from_numpy(rows_of("a heron".encode(), v=12))  # data_prep.segment: (2, 12)
        vectors = embedding(rows)  # (2, 192), "a " and "heron"

    Args:
        v: bytes of a row, the slots V. width: floats of a vector, W, a multiple of v.
        tables: ``shared``, one (256, C) for all slots, or ``per_slot``, (V, 256, C).
        slots: ``shuffled`` puts each row's bytes in an order of its own, the same each time that
            it occurs, so that a slot says nothing.
        mixing: inner width of a small residual layer behind the concatenation; 0: none.
        uncased: reads rows as :func:`elemdist.materials.uncased` gives them.

    Attributes:
        table: the parameter, (256, C) or (V, 256, C).

    Raises:
        UserError: `width` is not a multiple of `v`, a choice does not exist, or, when called,
            these are no rows of v bytes.
    """

    def __init__(
        self,
        v: int,
        width: int,
        *,
        tables: Literal["shared", "per_slot"] = "shared",
        slots: Literal["ordered", "shuffled"] = "ordered",
        mixing: int = 0,
        uncased: bool = False,
    ) -> None:
        super().__init__()
        if v < 1 or width < 1 or mixing < 0:
            raise UserError(f"v={v} and width={width} are at least 1, mixing={mixing} at least 0")
        check_width(v, width, "width")
        check_choice("tables", tables, ("shared", "per_slot"))
        check_choice("slots", slots, ("ordered", "shuffled"))
        self.v, self.shuffle, self.uncased = v, slots == "shuffled", uncased
        shape = (ELEMENTS, width // v) if tables == "shared" else (v, ELEMENTS, width // v)
        self.table = nn.Parameter(torch.empty(shape))
        nn.init.normal_(self.table, std=INIT_STD)
        # Most slots of most materials are PAD: its vector would make them all alike at first.
        with torch.no_grad():
            self.table[..., PAD, :] = 0
        self.mixing = SlotMixing(width, mixing) if mixing else nn.Identity()
        self.mixed_rows: int | None = None  # of the last call: what its arithmetic hangs on

    def seen(self, rows_V: Tensor) -> Tensor:
        """The rows as they are looked up."""
        if self.uncased:
            rows_V = uncased(rows_V)
        return shuffled(rows_V) if self.shuffle else rows_V

    def answer_to(self, rows_NV: Tensor) -> None:
        """Starts the units of the mixing layer at the most frequent of these materials, one each,
        as many as it has room for."""
        assert isinstance(self.mixing, SlotMixing)
        rows_KV = most_frequent(self.seen(rows_NV))[: len(self.mixing.into)]
        with torch.no_grad():
            self.mixing.answer_to(lookup(self.table, rows_KV).flatten(-2))

    def forward(self, rows_V: Tensor, answers: bool = False) -> Any:
        """The vectors of (..., V) rows, (..., W). With `answers`, which needs a mixing layer, also
        how much its units answer to each of U distinct rows, (U, r), and which of these every row
        is, (...) int64."""
        check_rows(rows_V, self.v)
        rows_V = self.seen(rows_V)
        if not isinstance(self.mixing, SlotMixing):
            return lookup(self.table, rows_V).flatten(-2)
        # A word is mixed once, however often it stands there.
        rows_UV, place_T = distinct(rows_V.reshape(-1, self.v))
        self.mixed_rows = len(rows_UV)
        x_UW, answer_UK = self.mixing(lookup(self.table, rows_UV).flatten(-2), answers)
        place_T = place_T.view(rows_V.shape[:-1])
        x_TW = F.embedding(place_T, x_UW)
        return (x_TW, answer_UK, place_T) if answers else x_TW


class TokenEmbedding(nn.Module):
    """Token numbers to vectors: ``(T, 1) int32 -> (T, W)``, by a table with a row per token."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(vocabulary, width))
        nn.init.normal_(self.table, std=INIT_STD)

    def forward(self, ids_T1: Tensor, answers: bool = False) -> Any:
        """The vectors; with `answers` also None, and the tokens again, (T,): a token answers to
        itself, see :class:`elemdist.wide.Counts`."""
        x_TW = F.embedding(ids_T1.squeeze(-1), self.table)
        return (x_TW, None, ids_T1.squeeze(-1).long()) if answers else x_TW


def code_points(rows_T4: Tensor) -> Tensor:
    """The code point of each row's character: ``(..., 4) uint8 -> (...) int64``.

    A row is the UTF-8 bytes of one character, PAD behind. Rows with DOC, SEP, MASK or PAD in slot 0
    give CANINE's code points of them; whatever else is no valid character gives `INVALID_CODE`.
    """
    bytes_4 = rows_T4.long()
    first = bytes_4[..., 0]
    # The bytes that the first one asks for; 0 where it may not stand first.
    length = (first < 0x80).long() + 2 * ((first >= 0xC2) & (first < 0xE0))
    length += 3 * ((first >= 0xE0) & (first < 0xF0)) + 4 * ((first >= 0xF0) & (first < 0xF5))
    code = first & torch.where(length == 1, 0x7F, 0x7F >> length)
    valid = length > 0
    for slot in (1, 2, 3):
        byte, inside = bytes_4[..., slot], slot < length
        code = torch.where(inside, code << 6 | byte & 0x3F, code)
        valid &= torch.where(inside, byte & 0xC0 == 0x80, byte == PAD)
    # Too long a form for a small number, the surrogates, and what lies beyond Unicode.
    valid &= (length < 3) | (code >= 0x800) & ((length < 4) | (code >= 0x10000))
    valid &= ((code < 0xD800) | (code > 0xDFFF)) & (code <= 0x10FFFF)
    code = torch.where(valid, code, INVALID_CODE)
    for symbol, special in CANINE_CODES.items():
        code = torch.where(first == symbol, special, code)
    return code


class HashEmbedding(nn.Module):
    """Characters to vectors: ``(..., 4) uint8 -> (..., W)``, as CANINE does without a vocabulary
    (Clark et al. 2022, arXiv 2103.06874).

    Each of several hashes of a character's code point chooses a row out of a table of its own, and
    these rows stand side by side. Rows of bytes: see :func:`code_points`.

    Args:
        width: floats of a vector, a multiple of `hashes`. hashes: at most 16. buckets: rows of
            each table.

    Attributes:
        tables: the parameter, (hashes, buckets, W / hashes).

    Raises:
        UserError: `width` is not a multiple of `hashes`, or one of the three is out of its range;
            when called, the rows do not have 4 bytes.
    """

    def __init__(self, width: int, hashes: int = 8, buckets: int = 16384) -> None:
        super().__init__()
        if not 1 <= hashes <= len(PRIMES) or width % hashes or buckets < 1:
            raise UserError(
                f"hashes={hashes} are 1 to {len(PRIMES)} and divide width={width};"
                f" buckets={buckets} are at least 1"
            )
        self.tables = nn.Parameter(torch.empty(hashes, buckets, width // hashes))
        nn.init.normal_(self.tables, std=INIT_STD)

    def forward(self, rows_T4: Tensor) -> Tensor:
        """(..., 4) uint8 -> (..., W)."""
        check_rows(rows_T4, CHARACTER_BYTES)
        hashes, buckets, _ = self.tables.shape
        next_code = code_points(rows_T4) + 1
        row = [next_code * prime % buckets + k * buckets for k, prime in enumerate(PRIMES[:hashes])]
        return F.embedding(torch.stack(row, -1), self.tables.flatten(0, 1)).flatten(-2)


def build_embedding(config: ModelConfig) -> nn.Module:
    """The embedding of a model's input: rows (T, V) to (T, embedding_width)."""
    model, width = config.model, config.embedding_width
    if model.input == "subword":
        return TokenEmbedding(config.elements, width)
    if model.input == "canine":
        return HashEmbedding(width, model.canine.hashes, model.canine.buckets)
    if model.input == "byte":
        return ElementwiseEmbedding(1, width, uncased=model.uncased)
    ablation = model.ablation
    return ElementwiseEmbedding(
        *(config.v, width),
        tables=ablation.tables,
        slots=ablation.slots,
        mixing=ablation.mixing,
        uncased=model.uncased,
    )
