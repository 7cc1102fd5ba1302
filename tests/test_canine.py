from __future__ import annotations

import dataclasses
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor, nn

from elemdist.attention import Segments
from elemdist.blocks import SlotProjection
from elemdist.canine import CanineEncoder, Molecules
from elemdist.model import Model
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import AblationSettings, CanineSettings, ModelSettings
from elemdist.rows import DOC, MASK, PAD
from elemdist.run_settings import MemorySettings


def packed(lengths: list[int], keys: list[int] | None = None) -> tuple[Tensor, Segments]:
    """Place of each row in its segment, and the segments."""
    position_T = torch.cat([torch.arange(length) for length in lengths])
    cu_lengths = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return position_T, Segments(cu_lengths, lengths, keys)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in module.named_parameters()
    }


def small(
    input_: str = "elementwise", v: int = 4, objective: str = "mlm", **settings: object
) -> ModelConfig:
    model = ModelSettings(
        backbone="canine",
        input=input_,
        layers=2,
        width=32,
        heads=4,
        canine=CanineSettings(rate=4, local=8, buckets=64),
    )
    model = resolved(dataclasses.replace(model, **settings), v)
    return ModelConfig(n=64, v=v, objective=objective, model=model)


def random_rows(config: ModelConfig, lengths: list[int]) -> Tensor:
    """ASCII in all slots, a DOC row at each start."""
    rows_TV = torch.randint(32, 127, (sum(lengths), config.slots), dtype=torch.uint8)
    if config.model.input == "canine":
        rows_TV[:, 1:] = PAD
    start_S = torch.tensor([0, *accumulate(lengths)])[:-1]
    rows_TV[start_S] = PAD
    rows_TV[start_S, 0] = DOC
    return rows_TV


VARIANTS = [
    {},
    {"norm": "pre", "positions": "rotary"},
    {"norm": "pre", "biases": False, "activation": "geglu", "embedding_width": 16},
    {"input_": "byte", "positions": "rotary", "activation": "gelu_tanh"},
    {"input_": "canine", "norm": "pre"},
    {"ablation": AblationSettings(first_projection="block_diagonal")},
    {"window": 9, "global_every": 2},
]
LENGTHS = [1, 3, 4, 9, 24, 24, 41]


def build(config: ModelConfig, memory: MemorySettings | None = None) -> CanineEncoder:
    torch.manual_seed(0)
    encoder = Model(config, memory).encoder
    assert isinstance(encoder, CanineEncoder)
    return encoder


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_packed_document_and_its_gradients_are_those_of_it_alone(variant):
    config = small(**variant)
    encoder = build(config).eval().double()
    rows_TV = random_rows(config, LENGTHS)
    position_T, segments = packed(LENGTHS)
    out_TW = encoder(rows_TV, position_T, segments)
    loss_TW = torch.randn_like(out_TW)
    (out_TW * loss_TW).sum().backward()
    together = {name: gradient.clone() for name, gradient in gradients(encoder).items()}
    assert all(gradient.abs().max() > 0 for gradient in together.values())

    encoder.zero_grad()
    for first, last in pairwise(segments.cu_lengths.tolist()):
        position, one = packed([last - first])
        alone_TW = encoder(rows_TV[first:last], position, one)
        torch.testing.assert_close(out_TW[first:last], alone_TW)
        (alone_TW * loss_TW[first:last]).sum().backward()
    for name, gradient in gradients(encoder).items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_row_hears_of_all_rows_of_its_document_and_of_no_other(variant):
    config = small(**variant)
    encoder = build(config).eval()
    embedded: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, out: Tensor) -> None:
        out.retain_grad()
        embedded.append(out)

    encoder.widen.register_forward_hook(keep)
    position_T, segments = packed(LENGTHS)
    out_TW = encoder(random_rows(config, LENGTHS), position_T, segments)
    (embedded_TW,) = embedded
    bounds = [*pairwise(segments.cu_lengths.tolist())]
    for first, last in bounds:
        for row in {first, last - 1}:
            (heard_TW,) = torch.autograd.grad(
                (out_TW[row] * torch.randn(32)).sum(), embedded_TW, retain_graph=True
            )
            heard_T = heard_TW.abs().amax(1) > 0
            inside_T = torch.zeros_like(heard_T)
            inside_T[first:last] = True
            assert not (heard_T & ~inside_T).any()
            assert torch.equal(heard_T, inside_T) or config.model.window


