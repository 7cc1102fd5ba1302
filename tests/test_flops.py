"""The formulas of arithmetic against what torch counts in real forward and backward passes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from typing import get_args

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elemdist import flops
from elemdist.attention import Segments, starts
from elemdist.errors import UserError
from elemdist.model import Model
from elemdist.model_config import ModelConfig, Symbols, resolved
from elemdist.model_settings import (
    AblationSettings,
    Backbone,
    CanineSettings,
    Input,
    ModelSettings,
)
from elemdist.objectives import label_nats
from elemdist.run_settings import MemorySettings
from elemdist.slot_decoder import used_slots

LENGTHS = [3, 17, 17, 64, 150]
V = 8

MODERN = {"norm": "pre", "positions": "rotary", "biases": False, "activation": "geglu"}
KINDS = {
    "bert": ModelSettings(),
    "modern": ModelSettings(**MODERN),
    "albert": ModelSettings(backbone="albert", embedding_width=16),
    "canine": ModelSettings(backbone="canine", canine=CanineSettings(local=32)),
    "canine input": ModelSettings(backbone="canine", input="canine", canine=CanineSettings(rate=3)),
    "decoder": ModelSettings(backbone="decoder", **MODERN),
    "autoregressive": ModelSettings(backbone="decoder", head="autoregressive", **MODERN),
    "byte": ModelSettings(input="byte"),
    "subword": ModelSettings(input="subword"),
    "ablations": ModelSettings(
        ablation=AblationSettings("per_slot", "shuffled", 24, "block_diagonal")
    ),
    "canine, slots apart": ModelSettings(
        backbone="canine", ablation=AblationSettings(first_projection="block_diagonal")
    ),
}


def shape(kind: str, objective: str | None = None, pooling: str = "mean") -> ModelConfig:
    model = KINDS[kind]
    model = resolved(ModelSettings(**vars(model) | {"width": 64, "layers": 3}), V)
    objective = objective or ("clm" if model.backbone == "decoder" else "mlm")
    symbols = Symbols(497, 498, 499, 500) if model.input == "subword" else None
    labels = ["a", "b", "c"] if objective == "classify" else None
    pooling = pooling if labels else "none"
    return ModelConfig(160, V, objective, model, pooling, labels, symbols=symbols)


def element_type(config: ModelConfig) -> torch.dtype:
    return torch.int32 if config.symbols else torch.uint8


def rows_of(config: ModelConfig, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, Segments]:
    """Made rows with their places, and the segments."""
    rows_TV = torch.randint(97, 123, (sum(lengths), config.slots), dtype=element_type(config))
    position_T = torch.cat([torch.arange(length) for length in lengths])
    return rows_TV, position_T, Segments(torch.tensor(starts(lengths)).int(), lengths)


def counted(config: ModelConfig, target_MV: torch.Tensor | None, memory=None) -> float:
    """What torch counts in a forward and a backward pass."""
    model = Model(config, memory)
    rows = rows_of(config, LENGTHS)
    # The other back ends of a CPU are not counted; this one computes its products one by one.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if target_MV is None:
            logits_SL = model(*rows)
            label_nats(logits_SL, torch.zeros_like(logits_SL)).sum().backward()
        else:
            select_M = torch.randperm(sum(LENGTHS))[: len(target_MV)]
            nats_M, _ = model(*rows, select_M, target_MV)
            nats_M.sum().backward()
    return float(counter.get_total_flops())


def causal_waste(config: ModelConfig) -> float:
    """What MATH computes for pairs that a causal model does not look at."""
    model = config.model
    if not config.causal:
        return 0
    full = flops.attention_flops(LENGTHS, model.width)
    return 3 * model.layers * (full - flops.attention_flops(LENGTHS, model.width, causal=True))


def targets(config: ModelConfig, rows: int) -> torch.Tensor:
    """Materials to predict, all with as many bytes and an end mark: half of the slots."""
    target_MV = torch.randint(97, 123, (rows, config.slots), dtype=element_type(config))
    target_MV[:, (config.slots + 1) // 2 :] = 255
    return target_MV


@pytest.mark.parametrize("kind", KINDS)
def test_the_formula_counts_what_torch_counts(kind):
    config = shape(kind)
    target_MV = targets(config, 40)
    assert counted(config, target_MV) == pytest.approx(expected_of(config, target_MV), rel=1e-6)


def expected_of(config: ModelConfig, target_MV: torch.Tensor | None) -> float:
    """What torch should count: by the formula, and for pairs that MATH does not leave out."""
    used, waste = None, causal_waste(config)
    if target_MV is None:
        return flops.step_flops(config, LENGTHS) + waste
    if config.model.head == "autoregressive":
        _, segments = used_slots(target_MV)
        used = sum(segments.lengths)
        triangle = flops.attention_flops(segments.lengths, config.model.slot_width, causal=True)
        square = flops.attention_flops(segments.lengths, config.model.slot_width)
        waste += 3 * config.model.slot_layers * (square - triangle)
    return flops.step_flops(config, LENGTHS, len(target_MV), used) + waste


@pytest.mark.parametrize("pooling", ["doc", "mean"])
@pytest.mark.parametrize("kind", ["modern", "canine"])
def test_the_classifier_counts_its_segments(kind, pooling):
    config = shape(kind, "classify", pooling)
    assert counted(config, None) == pytest.approx(flops.step_flops(config, LENGTHS), rel=1e-6)


@pytest.mark.parametrize("kind", ["ablations", "subword"])
def test_the_classifier_counts_its_wide_part(kind):
    config = dataclasses.replace(shape(kind, "classify"), wide=True)
    assert counted(config, None) == pytest.approx(flops.step_flops(config, LENGTHS), rel=1e-6)


def every_shape() -> dict[str, ModelConfig]:
    """Every backbone with every input, head, objective and way to widen or mix, where it can be."""
    found = {}
    for backbone, input, head, embedding, mixing in itertools.product(
        get_args(Backbone), get_args(Input), ("independent", "autoregressive"), (0, 16), (0, 24)
    ):
        for objective, pooling in (("mlm", ""), ("clm", ""), ("classify", "last"),
                                   ("classify", "max")):  # fmt: skip
            model = ModelSettings(
                backbone=backbone, input=input, head=head, embedding_width=embedding, width=64,
                layers=2, slot_width=32, slot_layers=2, canine=CanineSettings(rate=3, local=32),
                ablation=AblationSettings(mixing=mixing),
            )  # fmt: skip
            name = f"{backbone}, {input}, {head}, {embedding}, {mixing}, {objective}, {pooling}"
            if objective == "classify" and head == "autoregressive":
                continue
            with contextlib.suppress(UserError):  # one that no run can have
                found[name] = ModelConfig(
                    160, V, objective, resolved(model, V), pooling or "none",
                    ["a", "b", "c"] if pooling else None,
                    symbols=Symbols(497, 498, 499, 500) if input == "subword" else None,
                    wide=pooling == "max" and bool(mixing or input == "subword"),
                )  # fmt: skip
    return found


SHAPES = every_shape()


@pytest.mark.parametrize("backbone", get_args(Backbone))
@pytest.mark.parametrize("input", get_args(Input))
def test_every_input_on_every_backbone_is_counted(backbone, input):
    mine = {name: one for name, one in SHAPES.items() if name.startswith(f"{backbone}, {input},")}
    assert len(mine) >= 6
    for name, config in mine.items():
        target_MV = None if config.objective == "classify" else targets(config, 40)
        assert counted(config, target_MV) == pytest.approx(expected_of(config, target_MV)), name


@pytest.mark.parametrize("objective", ["mlm", "classify"])
def test_equal_materials_are_mixed_and_counted_once(objective, monkeypatch):
    config = shape("ablations", objective)
    if objective == "classify":
        config = dataclasses.replace(config, wide=True)
    rows, *places = rows_of(config, LENGTHS)
    few = [rows[torch.randint(30, (len(rows),))], *places]
    monkeypatch.setattr("tests.test_flops.rows_of", lambda *_: few)
    mixed = len(few[0].unique(dim=0))
    target_MV = None if objective == "classify" else targets(config, 40)
    expected = flops.step_flops(config, LENGTHS, 40 if target_MV is not None else 0, None, mixed)
    assert mixed <= 30
    assert counted(config, target_MV) == pytest.approx(expected, rel=1e-6)


def test_what_is_computed_again_does_not_count():
    config = shape("bert")
    target_MV = targets(config, 40)
    again = counted(config, target_MV, MemorySettings(checkpoint_every=1))
    assert again > 1.2 * flops.step_flops(config, LENGTHS, 40)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 1, 5, 63, 64, 200])
@pytest.mark.parametrize("length", [0, 1, 2, 64])
def test_the_pairs_of_a_segment(length, window, causal):
    place = torch.arange(length)
    offset = place - place.unsqueeze(1)
    seen = torch.ones(length, length, dtype=torch.bool)
    if window:
        seen &= offset.abs() <= window
    if causal:
        seen &= offset <= 0
    assert flops.pairs(length, causal, window) == seen.sum()


def test_windows_and_global_blocks():
    model = ModelSettings(width=64, layers=5, window=10, global_every=2)
    config = ModelConfig(160, V, "mlm", resolved(model, V))
    full = flops.attention_flops(LENGTHS, 64)
    near = flops.attention_flops(LENGTHS, 64, window=10)
    assert flops.stack_attention(config, LENGTHS) == 3 * full + 2 * near


def test_bert_base_by_hand():
    # 12 layers of 12 w² each; 12 * 12 * 768 * 512 more for the pairs of a row.
    config = ModelConfig(512, 12, "mlm", resolved(ModelSettings(width=768, layers=12), 12))
    # The last layer has 3 w² for each row, and 9 w² more for those that predict.
    by_hand = 1024 * (6 * (11 * 12 + 3) * 768**2 + 12 * 12 * 768 * 512)
    assert flops.step_flops(config, [512, 512]) == by_hand
    head = flops.step_flops(config, [512, 512], 150) - by_hand
    assert head == 6 * 150 * 768 * (9 * 768 + 768 + 256)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("H200", 989),
        ("x86_64", None),
        ("NVIDIA H20", None),
    ],
)
def test_what_makers_state(name, tflops):
    assert flops.stated_tflops(name) == tflops


def test_gpus_of_two_sizes():
    assert flops.gpu_of("NVIDIA A100-PCIE-40GB") == "A100-40"
    assert flops.gpu_of("NVIDIA A100 80GB PCIe") == "A100-80"
    assert flops.stated_tflops("NVIDIA H100 80GB HBM3", "fp32") == 67
