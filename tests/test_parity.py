"""The same numbers as BERT and ALBERT of transformers, which pads a batch, where ours does not."""

from __future__ import annotations

import decimal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from elemdist import pretrained
from elemdist.attention import Segments
from elemdist.blocks import rotate, rotation
from elemdist.exported import blocks_elemdist as exported_blocks
from elemdist.model import Model
from elemdist.model_config import ModelConfig, Symbols
from elemdist.model_settings import ModelSettings
from elemdist.pretrained_names import State, albert_names, bert_names, plain_names
from elemdist.streaming_compat import fit_torchvision
from tests.bench.models import same_shape

fit_torchvision()  # transformers imports torchvision, too

import transformers  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402

VOCABULARY, POSITIONS, N = 90, 24, 16


@dataclass(frozen=True)
class Shape:
    """kind, width, layers, heads, inner width, embedding width (ALBERT's)."""

    kind: str
    width: int
    layers: int
    heads: int
    feedforward: int
    embedding: int = 0
    act: str = "gelu"


SHAPES = [
    Shape("bert", 32, 3, 4, 64),
    Shape("bert", 48, 1, 3, 100, act="gelu_new"),
    Shape("bert", 128, 2, 8, 512),
    Shape("bert", 768, 2, 12, 3072),  # BERT-base's
    Shape("albert", 32, 3, 4, 64, 16, "gelu_new"),
    Shape("albert", 48, 2, 6, 96, 48, "gelu_new"),
    Shape("albert", 128, 4, 2, 512, 32, "gelu"),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.kind}-{s.width}")
every_shape_and_seed = pytest.mark.parametrize(
    ("shape", "seed"),
    [(shape, seed) for seed in (0, 1) for shape in SHAPES if shape.width < 768 or seed == 0],
    ids=lambda x: f"{x.kind}-{x.width}" if isinstance(x, Shape) else None,
)
some_shapes = pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[4]], ids=lambda s: s.kind)


def original(shape: Shape, seed: int, task: str = "Model", **options: object) -> torch.nn.Module:
    """transformers' model with random weights, its biases and norms, too."""
    name = {"bert": "Bert", "albert": "Albert"}[shape.kind]
    if shape.embedding:
        options["embedding_size"] = shape.embedding
    config = same_shape(
        *(getattr(transformers, f"{name}Config"), shape, VOCABULARY, POSITIONS),
        hidden_act=shape.act,
        hidden_dropout_prob=0.0,
        **options,
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}{task}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Matrices of about the size that trained ones have, whatever the width.
            size = 0.5 * shape.width**-0.5 if parameter.ndim > 1 else 0.1
            parameter += size * torch.randn_like(parameter)
    return model


def twin(theirs: torch.nn.Module, shape: Shape, folder: Path, classify: bool = False) -> Model:
    """Our model, with the weights of the other one, by way of a folder."""
    theirs.save_pretrained(folder)
    config = ModelConfig(
        n=N,
        v=4,
        objective="classify" if classify else "mlm",
        model=ModelSettings(
            backbone="albert" if shape.kind == "albert" else "bert",
            input="subword",
            layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            feedforward=shape.feedforward,
            embedding_width=shape.embedding,
            activation=pretrained.ACTIVATIONS[shape.act],
            tied=theirs.config.tie_word_embeddings,
            dropout=0.0,
        ),
        pooling="doc" if classify else "none",
        labels=["a", "b"] if classify else None,
        symbols=Symbols(doc=1, sep=2, mask=3, vocabulary=VOCABULARY),
    )
    torch.manual_seed(99)
    model = Model(config).eval()
    pretrained.initialise(model, str(folder))
    return model


