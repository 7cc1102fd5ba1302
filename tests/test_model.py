from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from elemdist.data import Batch, unpad
from elemdist.errors import UserError
from elemdist.model import Model, parameter_groups
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import AblationSettings, CanineSettings, ModelSettings
from elemdist.objectives import targets_of
from elemdist.rows import DOC, PAD
from elemdist.run_settings import MemorySettings

N, V = 12, 4
MODERN = {"norm": "pre", "positions": "rotary", "biases": False, "activation": "geglu"}
# Every backbone, and every setting that changes what a row can see or how it is computed.
VARIANTS: dict[str, dict[str, Any]] = {
    "bert": {},
    "pre-norm": {"norm": "pre"},
    "modern": MODERN,
    "albert": {"backbone": "albert", "activation": "gelu_tanh", "embedding_width": 16},
    "canine": {"backbone": "canine", "canine": CanineSettings(rate=2, local=4, kernel=3)},
    "modern canine": {"backbone": "canine", "canine": CanineSettings(rate=3, local=5), **MODERN},
    "decoder": {"backbone": "decoder", **MODERN},
    "window": {"window": 2},
    "local and global": {"window": 1, "global_every": 2, "positions": "rotary"},
    "window decoder": {"backbone": "decoder", "window": 2},
    "autoregressive head": {"head": "autoregressive", "slot_width": 32},
    "autoregressive decoder": {"backbone": "decoder", "head": "autoregressive", "slot_width": 32},
    "untied": {"tied": False},
    "block-diagonal": {"ablation": AblationSettings(first_projection="block_diagonal")},
    "per-slot tables": {"ablation": AblationSettings(tables="per_slot")},
    "shuffled slots": {"ablation": AblationSettings(slots="shuffled")},
    "mixing": {"ablation": AblationSettings(mixing=8)},
    "other heads": {"heads": 2},
}


def config(objective: str = "", **model: Any) -> ModelConfig:
    settings = ModelSettings(**{"layers": 2, "width": 32, "dropout": 0.0, **model})
    classify = objective == "classify"
    return ModelConfig(
        n=N,
        v=V,
        objective=objective or ("clm" if settings.backbone == "decoder" else "mlm"),
        model=resolved(settings, V),
        pooling="mean" if classify else "none",
        labels=["a", "b", "c"] if classify else None,
    )


