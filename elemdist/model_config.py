"""All that fixes the shape of a model: the settings, what the shards say, and what follows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from elemdist.commandline import build
from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.json_types import Amount, Bounds
from elemdist.model_settings import ModelSettings, Objective
from elemdist.rows import ELEMENTS
from elemdist.set_types import Elements, Rows, SegmenterName, repeated

Token = Annotated[int, Bounds(0, 1 << 28)]
ONE_ROW = ("doc", "last")  # poolings that look at one row of each segment
CHARACTER_BYTES = 4  # of the longest UTF-8 character: the slots of input canine


@dataclass(frozen=True)
class Symbols:
    """Token numbers that a subword model uses as DOC, SEP and MASK, and how many numbers there
    are, those three included."""

    doc: Token
    sep: Token
    mask: Token
    vocabulary: Token


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model; lies beside its weights as ``config.json``.

    Attributes:
        n, v: materials of a sample, elements of a material, of the shards.
        model: the settings, with 0 replaced by what it stands for.
        pooling, wide, wide_lead, loss: of a classifier, see ClassifySettings.
        segmenter: of the shards; sampling cuts its prompt in the same way.
        symbols: of a subword model, else None.
    """

    n: Rows
    v: Elements
    objective: Objective
    model: ModelSettings
    pooling: Literal["none", "doc", "last", "mean", "max"] = "none"
    labels: list[str] | None = None
    segmenter: SegmenterName = "word"
    symbols: Symbols | None = None
    wide: bool = False
    loss: Literal["cross_entropy", "squared_hinge"] = "cross_entropy"
    wide_lead: Amount = 0.0

    @property
    def slots(self) -> int:
        """V as the model sees it: the bytes of one position."""
        own = {"byte": 1, "canine": CHARACTER_BYTES, "subword": 1}
        return own.get(self.model.input, self.v)

    @property
    def elements(self) -> int:
        """The values that a slot can have: 256, or the size of a vocabulary."""
        return self.symbols.vocabulary if self.symbols else ELEMENTS

    @property
    def units(self) -> int:
        """What the wide part of a classifier counts: the mixing layer's units, or tokens."""
        return self.symbols.vocabulary if self.symbols else self.model.ablation.mixing

    @property
    def positions(self) -> int:
        """The most positions that a sample can have. Rare characters can take a tokenizer more
        tokens than the shards count rows: a table of positions ends at n, as the original's."""
        long = self.model.input in ("byte", "canine") or (
            self.model.input == "subword" and self.model.positions == "rotary"
        )
        return self.n * self.v if long else self.n

    @property
    def embedding_width(self) -> int:
        """Floats of an embedded position."""
        return self.model.embedding_width or self.model.width

    @property
    def tied(self) -> bool:
        """Whether the predictions use the embedding's table; input canine has none."""
        return self.model.tied and self.model.input != "canine"

    @property
    def causal(self) -> bool:
        """Whether a row sees only those before it."""
        return self.model.backbone == "decoder"

    def finished(self, rows: float, segments: float, predicted: float) -> float:
        """How many rows the last block has to finish, those that the head looks at, out of so many
        in so many segments. `predicted`: those that predict."""
        if self.objective != "classify":
            return predicted
        return segments if self.pooling in ONE_ROW else rows

    def to_json(self) -> dict[str, Any]:
        """For config.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> ModelConfig:
        """Return what :meth:`to_json` gave; settings that are younger than it keep their defaults.

        Raises:
            UserError: it is no possible shape.
        """
        symbols = tree.get("symbols")
        model = build(ModelSettings, tree["model"])
        if not (model.heads and model.feedforward):  # as the settings have it, not a model
            raise UserError("model: heads or feedforward is 0")
        found = cls(**{**tree, "model": model, "symbols": symbols and Symbols(**symbols)})
        check_contradictions(found)
        return found

    def __post_init__(self) -> None:
        check(self)


def resolved(model: ModelSettings, v: int) -> ModelSettings:
    """The settings with 0 replaced by what it stands for at v elements a material."""
    gated = (8 * model.width // 3 + 63) // 64 * 64
    return replace(
        model,
        heads=model.heads or v,
        feedforward=model.feedforward
        or (gated if model.activation == "geglu" else 4 * model.width),
    )


def model_config(
    settings: TrainSettings,
    n: int,
    v: int,
    labels: list[str] | None = None,
    segmenter: SegmenterName = "word",
    symbols: Symbols | None = None,
) -> ModelConfig:
    """The model's shape out of the settings and what the shards say.

    Raises:
        UserError: it is no possible shape, or does not fit the objective.
    """
    classify = settings.objective == "classify"
    return ModelConfig(
        n=n,
        v=v,
        objective=settings.objective,
        model=resolved(settings.model, v),
        pooling=settings.classify.pooling if classify else "none",
        wide=classify and settings.classify.wide,
        wide_lead=settings.classify.wide_lead if classify else 0.0,
        loss=settings.classify.loss if classify else "cross_entropy",
        labels=labels if classify else None,
        segmenter=segmenter,
        symbols=symbols,
    )


def check_width(v: int, width: int, name: str = "model.width") -> None:
    """Raises UserError where v elements cannot share a width equally."""
    if width % v:
        below = width // v * v
        nearest = f"the nearest are {below} and {below + v}" if below else f"the least is {v}"
        raise UserError(
            f"{name}: {width} is not a multiple of v={v}, the bytes of a material; {nearest}"
        )


def check_heads(width: int, heads: int, default: int) -> None:
    """Raises UserError where heads cannot share a width equally."""
    if width % heads:
        raise UserError(
            f"model.heads: {heads} heads do not divide the width {width};"
            f" the default, one per element ({default}), does"
            if width % default == 0
            else f"model.heads: {heads} heads do not divide the width {width}; set --model.heads"
        )


def check_contradictions(config: ModelConfig) -> None:
    """Raise UserError on what the settings of a run never give, but a file may say."""
    symbols, labels = config.symbols, config.labels
    if (config.objective == "classify") != bool(labels):
        raise UserError(f"labels: the objective {config.objective} has {len(labels or [])}")
    if (twice := repeated(labels or [])) is not None:
        raise UserError(f"labels: {twice!r} is there twice")
    if (config.objective == "classify") == (config.pooling == "none"):
        raise UserError(f"pooling: {config.pooling} does not fit the objective {config.objective}")
    if (config.model.input == "subword") != (symbols is not None):
        raise UserError("symbols: they are those of input subword, and of no other")
    if symbols and max(symbols.doc, symbols.sep, symbols.mask) >= symbols.vocabulary:
        raise UserError(f"symbols: a number is beyond the vocabulary of {symbols.vocabulary}")


def check(config: ModelConfig) -> None:
    """Raises UserError on a geometry that does not divide and on settings that exclude each
    other."""
    model, ablation = config.model, config.model.ablation
    if model.input in ("elementwise", "canine"):
        name = "model.embedding_width" if model.embedding_width else "model.width"
        check_width(config.slots, config.embedding_width, name)
    check_heads(model.width, model.heads, config.v)
    if model.positions == "rotary" and model.width // model.heads % 2:
        raise UserError(
            f"model.positions: rotary needs an even width of a head; {model.width} over"
            f" {model.heads} heads is {model.width // model.heads}"
        )
    if (config.objective == "clm") != config.causal and config.objective != "classify":
        fitting = (
            "--objective clm, or an encoder such as --model.backbone bert"
            if config.causal
            else "--objective mlm, or --model.backbone decoder"
        )
        raise UserError(
            f"objective: {config.objective} does not fit the backbone {model.backbone};"
            f" take {fitting}"
        )
    if config.causal and config.pooling == "doc":
        raise UserError(
            "classify.pooling: in a decoder the DOC row sees nothing of its document; take last,"
            " mean or max"
        )
    if config.wide and not config.units:
        raise UserError(
            "classify.wide: it counts the units of a mixing layer; add --model.ablation.mixing 4096"
            if model.input == "elementwise"
            else f"classify.wide: input {model.input} has no materials; take elementwise or subword"
        )
    if model.uncased and model.input not in ("elementwise", "byte"):
        raise UserError(
            f"model.uncased: input {model.input} reads "
            + ("what its tokenizer says" if model.input == "subword" else "characters, not bytes")
            + "; leave it out"
        )
    if model.head == "autoregressive" and model.slot_width % 32:
        raise UserError(f"model.slot_width: {model.slot_width} is not a multiple of 32")
    if model.head == "autoregressive" and model.input == "subword":
        raise UserError("model.head: a subword has one slot; take independent")
    if ablation != type(ablation)() and model.input != "elementwise":
        raise UserError(
            f"model.ablation: it changes the input elementwise, not {model.input}; leave it out"
        )
    if ablation.first_projection == "block_diagonal" and model.embedding_width:
        raise UserError(
            "model.ablation.first_projection: block_diagonal needs an embedding as wide as the"
            " model; leave out --model.embedding-width"
        )
    if model.input == "canine" and config.embedding_width % model.canine.hashes:
        raise UserError(
            f"model.canine.hashes: {model.canine.hashes} do not divide the width"
            f" {config.embedding_width}"
        )
    if model.global_every and not model.window:
        raise UserError("model.global_every: there is no window; set --model.window")
