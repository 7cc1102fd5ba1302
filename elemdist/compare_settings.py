"""The settings of a comparison: one YAML states all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from elemdist.errors import UserError
from elemdist.json_types import Amount, Bounds, CountOrNone, Processes, Rate, Seed, check_types
from elemdist.robustness_settings import RobustnessSettings

UNITS = ("seconds", "steps", "bytes", "flops")


@dataclass
class Entry:
    """What is compared"""

    name: str
    """What it is called in the tables, and its folders."""
    recipe: list[str] = field(default_factory=list)
    """Recipes of `elemdist train`, each above the one before it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of `elemdist train` above the recipes, by dotted key."""
    shard: dict[str, Any] = field(default_factory=dict)
    """Settings of `elemdist shard`: n, v, segmenter, overlong and so on."""
    vocabulary: CountOrNone = 0
    """For input subword: learn a WordPiece vocabulary of so many tokens from the training text;
    0: none, or name a tokenizer in settings and shard."""
    lowercase: bool = True
    """That vocabulary is of text in lower case and without accents, as of BERT uncased."""
    pretrain: list[str] = field(default_factory=list)
    """Recipes of a pre-training before it, on the training text and `unlabelled`; none: from
    scratch."""
    pretrain_settings: dict[str, Any] = field(default_factory=dict)
    """Settings above those recipes."""
    pretrain_share: Annotated[float, Bounds(0, 1, above=True, below=True)] = 0.5
    """Share of the budget that goes into pre-training."""
    baseline: Literal["none", "svm", "logistic"] = "none"
    """Instead of a model: a linear SVM, or logistic regression, on TF-IDF of words."""


@dataclass
class BudgetSettings:
    """What every model may spend on training, its pre-training included; one of these"""

    seconds: Amount = 0.0
    """Of training, on this machine: a short trial first tells how long a step takes."""
    steps: CountOrNone = 0
    """Optimizer steps."""
    bytes: Amount = 0.0
    """Bytes of text."""
    flops: Annotated[float, Bounds(0, 1e29)] = 0.0
    """Floating-point operations of forward and backward passes."""

    def stated(self) -> tuple[str, float]:
        """(unit, amount). Raises UserError unless exactly one is set."""
        found = [(unit, float(getattr(self, unit))) for unit in UNITS if getattr(self, unit)]
        if len(found) != 1:
            raise UserError(f"budget: set one of {', '.join(UNITS)} to a number above 0")
        return found[0]


@dataclass
class NoiseSettings:
    """Errors in the test documents, as `elemdist robustness` makes them"""

    kinds: list[str] = field(default_factory=list)
    """swap, drop, insert, repeat, case, homoglyph, ocr, mixed; none: no such figures."""
    rates: list[Rate] = field(default_factory=lambda: [0.0, 0.05, 0.1, 0.2])
    """How likely a letter is hit, 0 to 1."""


@dataclass
class CompareSettings:
    """A comparison"""

    out: str | None = None
    """Folder for all it makes. Required. The same command again goes on where it ended."""
    text: str | None = None
    """The documents: a file that `elemdist shard` reads, or a folder of such. Required."""
    test: str | None = None
    """Documents for the test; none: `split` holds some out."""
    split: str = "train=0.85,val=0.05,test=0.1"
    """Shares of training, validation and test, by a hash of each document's id (input.id_field) or
    bytes; with `test` given, without a share of it."""
    unlabelled: list[str] = field(default_factory=list)
    """More text for pre-training."""
    input: dict[str, Any] = field(default_factory=dict)
    """Settings input.* of `elemdist shard`: text_field, labels_field, id_field and so on."""
    models: list[Entry] = field(default_factory=list)
    """What is compared; the others are tested against the first."""
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    seeds: list[Seed] = field(default_factory=lambda: [1, 2, 3])
    """Every model is trained once with each."""
    metrics: list[str] = field(default_factory=list)
    """Figures of `elemdist eval` for the table; none: micro_f1, macro_f1 and micro_roc_auc, or
    bits_per_byte."""
    thresholds: Literal["fixed", "tuned", "per_label"] = "tuned"
    """Of a label: as trained, one for all that is best on the validation set, or one for each."""
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    resamples: CountOrNone = 1000
    """Of the test documents, for the paired test."""
    ranks: Processes = 0
    """Processes of every training; 0: one per GPU, or one on CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""
    keep_going: bool = True
    """Where a training fails, do the others and leave it out of the table, which says so."""

    def check(self) -> None:
        """Raises UserError on what can be said without looking at the data."""
        if not self.out or not self.text:
            raise UserError("name the comparison and its folder: elemdist compare FILE --out DIR")
        check_types(self)
        if not self.models:
            raise UserError("models: there is none; each is an entry with a name, see --help")
        self.budget.stated()
        check_names(one.name for one in self.models)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError("seeds: at least one, and none of them twice")
        if self.noise.kinds:
            RobustnessSettings(["-"], "-", kinds=self.noise.kinds, rates=self.noise.rates).check()
        for one in self.models:
            where = f"models: {one.name}"
            if one.baseline != "none" and (one.recipe or one.settings or one.pretrain):
                raise UserError(f"{where}: a baseline has no recipe, settings or pre-training")
            if 0 < one.vocabulary < 300:
                raise UserError(f"{where}: a vocabulary of {one.vocabulary} is too small; 300")
        if self.models[0].baseline != "none" and len(self.models) == 1:
            raise UserError("models: a baseline alone has nothing to be compared with")


def check_names(names: Iterable[str]) -> None:
    """Names are folders, and each is there once. Raises UserError."""
    seen: set[str] = set()
    for name in names:
        if not name or name in seen or name.startswith(".") or "/" in name or "\0" in name:
            raise UserError(f"models: '{name}' is no name, or is there twice; it names a folder")
        seen.add(name)
