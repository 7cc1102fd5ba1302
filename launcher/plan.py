"""What a recipe amounts to, without training it: ``elemdist plan RECIPE.yaml ... --gpus 32``.

The parameters by part, exactly, out of the very modules that would be trained (on torch's meta
device, so a large model takes no memory), beside those of the same model with a subword vocabulary;
then the batch, the memory of a GPU by part, the work and its time, see launcher/run_plan.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from elemdist.commandline import parse
from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.flops import GPUS, GpuName
from elemdist.json_types import Amount, Bounds, Share

if TYPE_CHECKING:
    from elemdist.model_config import ModelConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SIZES = ("tiny", "small", "base", "large")
SUBWORDS = 30_522  # rows of the table of the original BERT, uncased
N, V = 512, 12  # where nothing says otherwise
HELP = (
    "Without a GPU and without training: parameters; how the ranks share the samples of a step;"
    " the memory of a rank by part, and what would take less where it does not fit; work and hours;"
    " the longest samples that would fit. Memory and work are at their most: full samples of one"
    " document each, all slots in use. Attention counts as a flash kernel, and 2 GB of memory are"
    " set apart for the runtime. Exit code 1: it does not fit."
)


@dataclass
class PlanSettings(TrainSettings):
    """The plan"""

    gpus: Annotated[int, Bounds(0, 1 << 24)] = 0
    """Ranks of the run, each with a GPU of its own; 0: as many as `ranks` says, else 1."""
    gpu: GpuName = "H100"
    """The GPU: its memory, and what its maker states that it computes at most."""
    gpu_memory_gb: Amount = 0.0
    """Memory of a GPU in 10^9 bytes; 0: that of `gpu`."""
    gpus_per_node: Annotated[int, Bounds(1, 4096)] = 8
    """GPUs of a machine, which share its memory: for what is offloaded to it."""
    mfu: Share = 0.4
    """Share of its peak (`peak_tflops`, or what the maker of `gpu` states) that a GPU reaches in
    training. Assumed, not measured: well set up runs report 0.3 to 0.5, small models less."""
    n: Annotated[int, Bounds(0, 1 << 24)] = 0
    """Materials of a sample; 0: as in the shards that the recipe trains on, else 512."""
    v: Annotated[int, Bounds(0, 256)] = 0
    """Bytes of a material; 0: as in the shards that the recipe trains on, else 12."""
    vocabulary: Annotated[int, Bounds(4, 1 << 28)] = SUBWORDS
    """Rows of the table of the subword model that the recipe is compared with; of input subword
    with a `model.tokenizer`, as many as that has tokens."""
    table: bool = False
    """Print all sizes in configs/ on these GPUs as a Markdown table instead."""
    deepspeed_config: bool = False
    """Print the DeepSpeed configuration that follows from the recipe instead, as JSON."""

    @property
    def world_size(self) -> int:
        """Ranks of the run."""
        return self.gpus or self.ranks or 1

    @property
    def memory_bytes(self) -> float:
        """Of a GPU."""
        return (self.gpu_memory_gb or GPUS[self.gpu].memory_gb) * 1e9

    def check_plan(self) -> None:
        """Raises UserError on a value that cannot be."""
        self.check_values()
        if not 0 < self.mfu <= 1:
            raise UserError(f"mfu: {self.mfu} is not in (0, 1]")


def take_geometry(settings: PlanSettings) -> list[str]:
    """Fills in n and v where they are not set, from the first shards that the recipe names; gives
    their labels, or one. Raises UserError where those shards cannot be read."""
    labels = None
    source = settings.data.sources()[0].path
    if source and (not (settings.n and settings.v) or settings.objective == "classify"):
        from elemdist.shard_index import read_manifest

        manifest = read_manifest(source)
        try:
            settings.n = settings.n or int(manifest["n"])
            settings.v = settings.v or int(manifest["v"])
            labels = manifest["labels"] and [str(label) for label in manifest["labels"]]
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{source}/manifest.json is damaged; copy the set again") from None
    settings.n, settings.v = settings.n or N, settings.v or V
    take_vocabulary(settings)
    return labels or ["label"]


def take_vocabulary(settings: PlanSettings) -> None:
    """Take the size of the vocabulary out of the tokenizer that the recipe names for input subword.

    Raises:
        UserError: the file cannot be read, or `vocabulary` says another size.
    """
    if settings.model.input != "subword" or settings.model.tokenizer is None:
        return
    from elemdist.subword import open_symbols

    found = open_symbols(settings.model.tokenizer).vocabulary
    if settings.vocabulary not in (SUBWORDS, found):
        raise UserError(
            f"vocabulary: {settings.vocabulary}, but {settings.model.tokenizer} has {found} tokens;"
            " leave --vocabulary out"
        )
    settings.vocabulary = found


def shape(settings: PlanSettings, subword: bool, labels: list[str] | None = None) -> ModelConfig:
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
            # Of the twin it is the tokenizer's; asked of input subword itself it is a mistake.
            uncased=model.uncased and model.input == "subword",
        )
    size = settings.vocabulary
    symbols = Symbols(size - 3, size - 2, size - 1, size) if subword else None
    chosen = replace(settings, model=model)
    return model_config(chosen, settings.n, settings.v, labels or ["label"], symbols=symbols)


def tensor_sizes(config: ModelConfig) -> dict[str, int]:
    """The parameters of each tensor of a model, by its name."""
    import torch

    from elemdist.model import Model

    with torch.device("meta"):
        model = Model(config)
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def by_part(sizes: dict[str, int]) -> dict[str, int]:
    """Parameters by part: embedding, positions, blocks, head."""
    counts = dict.fromkeys(("embedding", "positions", "blocks", "head"), 0)
    for name, size in sizes.items():
        part = name.removeprefix("encoder.").partition(".")[0]
        counts[part if part in counts else "blocks"] += size
    return counts


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by part of a model of this shape."""
    return by_part(tensor_sizes(config))


