from __future__ import annotations

import itertools

import pytest
import torch

from elemdist.heads import ElementHead, generate, score
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import ModelSettings
from elemdist.rows import DOC, PAD
from elemdist.slot_decoder import SlotDecoder, used_slots


def config(v: int, layers: int = 1, head: str = "autoregressive") -> ModelConfig:
    settings = ModelSettings(
        width=4 * v, heads=v, head=head, slot_width=32, slot_layers=layers, layers=1
    )
    return ModelConfig(n=8, v=v, objective="mlm", model=resolved(settings, v))


def decoder(v: int, layers: int = 1) -> SlotDecoder:
    """A head with weights large enough that every byte makes a difference."""
    torch.manual_seed(0)
    head = SlotDecoder(config(v, layers))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return head


def materials(v: int) -> torch.Tensor:
    """One material of every length from 1 to v, in an order of no kind, bytes of no kind."""
    torch.manual_seed(1)
    target_MV = torch.randint(0, 200, (v, v), dtype=torch.uint8)
    for length, row_V in enumerate(target_MV, start=1):
        row_V[length:] = PAD
    return target_MV[torch.randperm(v)]


def test_the_probabilities_of_all_materials_add_up_to_one():
    head = decoder(2)
    outcomes = [[PAD, PAD], *([byte, PAD] for byte in range(PAD))]
    outcomes += map(list, itertools.product(range(PAD), range(PAD)))
    target_MV = torch.tensor(outcomes, dtype=torch.uint8)
    x_MW = torch.randn(1, 8).expand(len(target_MV), -1)
    with torch.no_grad():
        nats_M, _ = score(head, x_MW, None, target_MV, tile_rows=2048)
        some_M, _ = score(head, x_MW[:3000], None, target_MV[:3000])
    assert nats_M.double().neg().exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert nats_M.std() > 0.1
    torch.testing.assert_close(some_M, nats_M[:3000])


@pytest.mark.parametrize("layers", [1, 2])
def test_a_byte_sees_all_bytes_before_it_and_none_from_itself_on(layers):
    v, head = 5, decoder(5, layers)
    target_MV, x_MW = torch.randint(0, 200, (1, v), dtype=torch.uint8), torch.randn(1, 4 * v)
    before = head(x_MW, None, target_MV)
    for changed in range(v):
        other_MV = target_MV.clone()
        other_MV[0, changed] += 1
        same_V = (head(x_MW, None, other_MV) == before).all(-1)[0]
        assert same_V.tolist() == [slot <= changed for slot in range(v)]


def test_the_table_gets_its_gradient_from_the_bytes_before_only():
    v, head = 5, decoder(5)
    target_MV = torch.tensor([[10, 20, 30, 40, 50]], dtype=torch.uint8)
    for slot in range(v):
        head.table.grad = None
        # one value's logit, of which the product gives a gradient to the row of that value only
        head(torch.ones(1, 4 * v), None, target_MV)[0, slot, 77].backward()
        touched = set(head.table.grad.abs().sum(1).nonzero().squeeze(1).tolist()) - {77, PAD}
        assert touched == set(target_MV[0, :slot].tolist())


def test_leaving_out_the_slots_behind_the_end_mark_changes_nothing():
    v, head = 6, decoder(6, layers=2)
    target_MV, x_MW = materials(v), torch.randn(6, 24)
    logits_MVE = head(x_MW, None, target_MV)
    for row, length in enumerate((target_MV != PAD).sum(1).tolist()):
        assert (logits_MVE[row, length + 1 :] == 0).all()
        # a material that fills its slots leaves out none; those of the longer one see more bytes
        full_MV = target_MV[row : row + 1].clone()
        full_MV[full_MV == PAD] = 1
        full = head(x_MW[row : row + 1], None, full_MV)
        used = slice(0, length + 1)
        torch.testing.assert_close(logits_MVE[row, used], full[0, used])