def build(shape: ModelConfig, memory: MemorySettings | None = None, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    model = Model(shape, memory)
    if shape.wide:  # else its gradient goes no further than to its weights
        torch.nn.init.normal_(model.head.wide.weight)
    return model


def batch(*lengths: int, seed: int = 0) -> Batch:
    """One sample per length, its first row a DOC row, random bytes behind it."""
    rng = np.random.default_rng(seed)
    rows = np.full((len(lengths), N, V), PAD, np.uint8)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = rng.integers(0, 128, (length, V))
        row[1:length:2, 2:] = PAD
        row[0] = [DOC, PAD, PAD, PAD]
    return unpad(rows, None, np.arange(len(lengths)))


def alone(together: Batch, number: int) -> Batch:
    """Segment `number` of a batch in a batch of its own, in a sample that is mostly padding."""
    first, last = together.segments.cu_lengths[number : number + 2].tolist()
    rows = np.full((1, N, V), PAD, np.uint8)
    rows[0, : last - first] = together.rows_TV[first:last].numpy()
    return unpad(rows, None, np.array([int(together.key_T[first]) // N]))


def nats(model: Model, b: Batch) -> torch.Tensor:
    """The nats of each predicted material of a batch."""
    targets = targets_of(b, model.config, 0.5, seed=1)
    place = (b.position_T, b.segments)
    return model(targets.rows_TV, *place, targets.select_M, targets.target_MV)[0]


def gradients(model: Model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_document_is_the_same_packed_and_alone(variant):
    """Outputs and gradients: those of the packed batch are the sum of those of its documents."""
    model = build(config(**VARIANTS[variant])).double()
    together = batch(1, 3, 7, 7, 12)
    packed = nats(model, together)
    parts = [nats(model, alone(together, number)) for number in range(5)]
    torch.testing.assert_close(packed, torch.cat(parts))
    weights = torch.rand(len(packed), dtype=torch.float64)
    expected = gradients(model, (torch.cat(parts) * weights).sum())
    found = gradients(model, (packed * weights).sum())
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, msg=name)


@pytest.mark.parametrize("memory", ["whole", "recomputed in tiles"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_that_the_last_block_leaves_out_change_nothing(variant, memory):
    """Outputs and gradients are those of a model that finishes all rows."""
    tiles = MemorySettings(checkpoint_every=1, tile_rows=4) if memory != "whole" else None
    model = build(config(**VARIANTS[variant]), tiles).double()
    together = batch(1, 3, 7, 12)
    rows = together.rows_TV, together.position_T, together.segments
    select_M = torch.tensor([0, 2, 3, 5, 10, 11, 12, 20])
    whole_MW, found_MW = model.encoder(*rows)[select_M], model.encoder(*rows, select_M)
    torch.testing.assert_close(found_MW, whole_MW)
    weights = torch.rand_like(whole_MW)
    expected = gradients(model, (whole_MW * weights).sum())
    found = gradients(model, (found_MW * weights).sum())
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gradient_flows_where_none_may(variant):
    """Row by row: which inputs an output depends on."""
    model = build(config(**VARIANTS[variant])).double()
    together = batch(5, 9)
    kept: list[torch.Tensor] = []
    model.encoder.embedding.register_forward_hook(lambda _m, _i, out: kept.append(out))
    out_TW = model.encoder(together.rows_TV, together.position_T, together.segments)
    settings = model.config.model
    reach = settings.window * settings.layers if settings.window else N
    reach = N if settings.global_every else reach
    seen_TT = torch.stack(
        [
            torch.autograd.grad(out_TW[t].square().sum(), kept[0], retain_graph=True)[0]
            .abs()
            .sum(1)
            for t in range(14)
        ]
    )
    row = torch.arange(14)
    owner = (row >= 5).int()
    may_TT = (owner[:, None] == owner) & ((row[:, None] - row).abs() <= reach)
    if settings.backbone == "decoder":
        may_TT &= row[:, None] >= row
    assert (seen_TT[~may_TT] == 0).all()
    if settings.backbone != "canine":  # its last rows have no molecule of their own
        assert (seen_TT[may_TT] > 0).all()


@pytest.mark.parametrize("variant", ["bert", "modern", "canine", "decoder"])
@pytest.mark.parametrize("pooling", ["doc", "last", "mean", "max"])
def test_a_classified_document_is_the_same_packed_and_alone(variant, pooling):
    shape = config("classify", **VARIANTS[variant])
    if (variant, pooling) == ("decoder", "doc"):
        with pytest.raises(UserError, match="take last"):
            dataclasses.replace(shape, pooling=pooling)
        return
    model = build(dataclasses.replace(shape, pooling=pooling)).eval()
    together = batch(3, 5, 8)
    rows = together.rows_TV, together.position_T, together.segments
    logits = model(*rows)
    assert logits.shape == (3, 3)
    row_S = {"doc": [0, 3, 8], "last": [2, 7, 15]}.get(pooling)
    if row_S:  # all rows finished, then one of each document taken
        x_SW = torch.tanh(model.head.dense(model.encoder(*rows)[row_S]))
        torch.testing.assert_close(logits, model.head.labels(x_SW))
    for number in range(3):
        one = alone(together, number)
        expected = model(one.rows_TV, one.position_T, one.segments)
        torch.testing.assert_close(logits[number], expected[0])


@pytest.mark.parametrize(
    "variant", ["bert", "modern", "albert", "canine", "autoregressive decoder"]
)
@pytest.mark.parametrize(
    "memory",
    [
        MemorySettings(checkpoint_every=1),
        MemorySettings(checkpoint_every=2),
        MemorySettings(tile_rows=3),
        MemorySettings(tile_loss_rows=2),
        MemorySettings(checkpoint_every=1, tile_rows=4, tile_loss_rows=3),
    ],
    ids=str,
)
def test_less_memory_gives_the_same_numbers(variant, memory):
    # Tiles of rows draw their dropout tile by tile, so other numbers than all rows at once.
    dropout = 0.0 if memory.tile_rows else 0.1
    plain = build(config(**{**VARIANTS[variant], "dropout": dropout}))
    saving = build(plain.config, memory)
    b = batch(5, 9, 12)
    found = []
    for model in (plain.double(), saving.double()):
        torch.manual_seed(3)
        loss = nats(model, b)
        found.append((loss, gradients(model, loss.sum())))
    (loss, grads), (saved_loss, saved_grads) = found
    torch.testing.assert_close(saved_loss, loss)
    assert saved_grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(saved_grads[name], grad, msg=name)
    torch.testing.assert_close(nats(saving.eval(), b), nats(plain.eval(), b))


def test_the_element_head_is_tied_to_the_table_and_runs_on_the_chosen_rows_only():
    model = build(config())
    b = batch(5, 8)
    logits = model(b.rows_TV, b.position_T, b.segments, torch.tensor([2, 7]))
    assert logits.shape == (2, 4, 256)
    names = [name for name, p in model.named_parameters() if p.shape == (256, 8)]
    assert names == ["encoder.embedding.table"]
    # 32 and 33 occur neither as bytes nor as targets: their gradient comes from the head alone
    rows = torch.full_like(b.rows_TV, 5)
    model(rows, b.position_T, b.segments, torch.tensor([2]))[..., 33].sum().backward()
    grad = model.encoder.embedding.table.grad
    assert grad is not None
    assert (grad[33] != 0).any()
    assert (grad[32] == 0).all()


def test_weight_decay_is_for_matrices_only():
    model = build(config())
    decayed, plain = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert all(p.ndim == 2 for p in decayed["params"])
    assert any(p is model.encoder.embedding.table for p in plain["params"])
    total = sum(p.numel() for group in (decayed, plain) for p in group["params"])
    assert total == sum(p.numel() for p in model.parameters())


def test_predictions_start_at_the_frequency_of_the_elements_in_each_slot():
    model = build(config())
    rows = np.full((1000, 4), PAD, np.uint8)
    rows[:, 0] = 97
    rows[:500, 1] = 98
    rows[:10] = [DOC, PAD, PAD, PAD]  # is never predicted
    model.expect_elements(torch.from_numpy(rows))
    bias = model.head.bias_VE.detach().softmax(-1)
    assert bias[0, 97] == pytest.approx(991 / (990 + 256))
    assert bias[1, 98] == pytest.approx(491 / (990 + 256))
    assert bias[1, PAD] == pytest.approx(501 / (990 + 256))
    # slot 2 counts the materials of two bytes only: those of one have ended before
    assert bias[2, PAD] == pytest.approx(491 / (490 + 256))


def test_a_classifier_starts_at_the_share_of_each_label():
    model = build(config("classify"))
    model.expect_labels(torch.tensor([0.5, 0.1, 0.0]))
    assert model.head.labels.bias.sigmoid().tolist() == pytest.approx([0.5, 0.1, 1e-4])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"width": 30}, "30 is not a multiple of v=4.*the nearest are 28 and 32"),
        ({"heads": 5}, "5 heads do not divide the width 32; the default, one per element"),
        ({"heads": 32, "positions": "rotary"}, "rotary needs an even width of a head"),
        ({"head": "autoregressive", "slot_width": 40}, "slot_width: 40 is not a multiple of 32"),
        ({"input": "byte", "ablation": AblationSettings(mixing=8)}, "elementwise, not byte"),
        ({"global_every": 2}, "there is no window"),
        ({"embedding_width": 18}, "model.embedding_width: 18 is not a multiple of v=4"),
        (
            {
                "embedding_width": 16,
                "ablation": AblationSettings(first_projection="block_diagonal"),
            },
            "needs an embedding as wide",
        ),
    ],
)
def test_what_cannot_be_built_is_one_line(settings, expected):
    with pytest.raises(UserError, match=expected):
        config(**settings)


def test_an_objective_that_does_not_fit_the_backbone_is_one_line():
    with pytest.raises(UserError, match="take --objective clm"):
        config("mlm", backbone="decoder")
    with pytest.raises(UserError, match="take --objective mlm"):
        config("clm")


def test_a_configuration_survives_json():
    shape = config(**VARIANTS["modern canine"])
    assert ModelConfig.from_json(shape.to_json()) == shape
