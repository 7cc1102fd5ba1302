from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.segment import rows_of
from elemdist.embedding import INVALID_CODE, PRIMES, HashEmbedding, code_points
from elemdist.rows import DOC, MASK, PAD, SEP, special_row
from elemdist.streaming_compat import fit_torchvision
from tests.test_embedding import SCRIPTS

fit_torchvision()  # transformers imports torchvision, too, which fails beside a CPU torch

from transformers import CanineConfig, CanineTokenizer  # noqa: E402
from transformers.models.canine import modeling_canine  # noqa: E402


def characters(text: str) -> torch.Tensor:
    return torch.from_numpy(rows_of(text.encode(), 4, "char"))


def test_hashes_are_those_of_canine():
    torch.manual_seed(0)
    theirs = modeling_canine.CanineEmbeddings(
        CanineConfig(hidden_size=48, num_hash_functions=6, num_hash_buckets=97)
    )
    ours = HashEmbedding(48, hashes=6, buckets=97)
    parts = [getattr(theirs, f"HashBucketCodepointEmbedder_{k}").weight for k in range(6)]
    with torch.no_grad():
        ours.tables.copy_(torch.stack(parts))
    symbols = [special_row(DOC, 4), special_row(SEP, 4), np.full(4, MASK), np.full(4, PAD)]
    rows = torch.cat([torch.from_numpy(np.stack(symbols).astype(np.uint8)), characters(SCRIPTS)])
    tokenizer = CanineTokenizer()
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id]
    ids = torch.tensor([*special, tokenizer.pad_token_id, *map(ord, SCRIPTS)])
    assert torch.equal(code_points(rows), ids)
    expected = theirs._embed_hash_buckets(ids.unsqueeze(0), 48, 6, 97)[0]
    torch.testing.assert_close(ours(rows), expected, rtol=0, atol=0)
    assert torch.equal(ours(rows.view(1, -1, 4))[0], expected)


def test_all_sixteen_hashes_are_those_of_canine():
    assert list(PRIMES) == modeling_canine._PRIMES


def test_every_character_of_unicode_has_its_code_point():
    codes = torch.tensor([c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF])
    text = "".join(map(chr, codes.tolist()))
    assert torch.equal(code_points(characters(text)), codes)


def code_point(row: bytes) -> int:
    """By Python's own decoder."""
    special = {PAD: 0, DOC: 0xE000, SEP: 0xE001, MASK: 0xE003}
    if row[0] in special:
        return special[row[0]]
    end = row.find(PAD)
    content, behind = (row, b"") if end < 0 else (row[:end], row[end:])
    try:
        (character,) = content.decode()
    except ValueError:  # no UTF-8, or not one character
        return INVALID_CODE
    return ord(character) if set(behind) <= {PAD} else INVALID_CODE


# Bytes at the borders of what UTF-8 allows, and any others.
BORDERS = [0, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1]
BORDERS += [0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xF7, 0xF8, 0xFB, SEP, DOC, MASK, PAD, PAD]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.sampled_from(BORDERS) | st.integers(0, 255), min_size=4, max_size=4),
                min_size=1, max_size=300))  # fmt: skip
def test_bytes_that_are_no_character_have_a_code_point_of_their_own(rows):
    found = code_points(torch.tensor(rows, dtype=torch.uint8)).tolist()
    assert found == [code_point(bytes(row)) for row in rows]


def test_all_pairs_of_bytes_at_the_borders_decode_as_python_does():
    tails = [(), (0x80,), (0x80, 0x80), (0xBF, 0xBF), (0x41,)]
    rows = [
        [*(first, second, *tail), PAD, PAD][:4]
        for first in range(256) for second in BORDERS for tail in tails
    ]  # fmt: skip
    found = code_points(torch.tensor(rows, dtype=torch.uint8)).tolist()
    assert found == [code_point(bytes(row)) for row in rows]
    assert {INVALID_CODE, 0xE000, 0x41, 0x10FFFF} <= set(found)