class Both:
    """Sequences of mixed lengths, padded with random tokens for theirs, back to back for ours."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = sorted([1, 5, 5, N, *torch.randint(1, N + 1, (3,), generator=generator).tolist()])
        self.mask_BN = torch.arange(N) < torch.tensor(lengths).unsqueeze(1)
        # transformers gives its PAD, token 0, no gradient.
        self.ids_BN = torch.randint(1, VOCABULARY, self.mask_BN.shape, generator=generator)
        self.rows_T1 = self.ids_BN[self.mask_BN].int().unsqueeze(1)
        self.position_T = torch.cat([torch.arange(length) for length in lengths])
        cu_lengths = torch.tensor([0, *lengths]).cumsum(0).int()
        self.segments = Segments(cu_lengths, lengths)
        self.generator = generator

    def hidden(self, theirs: torch.nn.Module, ours: Model) -> tuple[Tensor, Tensor]:
        """(their hidden states of the real positions, ours), (T, W) each."""
        out = theirs(input_ids=self.ids_BN, attention_mask=self.mask_BN.long())
        encoded = ours.encoder(self.rows_T1, self.position_T, self.segments)
        return out.last_hidden_state[self.mask_BN], encoded


def our_names(state: State, shape: Shape) -> State:
    state = plain_names(state, shape.kind)
    if shape.kind == "albert":
        found = albert_names(state, classify=False)
    else:
        found = bert_names(state, shape.layers, classify=False)
    found["encoder.positions.weight"] = found["encoder.positions.weight"][:N]
    return found


def mapped_gradients(theirs: torch.nn.Module, shape: Shape) -> State:
    """Their gradients by our names. Ours of the positions is theirs of the positions alone: what
    the fold adds for the weights it must not add for the gradients."""
    gradients = {
        name: torch.zeros_like(p) if p.grad is None or "token_type" in name else p.grad
        for name, p in theirs.named_parameters()
    }
    return our_names(gradients, shape)


def assert_gradient_agrees(got: Tensor | None, expected: Tensor, name: str) -> None:
    assert got is not None, name
    scale = expected.abs().max().item()
    assert scale > 0, name
    # Sums in another order: an element near 0 is as exact as the largest, not more so.
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * scale, msg=lambda m: name + m)


def assert_gradients_agree(ours: Model, mapped: State, prefix: str) -> None:
    named = {name: p for name, p in ours.named_parameters() if name.startswith(prefix)}
    assert len(named) >= 16
    for name, parameter in named.items():
        assert_gradient_agrees(parameter.grad, mapped[name], name)


@every_shape_and_seed
def test_hidden_states_are_those_of_the_original(shape, seed, tmp_path):
    theirs = original(shape, seed)
    ours = twin(theirs, shape, tmp_path)
    with torch.no_grad():
        expected, got = Both(seed).hidden(theirs, ours)
    assert expected.std() > 0.1
    difference = (expected - got).abs().max().item()
    print(f"{shape.kind} of width {shape.width}: largest difference {difference:.1e}")
    assert difference < 1e-5
    # In fp64, positions added up in fp64, nothing is left of it: it was rounding.
    ours.double().load_state_dict(our_names(theirs.double().state_dict(), shape), strict=False)
    with torch.no_grad():
        expected, got = Both(seed).hidden(theirs, ours)
    assert (expected - got).abs().max() < 1e-12


@every_shape
def test_gradients_of_all_weights_are_those_of_the_original(shape, tmp_path):
    theirs = original(shape, seed=2)
    ours = twin(theirs, shape, tmp_path)
    both = Both(seed=2)
    expected, got = both.hidden(theirs, ours)
    wish = torch.randn(expected.shape, generator=both.generator)
    (expected * wish).sum().backward()
    (got * wish).sum().backward()
    assert_gradients_agree(ours, mapped_gradients(theirs, shape), "encoder.")
    (segments,) = [p.grad for name, p in theirs.named_parameters() if "token_type" in name]
    assert segments is not None
    positions = ours.encoder.positions.weight.grad
    assert_gradient_agrees(positions.sum(0), segments[0], "segments")


@some_shapes
@pytest.mark.parametrize("tied", [True, False])
def test_logits_loss_and_gradients_of_masked_tokens_are_those_of_the_original(
    shape, tied, tmp_path
):
    theirs = original(shape, seed=3, task="ForMaskedLM", tie_word_embeddings=tied)
    ours = twin(theirs, shape, tmp_path)
    both = Both(seed=3)
    chosen_BN = both.mask_BN & (torch.rand(both.mask_BN.shape, generator=both.generator) < 0.5)
    select_M = chosen_BN[both.mask_BN].nonzero().squeeze(1)
    target_BN = torch.randint(0, VOCABULARY, both.ids_BN.shape, generator=both.generator)

    out = theirs(
        input_ids=both.ids_BN,
        attention_mask=both.mask_BN.long(),
        labels=target_BN.where(chosen_BN, -100),
    )
    inputs = both.rows_T1, both.position_T, both.segments, select_M
    logits_M1E = ours(*inputs)
    assert logits_M1E.shape == (len(select_M), 1, VOCABULARY)
    torch.testing.assert_close(logits_M1E[:, 0], out.logits[chosen_BN], rtol=1e-4, atol=1e-5)
    nats_M, _ = ours(*inputs, target_BN[chosen_BN].int().unsqueeze(1))
    torch.testing.assert_close(nats_M.mean(), out.loss, rtol=1e-5, atol=1e-6)

    out.loss.backward()
    nats_M.mean().backward()
    mapped = mapped_gradients(theirs, shape)
    assert_gradients_agree(ours, mapped, "")
    assert ("head.table" in dict(ours.named_parameters())) == (not tied)


@some_shapes
def test_a_classifier_starts_with_the_pooler_of_the_original(shape, tmp_path):
    theirs = original(shape, seed=4, task="ForSequenceClassification")
    ours = twin(theirs, shape, tmp_path, classify=True)
    both = Both(seed=4)
    with torch.no_grad():
        out = getattr(theirs, shape.kind)(input_ids=both.ids_BN, attention_mask=both.mask_BN.long())
        x_TW = ours.encoder(both.rows_T1, both.position_T, both.segments)
        x_SW = torch.tanh(ours.head.dense(x_TW[both.segments.cu_lengths[:-1]]))
    torch.testing.assert_close(x_SW, out.pooler_output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "base"), [(8, 10_000.0), (64, 10_000.0), (32, 500_000.0)])
def test_rotary_positions_turn_as_those_of_llama_do(width, base):
    heads, position_T = 3, torch.tensor([0, 1, 2, 0, 7, 100, 4095])
    torch.manual_seed(0)
    q_THD, k_THD = torch.randn(2, len(position_T), heads, width)
    config = transformers.LlamaConfig(
        hidden_size=heads * width, num_attention_heads=heads, rope_theta=base
    )
    cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(q_THD, position_T.unsqueeze(0))
    # theirs are (batch, heads, positions, width)
    q_HTD, k_HTD = (x.transpose(0, 1).unsqueeze(0) for x in (q_THD, k_THD))
    expected = modeling_llama.apply_rotary_pos_emb(q_HTD, k_HTD, cos, sin)
    turn = rotation(position_T, width, base)
    for x_THD, turned in zip((q_THD, k_THD), expected, strict=True):
        # at position 4095 an angle in fp32 is known to about 2e-4
        torch.testing.assert_close(
            rotate(x_THD, turn), turned[0].transpose(0, 1), rtol=1e-4, atol=1e-3
        )
        torch.testing.assert_close(
            rotate(x_THD, turn)[:5], turned[0].transpose(0, 1)[:5], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("place", [4095, 699_051, 2_796_203, 16_777_217])
def test_rotary_angles_are_right_at_any_position(place):
    """Against whole turns taken off in 50 digits."""
    base, width = 10_000.0, 64
    expected = []
    with decimal.localcontext() as context:
        context.prec = 50
        turn = 2 * decimal.Decimal("3.14159265358979323846264338327950288419716939937510")
        for pair in range(0, width, 2):
            frequency = decimal.Decimal(base) ** (-decimal.Decimal(pair) / width)
            expected.append(float(place * frequency % turn))
    angle_D = torch.tensor(expected, dtype=torch.float64)
    theirs = exported_blocks.rotation(torch.tensor([place]), width, base)
    for cos, sin in (rotation(torch.tensor([place]), width, base), theirs):
        torch.testing.assert_close(cos[0, 0].double(), angle_D.cos(), rtol=0, atol=2e-6)
        torch.testing.assert_close(sin[0, 0].double(), angle_D.sin(), rtol=0, atol=2e-6)
