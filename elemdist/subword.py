"""Input subword: a position for every token of a tokenizer file.

The shards hold text, cut at the tokens' edges; the tokens' numbers come from encoding it again.
Shape suffixes: see elemdist/rows.py; S segments, P positions, K tokens, X characters of the text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from elemdist.batch import Cut, Positions, bytes_of, lengths
from elemdist.errors import UserError
from elemdist.file_info import content_of
from elemdist.model_config import Symbols
from elemdist.rows import DOC, FIRST_SPECIAL, SEP

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# By the names that tokenizers give them, the commoner first.
DOC_NAMES = ("[CLS]", "<s>", "<bos>", "<cls>", "<|endoftext|>")
SEP_NAMES = ("[SEP]", "</s>", "<sep>", "<eos>")
MASK_NAMES = ("[MASK]", "<mask>")
UNDECODABLE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class SubwordReading:
    """A position for every token of a segment's text: (P, 1) int32.

    What the tokenizer drops of the text, as white space, counts with the token before, or with the
    first one; of tokens that start with the same character the first one has all its bytes. A
    segment of more than `most` positions loses its end, which can happen where tokens share
    characters, or where a part of a text is cut otherwise than within the whole.

    Raises:
        UserError: by `positions`: the tokenizer refuses a text, as one without an unknown token
            can.
    """

    path: str
    tokenizer: Tokenizer
    symbols: Symbols
    most: int

    def positions(self, rows_BNV: np.ndarray, cut: Cut) -> Positions:
        """As Reading.positions."""
        data, _, byte_S = bytes_of(rows_BNV, cut, FIRST_SPECIAL)
        first_S = rows_BNV.reshape(-1)[cut.start_S * rows_BNV.shape[2]]
        symbol_S = ((first_S == DOC) | (first_S == SEP)).astype(np.int64)
        ids_K, bytes_K, tokens_S = self.tokens(data, byte_S)

        length_S = symbol_S + tokens_S
        start_S = np.cumsum(length_S) - length_S
        at_K = np.arange(len(ids_K)) + np.repeat(np.cumsum(symbol_S), tokens_S)
        rows_P1 = np.zeros((len(ids_K) + symbol_S.sum(), 1), np.int32)
        rows_P1[at_K, 0] = ids_K
        at_S = start_S[symbol_S > 0]
        is_doc = first_S[symbol_S > 0] == DOC
        rows_P1[at_S, 0] = np.where(is_doc, self.symbols.doc, self.symbols.sep)
        bytes_P = np.zeros(len(rows_P1), np.int32)
        bytes_P[at_K] = bytes_K
        return Positions(
            rows_P1,
            start_S,
            np.minimum(length_S, self.most),
            cut.key_S * self.most,
            cut.ended_S & (length_S <= self.most),
            bytes_P=bytes_P,
        )

    def tokens(self, data: np.ndarray, byte_S: np.ndarray) -> tuple[np.ndarray, ...]:
        """The tokens of the text of S segments.

        Args:
            data: uint8, the segments' text back to back. byte_S: where that of each begins.

        Returns:
            ids_K: int64. bytes_K: int64, see :func:`token_bytes`. tokens_S: int64, how many.
        """
        text = data.tobytes()
        stop_S = (byte_S + lengths(byte_S, len(text))).tolist()
        # A byte that is no UTF-8, as where a sample ends within a character, becomes one of the
        # surrogates, which no text holds: one character for one byte.
        texts = [
            text[start:stop].decode("utf-8", "surrogateescape")
            for start, stop in zip(byte_S.tolist(), stop_S, strict=True)
        ]
        codes_X = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
        size_X = 1 + (codes_X >= 0x80) + (codes_X >= 0x800) + (codes_X >= 0x10000).astype(np.int64)
        strange_X = (codes_X >= 0xD800) & (codes_X < 0xE000)
        size_X[strange_X] = 1
        characters_S = np.array([len(text) for text in texts], np.int64)
        if strange_X.any():
            texts = [UNDECODABLE.sub("\ufffd", text) for text in texts]
        try:
            found = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        except Exception as error:  # the library raises nothing more exact
            raise UserError(f"the tokenizer {self.path} cannot cut a text: {error}") from error
        tokens_S = np.array([len(encoding) for encoding in found], np.int64)
        ids_K = np.fromiter(chain.from_iterable(x.ids for x in found), np.int64, tokens_S.sum())
        start_K = np.array([start for x in found for start, _ in x.offsets], np.int64)
        return ids_K, token_bytes(start_K, tokens_S, size_X, characters_S), tokens_S


def token_bytes(
    start_K: np.ndarray, tokens_S: np.ndarray, size_X: np.ndarray, characters_S: np.ndarray
) -> np.ndarray:
    """The bytes of text that each token stands for: (K,) int64.

    Args:
        start_K: int64, the character of its segment that a token starts with. tokens_S,
            characters_S: int64, tokens and characters of each segment. size_X: int64, bytes of
            each character of all segments.
    """
    segment_K = np.repeat(np.arange(len(tokens_S)), tokens_S)
    some_S = tokens_S > 0
    lowest_S = np.zeros_like(tokens_S)
    lowest_S[some_S] = np.minimum.reduceat(start_K, (np.cumsum(tokens_S) - tokens_S)[some_S])
    # What comes before the first token goes with it. A token of no character can stand at the end.
    start_K = np.where(start_K == lowest_S[segment_K], 0, start_K)
    inside = np.flatnonzero(start_K < characters_S[segment_K])
    end_S = np.cumsum(characters_S)
    start = (end_S - characters_S)[segment_K[inside]] + start_K[inside]
    start, first = np.unique(start, return_index=True)
    token = inside[first]
    # Up to the next token, or to the segment's end: the next segment may have no token at all.
    stop = np.minimum(np.append(start[1:], len(size_X)), end_S[segment_K[token]])
    byte_of = np.concatenate([[0], np.cumsum(size_X)])
    bytes_K = np.zeros(len(start_K), np.int64)
    bytes_K[token] = byte_of[stop] - byte_of[start]
    return bytes_K


def read_tokenizer(path: str | None) -> bytes:
    """The content of a tokenizer file.

    Raises:
        UserError: none is named, or it cannot be read.
    """
    if not path:
        raise UserError(
            "model.tokenizer: input subword needs the tokenizer.json that its shards were made"
            " with; set --model.tokenizer FILE"
        )
    return content_of(path, "model.tokenizer: ")


def open_tokenizer(path: str | None) -> Tokenizer:
    """The tokenizer of a file, without truncation and padding.

    Raises:
        UserError: none is named, the file cannot be read, or it is none.
    """
    content = read_tokenizer(path)
    # The ranks of a machine share its cores, and the library asks for its threads only once.
    threads = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    os.environ.setdefault("RAYON_NUM_THREADS", str(max(1, threads)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more exact
        raise UserError(
            f"model.tokenizer: {path} is no file of the tokenizers library: {error}"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def open_symbols(path: str | None) -> Symbols:
    """The numbers of DOC, SEP and MASK: the tokenizer's own where it has such tokens, else new ones
    behind its vocabulary.

    Raises:
        UserError: none is named, the file cannot be read, or it is none.
    """
    numbers = open_tokenizer(path).get_vocab(with_added_tokens=True)
    vocabulary = max(numbers.values(), default=-1) + 1  # a vocabulary may leave numbers out
    chosen = []
    for names in (DOC_NAMES, SEP_NAMES, MASK_NAMES):
        known = [numbers[name] for name in names if name in numbers]
        chosen.append(known[0] if known else vocabulary)
        vocabulary += not known
    doc, sep, mask = chosen
    return Symbols(doc, sep, mask, vocabulary)


def tokenizer_of(manifest: Mapping[str, Any]) -> str | None:
    """Return the hash of the tokenizer file that cut a shard set; None: none did."""
    libraries = manifest.get("libraries")
    found = libraries.get("tokenizer_xxh3_128") if isinstance(libraries, dict) else None
    return None if found is None else str(found)


def check_tokenizer(manifest: Mapping[str, Any], path: str | None, name: str) -> None:
    """Compares a shard set with the tokenizer of a model of input subword.

    Args:
        manifest: the set's. path: the tokenizer file. name: what the set is called.

    Raises:
        UserError: its materials are no tokens, or another tokenizer's; or no tokenizer is named, or
            the file cannot be read.
    """
    content = read_tokenizer(path)
    import xxhash

    again = f"make it with `elemdist shard --segmenter subword --tokenizer {path}`"
    if manifest.get("segmenter") != "subword":
        raise UserError(
            f"{name}: input subword cannot read shards of segmenter {manifest.get('segmenter')};"
            f" {again}"
        )
    if tokenizer_of(manifest) != xxhash.xxh3_128(content).hexdigest():
        raise UserError(f"{name}: its shards were made with another tokenizer than {path}; {again}")
