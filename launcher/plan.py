"""What a recipe amounts to, without training it: ``elemdist plan RECIPE.yaml ...``.

The parameters by part, exactly, out of the very modules that would be trained (on torch's meta
device, so a large model takes no memory), beside those of the same model with a subword vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from elemdist.commandline import parse
from elemdist.config import TrainSettings, at_least
from elemdist.errors import UserError

if TYPE_CHECKING:
    from elemdist.model_config import ModelConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SIZES = ("tiny", "small", "base", "large")
SUBWORDS = 30_522  # rows of the table of the original BERT, uncased


@dataclass
class PlanSettings(TrainSettings):
    """Tell what a recipe amounts to, without training it"""

    n: int = 512
    """Materials of a sample."""
    v: int = 12
    """Bytes of a material."""
    vocabulary: int = SUBWORDS
    """Rows of the table of the subword model that the recipe is compared with."""
    sequence_parallel: int = 1
    """Ranks that share a sequence; the heads are split over them."""
    table: bool = False
    """Print the parameters of all sizes in configs/ as a Markdown table instead."""


def shape(settings: PlanSettings, subword: bool) -> ModelConfig:
    """The model of the settings, or the same with a subword table. Raises UserError."""
    from elemdist.model_config import Symbols, model_config

    model = settings.model
    subword = subword or model.input == "subword"
    if subword:
        factorised = model.embedding_width or (128 if model.backbone == "albert" else 0)
        model = replace(
            model,
            input="subword",
            head="independent",
            embedding_width=factorised,
            ablation=type(model.ablation)(),
        )
    size = settings.vocabulary
    symbols = Symbols(size - 3, size - 2, size - 1, size) if subword else None
    return model_config(
        replace(settings, model=model), settings.n, settings.v, ["label"], symbols=symbols
    )


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by part: embedding, positions, blocks, head."""
    import torch

    from elemdist.model import Model

    with torch.device("meta"):
        model = Model(config)
    counts = dict.fromkeys(("embedding", "positions", "blocks", "head"), 0)
    for name, parameter in model.named_parameters():
        part = name.removeprefix("encoder.").partition(".")[0]
        counts[part if part in counts else "blocks"] += parameter.numel()
    return counts


def check_split(heads: int, ranks: int) -> None:
    """Raises UserError where heads cannot be split over the ranks that share a sequence."""
    if ranks < 1 or heads % ranks:
        fitting = [degree for degree in range(1, heads + 1) if heads % degree == 0]
        raise UserError(
            f"sequence_parallel: {heads} heads cannot be split over {ranks} ranks;"
            f" {', '.join(map(str, fitting))} can share a sequence"
        )


def lines(settings: PlanSettings) -> list[str]:
    """The parameters of one recipe by part."""
    ours, theirs = shape(settings, subword=False), shape(settings, subword=True)
    check_split(ours.model.heads, settings.sequence_parallel)
    model = ours.model
    mine, subword = parameters(ours), parameters(theirs)
    found = [
        f"{model.backbone}, {ours.objective}: {model.layers} layers, width {model.width},"
        f" {model.heads} heads, feed-forward {model.feedforward}; n = {ours.n}, v = {ours.v}",
        f"{'parameters':12}{model.input:>16}{f'{settings.vocabulary:,} subwords':>20}",
    ]
    for part, count in [*mine.items(), ("all", sum(mine.values()))]:
        other = sum(subword.values()) if part == "all" else subword[part]
        found.append(f"{part:12}{count:16,}{other:20,}")
    if ours.causal:
        found.append("the head is that of --model.head " + model.head)
    return found


def table() -> list[str]:
    """Markdown: the sizes in configs/ as a BERT, elementwise against subword."""
    found = [
        "| recipe | layers, width, n, v | embedding, elementwise | embedding, subword"
        " | all, elementwise | all, subword |",
        "|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        settings = parse(PlanSettings, [str(CONFIGS / f"{size}.yaml")], "elemdist plan")
        settings.v = 16 if settings.model.width % 12 else 12
        ours, theirs = shape(settings, subword=False), shape(settings, subword=True)
        mine, subword = parameters(ours), parameters(theirs)
        figures = (
            mine["embedding"],
            subword["embedding"],
            sum(mine.values()),
            sum(subword.values()),
        )
        geometry = f"{ours.model.layers}, {ours.model.width}, {ours.n}, {ours.v}"
        counts = " | ".join(f"{figure:,}" for figure in figures)
        found.append(f"| `{size}.yaml` | {geometry} | {counts} |")
    return found


def run(argv: list[str], description: str | None) -> int:
    """``elemdist plan``; the exit code."""
    settings = parse(PlanSettings, argv, "elemdist plan", None, description)
    settings.check_values()
    at_least(1, n=settings.n, v=settings.v)
    at_least(4, vocabulary=settings.vocabulary)
    print("\n".join(table() if settings.table else lines(settings)))
    return 0