def test_the_slots_in_use_are_those_up_to_the_end_mark():
    target_MV = torch.tensor([[5, 6, 7], [DOC, PAD, PAD], [8, PAD, PAD]], dtype=torch.uint8)
    place_T, segments = used_slots(target_MV)
    assert place_T.tolist() == [3, 4, 6, 7, 0, 1, 2]
    assert segments.lengths == [2, 2, 3]
    assert segments.cu_lengths.tolist() == [0, 2, 4, 7]
    assert segments.cu_lengths.dtype == torch.int32


def test_no_material_at_all_still_reaches_every_parameter_and_the_input():
    head, x_MW = decoder(3), torch.zeros(0, 12, requires_grad=True)
    logits = head(x_MW, None, torch.zeros(0, 3, dtype=torch.uint8))
    assert logits.shape == (0, 3, 256)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert x_MW.grad is not None


def test_it_learns_what_bytes_that_are_predicted_one_by_one_cannot():
    """Two materials, equally likely: "ab" and "cd". The best that independent slots can say of
    either is 1 / 4."""
    target_MV = torch.tensor([[97, 98], [99, 100]] * 8, dtype=torch.uint8)
    bits = {}
    for name, kind in (("independent", ElementHead), ("autoregressive", SlotDecoder)):
        torch.manual_seed(0)
        head = kind(config(2, head=name))
        table = torch.randn(256, 4)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
        for _ in range(60):
            optimizer.zero_grad()
            nats_M, _ = score(head, torch.ones(16, 8), table, target_MV)
            nats_M.mean().backward()
            optimizer.step()
        bits[name] = nats_M.mean().item() / torch.tensor(2.0).log().item()
    assert bits["independent"] > 1.99
    assert bits["autoregressive"] < 1.1


def test_generated_materials_come_as_often_as_they_are_likely():
    head = decoder(2)
    with torch.no_grad():
        head.bias_VE.fill_(-30)
        head.bias_VE[0, [97, 98]] = 0
        head.bias_VE[1, [PAD, 99]] = 0
    outcomes = [[97, PAD], [97, 99], [98, PAD], [98, 99]]
    x_MW = torch.randn(1, 8)
    generator = torch.Generator().manual_seed(3)

    def choose(logits_ME: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(logits_ME.softmax(-1), 1, generator=generator).squeeze(1)

    draws = 6000
    drawn_MV = generate(head, x_MW.expand(draws, -1), None, choose)
    assert drawn_MV.dtype == torch.uint8
    for outcome in outcomes:
        wanted_MV = torch.tensor([outcome], dtype=torch.uint8)
        with torch.no_grad():
            chance = score(head, x_MW, None, wanted_MV)[0].neg().exp().item()
        share = (drawn_MV == wanted_MV).all(1).float().mean().item()
        assert share == pytest.approx(chance, abs=0.03)


@pytest.mark.parametrize("kind", [ElementHead, SlotDecoder])
def test_behind_a_special_byte_a_generated_material_is_padding(kind):
    torch.manual_seed(0)
    name = "independent" if kind is ElementHead else "autoregressive"
    head = kind(config(4, head=name))
    choices = iter(torch.tensor([[65, 66, DOC], [PAD, 67, 7], [1, 68, 8], [2, 69, 9]]))
    drawn_MV = generate(head, torch.randn(3, 16), torch.randn(256, 4), lambda _: next(choices))
    expected = [[65, PAD, PAD, PAD], [66, 67, 68, 69], [DOC, PAD, PAD, PAD]]
    assert drawn_MV.tolist() == expected


def test_the_likeliest_material_of_a_head_that_sees_no_bytes_is_that_of_each_slot():
    torch.manual_seed(0)
    head, x_MW, table = ElementHead(config(4, head="independent")), torch.randn(6, 16), None
    table = torch.randn(256, 4)
    drawn_MV = generate(head, x_MW, table, lambda logits_ME: logits_ME.argmax(-1))
    best_MV = head(x_MW, table).argmax(-1)
    ended_MV = (best_MV >= 0xFC).cumsum(1) > (best_MV >= 0xFC).int()
    assert torch.equal(drawn_MV.long(), best_MV.masked_fill(ended_MV, PAD))
