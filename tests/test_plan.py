"""The plan's counts against models that are really built, and against the original's."""

from __future__ import annotations

import pytest
import torch

from elemdist.model import Model
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import ModelSettings
from elemdist.streaming_compat import fit_torchvision
from launcher import plan
from tests.conftest import REPOSITORY, elemdist, expect_user_error

fit_torchvision()  # transformers imports torchvision, too
import transformers  # noqa: E402


def settings(*recipes: str) -> plan.PlanSettings:
    paths = [str(REPOSITORY / "configs" / f"{name}.yaml") for name in recipes]
    return plan.parse(plan.PlanSettings, paths, "elemdist plan")


def test_the_counts_are_those_of_the_model_that_is_trained():
    config = ModelConfig(
        n=32, v=8, objective="mlm", model=resolved(ModelSettings(width=64, layers=3), 8)
    )
    counts = plan.parameters(config)
    assert sum(counts.values()) == sum(p.numel() for p in Model(config).parameters())
    assert counts["embedding"] == 256 * 64 // 8
    assert counts["positions"] == 32 * 64


@pytest.mark.parametrize(("size", "v"), [("base", 12), ("large", 16)])
def test_the_subword_twin_has_the_parameters_of_the_original(size, v):
    chosen = settings(size)
    chosen.v = v
    twin = plan.shape(chosen, subword=True)
    bert = transformers.BertConfig(
        hidden_size=twin.model.width,
        num_hidden_layers=twin.model.layers,
        num_attention_heads=twin.model.heads,
        intermediate_size=twin.model.feedforward,
    )
    with torch.device("meta"):
        original = transformers.BertForMaskedLM(bert)
    count = sum(p.numel() for p in original.parameters())
    # BERT has two vectors for the kinds of segments, which we have not.
    assert sum(plan.parameters(twin).values()) == count - 2 * twin.model.width


def test_the_table_of_the_readme_is_what_the_command_prints():
    done = elemdist("plan", "--table")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "| `base.yaml` | 12, 768, 512, 12 | 16,384 | 23,440,896 |" in done.stdout


def test_a_recipe_is_told_by_part():
    done = elemdist("plan", "configs/base.yaml", "configs/decoder.yaml", "--v", "16")
    assert done.returncode == 0, done.stderr
    assert "decoder, clm: 12 layers, width 768, 16 heads, feed-forward 2048" in done.stdout
    embedding = next(line for line in done.stdout.splitlines() if line.startswith("embedding"))
    assert embedding.split() == ["embedding", f"{256 * 48:,}", f"{30522 * 768:,}"]


def test_what_cannot_be_is_one_line():
    expect_user_error(
        elemdist("plan", "configs/base.yaml", "--sequence-parallel", "5"),
        "12 heads cannot be split over 5 ranks",
        "1, 2, 3, 4, 6, 12",
    )
    expect_user_error(
        elemdist("plan", "configs/large.yaml"), "1024 is not a multiple of v=12", "1020 and 1032"
    )
    expect_user_error(elemdist("plan", "--objective", "clm"), "take --objective mlm")
    expect_user_error(elemdist("plan", "--v", "0"), "v: 0 is below 1")


@pytest.mark.parametrize("kind", [None, "bert-modern", "albert", "canine", "decoder"])
@pytest.mark.parametrize("size", plan.SIZES)
def test_every_size_and_kind_of_recipe_can_be_built(size, kind):
    chosen = settings(*[name for name in (size, kind) if name])
    chosen.v = 16 if size == "large" else 12
    counts = plan.parameters(plan.shape(chosen, subword=False))
    assert counts["embedding"] == 256 * chosen.model.width // chosen.v
    assert counts["blocks"] > counts["head"] > 0 or kind == "albert"
