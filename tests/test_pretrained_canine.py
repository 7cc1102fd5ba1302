"""Our CANINE against transformers' on the same weights."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor

from elemdist.canine import CanineEncoder
from elemdist.errors import UserError
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import CanineSettings, ModelSettings
from elemdist.pretrained_canine import canine_names
from elemdist.rows import DOC, PAD
from elemdist.run_settings import MemorySettings
from elemdist.streaming_compat import fit_torchvision
from tests.test_canine import gradients, packed

fit_torchvision()  # transformers, too, imports torchvision, which fails beside a CPU torch

CLS = 0xE000  # the original's code point where we have a DOC row
BUCKETS = 512
TEXT = (
    "The valve closes before the pump stops. Клапан закрывается раньше насоса. "
    "يغلق الصمام قبل أن تتوقف المضخة. पंप रुकने से पहले वाल्व बंद हो जाता है। "
    "ポンプが止まる前に弁が閉まる。 วาล์วปิดก่อนปั๊มหยุด Η βαλβίδα κλείνει πρώτη. 🚰🔧👩🏽‍🔬 "
)

# width, heads, deep layers, rate, kernel, seed
SHAPES = [
    (32, 4, 1, 4, 4, 1),
    (64, 8, 2, 2, 3, 2),
    (64, 4, 3, 4, 3, 3),
    (128, 8, 2, 2, 4, 4),
    (32, 2, 2, 3, 1, 5),
]


def original(
    width: int, heads: int, layers: int, rate: int, kernel: int, seed: int
) -> transformers.CanineModel:
    """transformers' model with every weight random, norms and biases included, without dropout."""
    torch.manual_seed(seed)
    theirs = transformers.CanineModel(
        transformers.CanineConfig(
            hidden_size=width,
            num_attention_heads=heads,
            num_hidden_layers=layers,
            intermediate_size=3 * width,
            downsampling_rate=rate,
            upsampling_kernel_size=kernel,
            local_transformer_stride=16,
            num_hash_buckets=BUCKETS,
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return theirs


def twin(theirs: transformers.CanineModel) -> CanineEncoder:
    """Our encoder of the same shape with the same weights."""
    shape = theirs.config
    settings = ModelSettings(
        backbone="canine",
        input="canine",
        layers=shape.num_hidden_layers,
        width=shape.hidden_size,
        heads=shape.num_attention_heads,
        feedforward=shape.intermediate_size,
        canine=CanineSettings(
            rate=shape.downsampling_rate,
            local=shape.local_transformer_stride,
            kernel=shape.upsampling_kernel_size,
            buckets=BUCKETS,
        ),
    )
    config = ModelConfig(n=100, v=4, objective="mlm", model=resolved(settings, 4))
    ours = CanineEncoder(config, MemorySettings()).eval()
    named = canine_names(theirs.state_dict())
    named["positions.weight"] = named["positions.weight"][: config.positions]
    ours.load_state_dict(named, strict=True)
    return ours


def documents(lengths: list[int]) -> list[list[int]]:
    """A document of each length: CLS, then characters from anywhere in the text."""
    start = [37 * number % len(TEXT) for number in range(len(lengths))]
    return [
        [CLS, *map(ord, (TEXT[first:] + TEXT * 4)[: length - 1])]
        for first, length in zip(start, lengths, strict=True)
    ]


def character_rows(codes: list[int]) -> Tensor:
    """The rows (T, 4) of code points, CLS and padding included."""
    special = {CLS: bytes([DOC]), 0: b""}
    encoded = [special.get(code, chr(code).encode()) for code in codes]
    return torch.tensor(
        [list(one.ljust(4, bytes([PAD]))) for one in encoded], dtype=torch.uint8
    ).reshape(-1, 4)


def padded_batch(lengths: list[int], total: int) -> tuple[Tensor, Tensor]:
    """Code points (B, P) and mask (B, P), as the original wants them."""
    codes_BP = torch.tensor([one + [0] * (total - len(one)) for one in documents(lengths)])
    mask_BP = (torch.arange(total) < torch.tensor(lengths).unsqueeze(1)).long()
    return codes_BP, mask_BP


def forward_padded(ours: CanineEncoder, codes_BP: Tensor, lengths: list[int]) -> Tensor:
    """Ours on a batch with its padding, (B, P, W)."""
    size, total = codes_BP.shape
    position_T, segments = packed([total] * size, lengths)
    rows_TV = character_rows(codes_BP.flatten().tolist())
    return ours(rows_TV, position_T, segments).unflatten(0, (size, total))


def assert_same_gradients(ours: CanineEncoder, theirs: transformers.CanineModel) -> None:
    """Their gradients, renamed as weights are, are ours: the names only move them about."""
    their_gradients = gradients(theirs)
    # Folding adds the token type's to all positions, which is right for weights only.
    their_gradients["char_embeddings.token_type_embeddings.weight"].zero_()
    expected = canine_names(their_gradients)
    expected["positions.weight"] = expected["positions.weight"][: len(ours.positions.weight)]
    mine = gradients(ours)
    assert mine.keys() == expected.keys()
    for name, gradient in mine.items():
        size = expected[name].abs().max().item()
        assert size > 0, name
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-4, atol=1e-5 * size, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_documents_packed_without_padding_are_as_the_original_gives_each_alone(shape):
    theirs = original(*shape)
    ours = twin(theirs)
    lengths = [5, 8, 15, 16, 17, 33, 64, 75]
    texts = documents(lengths)
    position_T, segments = packed(lengths)
    out_TW = ours(torch.cat([character_rows(one) for one in texts]), position_T, segments)
    alone = [theirs(torch.tensor([one])).last_hidden_state[0] for one in texts]
    expected_TW = torch.cat(alone)
    assert expected_TW.std() > 0.5
    assert (out_TW - expected_TW).abs().max() < 3e-5
    loss_TW = torch.randn_like(out_TW)
    (out_TW * loss_TW).sum().backward()
    (expected_TW * loss_TW).sum().backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize(
    ("lengths", "trained"),
    [
        # All in one stretch of 16, some shorter than the rate.
        ([1, 2, 3, 7, 12, 15], True),
        # Some padding in the last of three stretches.
        ([33, 39, 46], True),
        # Whole stretches of padding: their scores are all equal, as the mask's huge number drowns
        # what was there. The original's backward pass knows nothing of that and gives a gradient
        # to scores that do not count, so only values can be compared.
        ([1, 2, 3, 7, 16, 17, 30, 47, 48], False),
        ([4, 33, 60, 64, 75], False),
    ],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_padded_batch_is_as_the_original_gives_it_with_its_mask(shape, lengths, trained):
    theirs = original(*shape)
    ours = twin(theirs)
    codes_BP, mask_BP = padded_batch(lengths, max(lengths))
    out_BPW = forward_padded(ours, codes_BP, lengths)
    expected_BPW = theirs(codes_BP, attention_mask=mask_BP).last_hidden_state
    assert (out_BPW - expected_BPW).abs().max() < 3e-5  # of the padding, too
    if trained:
        loss_BPW = torch.randn_like(out_BPW) * mask_BP.unsqueeze(-1)
        (out_BPW * loss_BPW).sum().backward()
        (expected_BPW * loss_BPW).sum().backward()
        assert_same_gradients(ours, theirs)


def test_a_document_shorter_than_the_rate_has_its_first_row_as_the_only_molecule():
    """The original's convolution refuses such a document, so its parts are put together here."""
    theirs = original(*SHAPES[0])
    ours = twin(theirs)
    (codes,) = documents([3])
    position_T, segments = packed([3])
    out_TW = ours(character_rows(codes), position_T, segments)

    ones = torch.ones(1, 1, 1)
    x_1TW = theirs.char_embeddings(torch.tensor([codes]))
    x_1TW = theirs.initial_char_encoder(x_1TW, ones.expand(1, 3, 3)).last_hidden_state
    molecule = theirs.encoder(
        theirs.chars_to_molecules.LayerNorm(x_1TW[:, :1]), ones
    ).last_hidden_state
    both = torch.cat([x_1TW, molecule.expand(1, 3, -1)], dim=-1)
    expected = theirs.final_char_encoder(theirs.projection(both)).last_hidden_state
    torch.testing.assert_close(out_TW, expected[0], rtol=0, atol=3e-5)


def test_names_come_with_or_without_prefix_and_without_pooler_and_head():
    theirs = original(*SHAPES[0])
    plain = canine_names(theirs.state_dict())
    headed = transformers.CanineForSequenceClassification(theirs.config)
    headed.canine = theirs
    prefixed = canine_names(headed.state_dict())
    assert plain.keys() == prefixed.keys()
    assert all(torch.equal(plain[name], prefixed[name]) for name in plain)
    left_out = {"pooler.dense.weight", "pooler.dense.bias"}
    used = {name: weight for name, weight in theirs.state_dict().items() if name not in left_out}
    assert canine_names(used).keys() == plain.keys()
    last_table = "char_embeddings.HashBucketCodepointEmbedder_7.weight"  # 7 tables are possible
    for name in used.keys() - {last_table}:
        with pytest.raises(UserError, match=f"the weights lack {name}, "):
            canine_names({other: w for other, w in used.items() if other != name})
