"""Bits per byte of masked materials that counting alone reaches, beside a run if one is named.

    elemdist bench baselines --train SHARDS --eval SHARDS [--run RUN] [--samples 0] [--json FILE]

The materials are those that `elemdist eval` hides, by the same masks, and their end marks count as
they do there, so the figures compare. Without shards, made-up text is used.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from elemdist import checkpoint, evaluate, evaluation
from elemdist.data import evaluation_batches
from elemdist.errors import UserError
from elemdist.eval_settings import EvalSettings
from elemdist.mixture import check_filled
from elemdist.objectives import NATS_PER_BIT, mask_materials
from elemdist.run_settings import MlmSettings
from elemdist.shards import ShardSet
from tests.bench.ngrams import BYTES, MATERIALS, SLOTS, TRIGRAM, Predictors, Statistics
from tests.bench.rounds import Rates, made_text, write_figures

SAMPLES_AT_ONCE = 256
LINES_OF_A_DOCUMENT = 20
SEES = {
    SLOTS: "nothing; how often each byte, or the end, stands in each slot: where a model starts",
    BYTES: "nothing, not even the slot",
    TRIGRAM: "the two symbols before each byte, unmasked, the material's own included",
    MATERIALS: "nothing; of materials rare in training, what the byte trigram sees",
}
RUN_SEES = "what is left of its sample on both sides, the hidden materials left out"


@dataclass(frozen=True)
class Figures:
    """Of one way of predicting: bits per byte over so many materials and bytes of text."""

    bits_per_byte: float
    materials: int
    bytes: int
    sees: str


def count(shards: ShardSet) -> Predictors:
    """The statistics of a training set."""
    found = Statistics(shards.v)
    for batch, _ in evaluation_batches(shards, SAMPLES_AT_ONCE, 0, 1):
        found.add(batch.rows_TV.numpy())
    return Predictors(found)


def measure(
    predictors: Predictors, shards: ShardSet, mask_rate: float, samples: int
) -> dict[str, Figures]:
    """Return what counting pays for the materials that an evaluation of `shards` hides. Raises
    UserError where it hides none."""
    nats = dict.fromkeys(SEES, 0.0)
    materials = text_bytes = 0
    for batch, _ in evaluation_batches(shards, SAMPLES_AT_ONCE, 0, 1, samples):
        targets = mask_materials(batch, mask_rate, evaluate.EVAL_SEED)
        chosen_T = torch.zeros(len(batch.rows_TV), dtype=torch.bool)
        chosen_T[targets.select_M] = True
        paid = predictors.nats(batch.rows_TV.numpy(), chosen_T.numpy())
        nats = {name: nats[name] + paid[name] for name in nats}
        materials += len(targets.select_M)
        text_bytes += int(targets.text_bytes)
    if not text_bytes:
        raise UserError(f"{shards.path}: nothing in it is hidden; name a larger set")
    return {
        name: Figures(float(total) / text_bytes / NATS_PER_BIT, materials, text_bytes, SEES[name])
        for name, total in nats.items()
    }


def evaluate_run(run: str, data: str, samples: int) -> Figures:
    """The figures of `elemdist eval`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "figures.json")
        evaluation.run(EvalSettings(run=run, data=data, samples=samples, out=str(out)))
        found = json.loads(out.read_text())
    return Figures(found["bits_per_byte"], found["materials"], found["bytes"], RUN_SEES)


def mask_rate_of(run: str | None) -> float:
    """The share of the materials that a run's evaluation hides.

    Raises:
        UserError: it does not predict masked materials.
    """
    if run is None:
        return MlmSettings().mask_rate
    settings = checkpoint.find(run).settings()
    if settings.objective != "mlm":
        raise UserError(
            f"{run}: objective {settings.objective}; these baselines are for runs of objective mlm"
        )
    return settings.mlm.mask_rate


def made_sets(folder: Path, megabytes: float) -> tuple[str, str]:
    """(training, evaluation) shards of made-up text."""
    text, corpus, out = folder / "text", folder / "made.jsonl", folder / "set"
    made_text(text, megabytes)
    lines = text.read_text().splitlines(keepends=True)
    documents = [
        "".join(lines[first : first + LINES_OF_A_DOCUMENT])
        for first in range(0, len(lines), LINES_OF_A_DOCUMENT)
    ]
    with corpus.open("w") as file:
        file.writelines(json.dumps({"text": document}) + "\n" for document in documents)
    command = [
        sys.executable, "-m", "elemdist", "shard", str(corpus), "--out", str(out), "--n", "128",
        "--v", "12", "--packing", "packed", "--quiet", "--holdout-last", str(len(documents) // 5),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return str(out / "train"), str(out / "val")


def lines_of(title: str, figures: dict[str, Figures]) -> list[str]:
    """The table."""
    width = max(map(len, figures))
    found = [title, f"{'':{width}} {'bits per byte':>14} {'of materials':>14} {'bytes':>12}  sees"]
    for name, one in figures.items():
        found.append(
            f"{name:{width}} {one.bits_per_byte:14.4f} {one.materials:14,} {one.bytes:12,}"
            f"  {one.sees}"
        )
    if len({(one.materials, one.bytes) for one in figures.values()}) > 1:
        found.append("The run's input has other materials than these shards: its masks are others.")
    return found


def compare(options: argparse.Namespace) -> None:
    rate = mask_rate_of(options.run)
    start = time.perf_counter()
    train = ShardSet(options.train)
    check_filled("--train", train)
    predictors = count(train)
    counted = time.perf_counter() - start
    shards = ShardSet(options.eval)
    check_filled("--eval", shards)
    if shards.v != train.v:
        raise UserError(f"{options.eval}: v={shards.v}, but {options.train} has v={train.v}")
    figures = measure(predictors, shards, rate, options.samples)
    if options.run:
        figures[options.run] = evaluate_run(options.run, options.eval, options.samples)
    title = (
        f"{options.eval}, {rate:.0%} of the materials hidden; {train.text_bytes / 1e6:,.1f} MB of"
        f" {options.train} counted in {counted:.1f} s"
    )
    print("\n".join(lines_of(title, figures)))
    table = Rates(
        title,
        "bits per byte",
        [(options.run, name, None) for name in SEES if options.run],
        less=True,
        details={name: vars(one) for name, one in figures.items()},
        rates={name: [one.bits_per_byte] for name, one in figures.items()},
    )
    write_figures([table], options.json)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", help="shards whose statistics are taken (made-up text)")
    parser.add_argument("--eval", help="held-out shards; goes with --train (made-up text)")
    parser.add_argument("--run", help="also evaluate this run or checkpoint folder (none)")
    parser.add_argument("--samples", type=int, default=0, help="of --eval; 0: all (default)")
    parser.add_argument("--quick", action="store_true", help="little made-up text: does it run?")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if bool(options.train) != bool(options.eval):
        raise UserError("--train and --eval go together")
    if options.run and not options.eval:
        raise UserError("--run needs the shards to evaluate it on: add --train and --eval")
    if options.train:
        return compare(options)
    with tempfile.TemporaryDirectory() as folder:
        options.train, options.eval = made_sets(Path(folder), 0.1 if options.quick else 10)
        compare(options)


if __name__ == "__main__":
    main()
