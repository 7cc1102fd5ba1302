"""Rows a tile at a time: the gradients of all rows at once, whatever the type and the tiles."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elemdist.blocks import Block
from elemdist.heads import score
from elemdist.model import ScoredElementHead, ScoredSlotDecoder
from elemdist.model_settings import ModelSettings
from elemdist.tiles import tiled
from tests.test_model import config

ROWS, TILE = 2048, 4  # 512 tiles


def gradients(module: nn.Module, run) -> dict[str, torch.Tensor]:
    """Return the gradient of each parameter that has one, and of the rows."""
    for parameter in module.parameters():
        parameter.grad = None
    x = torch.randn(ROWS, 32, generator=torch.Generator().manual_seed(2))
    x = x.to(next(module.parameters()).dtype).requires_grad_()
    weight = torch.randn(ROWS, generator=torch.Generator().manual_seed(3)) + 1
    values = run(x)
    (values.reshape(ROWS, -1).mean(-1) * weight.to(values.dtype)).sum().backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {name: grad.double() for name, grad in [*found.items(), ("rows", x.grad)]}


def feeds(activation: str, biases: bool) -> tuple[nn.Module, dict]:
    torch.manual_seed(1)
    model = ModelSettings(width=32, heads=4, feedforward=64, activation=activation, biases=biases)
    block = Block(model, tile_rows=TILE).eval()
    return block, {"whole": block.feed, "tiled": block.tiled_feed}


def heads(kind: type[nn.Module], tied: bool) -> tuple[nn.Module, dict]:
    torch.manual_seed(1)
    head = kind(config(tied=tied, slot_width=32, slot_layers=1))
    target_MV = torch.randint(0, 256, (ROWS, head.slots), dtype=torch.uint8)
    both = nn.ModuleDict({"head": head, "table": nn.Embedding(256, 32 // head.slots)})

    def run(tile_rows: int):
        return lambda x: score(
            head, x, both["table"].weight if tied else None, target_MV, tile_rows
        )[0]

    return both, {"whole": run(0), "tiled": run(TILE)}


MEMBERS = {
    "gelu": lambda: feeds("gelu", True),
    "geglu": lambda: feeds("geglu", True),
    "no biases": lambda: feeds("geglu", False),
    "tied head": lambda: heads(ScoredElementHead, True),
    "untied head": lambda: heads(ScoredElementHead, False),
    "slot decoder": lambda: heads(ScoredSlotDecoder, False),
}


@pytest.mark.parametrize("member", MEMBERS)
def test_512_tiles_in_bf16_are_as_exact_as_all_rows_at_once(member):
    module, runs = MEMBERS[member]()
    module.double()
    exact = gradients(module, runs["whole"])
    for name, grad in gradients(module, runs["tiled"]).items():
        torch.testing.assert_close(grad, exact[name], rtol=1e-9, atol=1e-12)
    module.bfloat16()
    whole, tiles = (gradients(module, runs[kind]) for kind in ("whole", "tiled"))
    assert tiles.keys() == exact.keys() == whole.keys()
    for name, expected in exact.items():
        error, usual = ((found[name] - expected).norm() for found in (tiles, whole))
        # bf16 sums of 512 tiles were 2 to 14 % off
        assert error <= 1.25 * usual + 0.004 * expected.norm(), name


def test_the_gradient_is_that_of_the_very_dropout_of_the_forward_pass():
    layer = nn.Linear(8, 8).double()
    x = torch.randn(10, 8, dtype=torch.double, requires_grad=True)

    def function(x):
        return torch.nn.functional.dropout(layer(x), 0.5)

    torch.manual_seed(7)
    values = tiled(function, 3, [x], [layer])
    after = torch.rand(1)
    found = torch.autograd.grad(values.sin().sum(), [x, *layer.parameters()])
    torch.manual_seed(7)
    loop = torch.cat([function(part) for part in x.split(3)])
    assert torch.equal(torch.rand(1), after)
    torch.testing.assert_close(values, loop)
    expected = torch.autograd.grad(loop.sin().sum(), [x, *layer.parameters()])
    torch.testing.assert_close(found, expected)


def test_a_parameter_that_is_frozen_gets_no_gradient():
    layer = nn.Linear(4, 4)
    layer.weight.requires_grad_(False)
    values = tiled(layer, 2, [torch.randn(5, 4)], [layer])
    values.sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 5.0))