def test_molecules_of_a_hand_made_case():
    _, segments = packed([3, 4, 9, 14], keys=[3, 1, 5, 14])
    molecules = Molecules.of(segments, rate=4)
    assert molecules.segments.lengths == [1, 1, 2, 3]
    assert molecules.segments.cu_lengths.tolist() == [0, 1, 2, 4, 7]
    assert molecules.segments.cu_lengths.dtype == torch.int32
    assert molecules.segments.keys == [1, 1, 2, 3]
    assert molecules.position_M.tolist() == [0, 0, 0, 1, 0, 1, 2]
    # Rows of the segments start at 0, 3, 7 and 16.
    assert molecules.row_M.tolist() == [0, 3, 7, 7, 16, 16, 20]
    assert molecules.molecule_T.tolist() == ([0] * 3 + [1] * 4 + [3] * 9 + [5] * 4 + [6] * 10)
    assert molecules.place_T.tolist() == [*range(3), *range(4), *range(9), *range(14)]


def test_rotary_positions_are_those_of_rows_outside_and_of_molecules_in_the_deep_blocks():
    encoder = build(small(positions="rotary")).eval()
    cosines: dict[str, Tensor] = {}
    for name in ("local", "blocks.0", "blocks.1", "last"):
        encoder.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, n=name: cosines.update({n: inputs[2][0][:, 0, 0]})
        )
    position_T, segments = packed([9, 14])
    encoder(random_rows(small(), [9, 14]), position_T, segments)
    # The first pair of a head's floats turns by one radian per position.
    for name in ("local", "last"):
        torch.testing.assert_close(cosines[name], position_T.float().cos())
    for name in ("blocks.0", "blocks.1"):
        torch.testing.assert_close(cosines[name], torch.tensor([0.0, 1, 0, 1, 2]).cos())


def test_the_host_never_waits_for_the_device_to_place_molecules():
    """A tensor on `meta` has no values: whatever had to look at one would fail."""
    lengths = [3, 4, 9, 14]
    cu_lengths = torch.empty(5, dtype=torch.int32, device="meta")
    molecules = Molecules.of(Segments(cu_lengths, lengths), rate=4)
    assert molecules.molecule_T.shape == (30,)
    assert molecules.row_M.shape == (7,)
    with pytest.raises((RuntimeError, NotImplementedError)):
        cu_lengths.tolist()


def test_recomputing_leaves_dropout_and_gradients_as_they_are():
    config = small(dropout=0.2)
    rows_TV = random_rows(config, LENGTHS)
    position_T, segments = packed(LENGTHS)
    loss_TW = torch.randn(len(rows_TV), config.model.width)
    results = []
    for memory in (MemorySettings(), MemorySettings(checkpoint_every=1)):
        encoder = build(config, memory).train()
        calls: dict[str, int] = {}
        for name in ("local", "down", "up", "last", "blocks.0", "blocks.1"):
            encoder.get_submodule(name).register_forward_pre_hook(
                lambda *_, n=name, c=calls: c.update({n: c.get(n, 0) + 1})
            )
        torch.manual_seed(1)
        out_TW = encoder(rows_TV, position_T, segments)
        (out_TW * loss_TW).sum().backward()
        results.append((out_TW, gradients(encoder), calls))
    (plain, plain_gradients, once), (again, again_gradients, twice) = results
    assert set(once.values()) == {1}
    assert set(twice.values()) == {2}
    torch.testing.assert_close(plain, again)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(gradient, again_gradients[name])


def test_the_block_diagonal_projection_is_the_local_blocks_only():
    ablation = AblationSettings(first_projection="block_diagonal")
    encoder = build(small(ablation=ablation))
    names = [name for name, module in encoder.named_modules() if isinstance(module, SlotProjection)]
    assert names == ["local.qkv"]


@pytest.mark.parametrize(
    "variant", [{"norm": "pre", "positions": "rotary"}, {"input_": "canine"}], ids=str
)
def test_a_model_learns_a_text_by_heart(variant):
    config = small(dropout=0.0, **variant)
    torch.manual_seed(0)
    model = Model(config)
    rows_TV = random_rows(config, [24, 40])
    position_T, segments = packed([24, 40])
    select_M = torch.arange(3, 64, 7)
    hidden_TV = rows_TV.clone()
    hidden_TV[select_M] = MASK
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        nats_M, _ = model(hidden_TV, position_T, segments, select_M, rows_TV[select_M])
        loss = nats_M.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 10  # log 256 for each byte: four, or one and an end mark
    assert losses[-1] < 0.3 * losses[0]