def parameter_lines(settings: PlanSettings, ours: ModelConfig, mine: dict[str, int]) -> list[str]:
    """The parameters of one recipe by part."""
    subword = parameters(shape(settings, subword=True))
    model = ours.model
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


def table(settings: PlanSettings) -> list[str]:
    """Markdown: the sizes in configs/ as a BERT, elementwise against subword, on these GPUs."""
    from launcher.run_plan import case_of, duration, total, work_of

    gpus = f"{settings.world_size} {settings.gpu}"
    found = [
        "| recipe | layers, width | n, v | bytes a sequence | parameters | with subwords"
        f" | GB a GPU | steps | on {gpus} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        one = parse(PlanSettings, [str(CONFIGS / f"{size}.yaml")], "elemdist plan")
        one = replace(one, gpus=settings.gpus, gpu=settings.gpu, mfu=settings.mfu)
        one.n, one.v = N, 16 if one.model.width % V else V
        ours, theirs = shape(one, subword=False), shape(one, subword=True)
        sizes = tensor_sizes(ours)
        case = case_of(one, ours, sizes)
        cells = [
            f"`{size}.yaml`",
            f"{ours.model.layers}, {ours.model.width}",
            f"{ours.n}, {ours.v}",
            f"{ours.n * ours.v:,}",
            f"{sum(sizes.values()):,}",
            f"{sum(parameters(theirs).values()):,}",
            f"{total(case) / 1e9:.1f}",
            f"{one.steps:,}",
            duration(work_of(one, case).seconds * one.steps),
        ]
        found.append(f"| {' | '.join(cells)} |")
    return found


def run(argv: list[str], description: str | None) -> int:
    """``elemdist plan``; the exit code: 1 where the recipe does not fit the memory."""
    settings = parse(PlanSettings, argv, "elemdist plan", None, f"{description}. {HELP}")
    settings.check_plan()
    if settings.table:
        print("\n".join(table(settings)))
        return 0
    from launcher.run_plan import deepspeed_text, run_lines

    labels = take_geometry(settings)
    config = shape(settings, subword=False, labels=labels)
    if settings.deepspeed_config:
        print(deepspeed_text(settings, config), end="")
        return 0
    sizes = tensor_sizes(config)
    found, fits = run_lines(settings, config, sizes)
    print("\n".join([*parameter_lines(settings, config, by_part(sizes)), *found]))
    return 0 if fits else 1
