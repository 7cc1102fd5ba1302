"""What `elemdist export` writes computes the same as elemdist, by transformers alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.classes import alone, class_table
from data_prep.pack import samples_of
from data_prep.segment import rows_of
from elemdist import export
from elemdist.batch import unpad
from elemdist.exported.tokenization_elemdist import ElemdistTokenizer
from elemdist.inputs import open_reading
from elemdist.model_config import ModelConfig
from elemdist.objectives import element_nats
from elemdist.rows import PAD
from tests.data_prep.reference import texts as made_texts
from tests.exported_models import (
    CLASSIFIERS,
    MORE_CLASSIFIERS,
    MORE_PREDICTORS,
    PREDICTORS,
    random_model,
    tokenizer_of,
    twin_of,
)

TEXTS = [
    "Wheat  exports rose!!! 鍋とрис, naïve ‘quotes’\tand tabs",
    "a",
    "",
    "one two three four five six seven " * 3,
    "длинноесловобезпробелов " * 2,
]


def batch_of(config: ModelConfig):
    data = [text.encode() for text in TEXTS]
    rows_BNV = samples_of(data, config.n, config.v, config.segmenter, "truncate")
    return unpad(rows_BNV, None, np.arange(len(TEXTS)), open_reading(config))


@pytest.mark.parametrize("name", CLASSIFIERS | MORE_CLASSIFIERS)
@torch.no_grad()
def test_classifiers(name):
    config = (CLASSIFIERS | MORE_CLASSIFIERS)[name]
    export.check(config)
    model = random_model(config)
    batch = batch_of(config)
    logits_SL = model(batch.rows_TV, batch.position_T, batch.segments)
    expected_BL = torch.empty_like(logits_SL)
    expected_BL[batch.sample_S] = logits_SL
    inputs = tokenizer_of(config)(TEXTS)
    got_BL = twin_of(model)(**inputs).logits
    assert expected_BL.std() > 0.05  # logits that a mistake would change
    torch.testing.assert_close(got_BL, expected_BL, atol=1e-5, rtol=0)
    # Padding is seen without being told.
    again_BL = twin_of(model)(inputs["input_ids"]).logits
    torch.testing.assert_close(again_BL, expected_BL, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PREDICTORS | MORE_PREDICTORS)
@torch.no_grad()
def test_predictions(name):
    """Logits of every position's bytes; of an autoregressive head, given the bytes before."""
    config = (PREDICTORS | MORE_PREDICTORS)[name]
    export.check(config)
    model = random_model(config)
    batch = batch_of(config)
    rows_TV = batch.rows_TV
    encoded_TW = model.encoder(rows_TV, batch.position_T, batch.segments)
    logits_TVE = model.head(encoded_TW, model.table, rows_TV)
    inputs = tokenizer_of(config)(TEXTS)
    twin, mask_BN = twin_of(model), inputs["attention_mask"].bool()
    ids = inputs["input_ids"]
    if config.model.input == "canine":  # labels are bytes
        rows_BNV = torch.full((*ids.shape, 4), PAD)
        for sample, length, row in zip(*places(batch), strict=True):
            rows_BNV[sample, :length] = rows_TV[row : row + length].long()
        ids = rows_BNV
    labels = torch.where(mask_BN.view(*mask_BN.shape, *[1] * (ids.ndim - 2)), ids, -100)
    head, table = twin.head, twin.elemdist.embedding.table if config.tied else None
    x_BNW = twin.elemdist(**inputs).last_hidden_state
    target = ids if ids.ndim == 3 else ids.unsqueeze(-1)
    got = head(x_BNW, table, target)
    used = (rows_TV == PAD).cumsum(1) <= 1
    for sample, length, row in zip(*places(batch), strict=True):
        ours = logits_TVE[row : row + length][used[row : row + length]]
        theirs = got[sample, :length][used[row : row + length]]
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    if config.objective == "mlm":
        loss = twin(**inputs, labels=labels).loss
        nats_T, _ = element_nats(logits_TVE, rows_TV)
        torch.testing.assert_close(loss, nats_T.mean(), atol=1e-4, rtol=0)


def places(batch):
    """(sample, length, first row) of each segment."""
    firsts = batch.segments.cu_lengths[:-1].tolist()
    return batch.sample_S.tolist(), batch.segments.lengths, firsts


@torch.no_grad()
def test_next_materials():
    """The loss of a causal model is that of each row's successor; labels of -100 do not count."""
    config = PREDICTORS["decoder, autoregressive"]
    twin, inputs = twin_of(random_model(config)), tokenizer_of(config)(TEXTS[3])
    ids = inputs["input_ids"]
    out = twin(**inputs, labels=ids)
    x_NW = twin.elemdist(**inputs).last_hidden_state[:, :-1]
    nats_M, _ = element_nats(twin.head(x_NW, None, ids[:, 1:])[0], ids[0, 1:])
    torch.testing.assert_close(out.loss, nats_M.mean(), atol=1e-5, rtol=0)
    some = ids.clone()
    some[:, 5:] = -100
    torch.testing.assert_close(twin(**inputs, labels=some).loss, nats_M[:4].mean())


@torch.no_grad()
def test_likeliest_materials():
    """Without labels the autoregressive head goes on from the bytes that it chose itself."""
    config = PREDICTORS["autoregressive"]
    twin, inputs = twin_of(random_model(config)), tokenizer_of(config)(TEXTS)
    best = twin(**inputs).logits.argmax(-1)
    x_BNW = twin.elemdist(**inputs).last_hidden_state
    assert torch.equal(twin.head(x_BNW, None, best).argmax(-1), best)
    assert len(best.unique()) > 3


@given(
    text=made_texts,
    v=st.integers(1, 16),
    segmenter=st.sampled_from(("word", "char", "byte")),
)
@settings(deadline=None)
def test_rows_are_those_of_the_segmenters(text, v, segmenter):
    tokenizer = cutter(v, segmenter)
    ours = rows_of(text.encode(), v, segmenter)
    padded = [row.ljust(v, bytes([PAD])) for row in tokenizer.rows(text)]
    assert b"".join(padded) == ours.tobytes()
    ids = tokenizer(text)["input_ids"][0]
    assert tokenizer.decode(ids) == text


def cutter(v: int, segmenter: str) -> ElemdistTokenizer:
    ranges = [list(pair) for pair in alone()]
    return ElemdistTokenizer(1 << 30, v, segmenter, "elementwise", ranges)


def test_every_code_point_is_of_its_class():
    """Beside a letter and beside itself: whatever starts a row of its own does so here, too."""
    points = [c for c in range(len(class_table())) if not 0xD800 <= c < 0xE000]
    text = "".join(f"a{chr(c)}{chr(c)}  " for c in points)
    tokenizer = cutter(8, "word")
    ours = rows_of(text.encode(), 8)
    assert b"".join(row.ljust(8, b"\xff") for row in tokenizer.rows(text)) == ours.tobytes()
