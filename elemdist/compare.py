"""Several models on one task, with the same data and the same budget, several seeds each:

elemdist compare configs/compare/reuters.yaml --text reuters.jsonl.zst --out DIR

    DIR/compare.yaml     all settings; others are refused in this folder
        shards/ vocabularies/ trials/ runs/ logs/     what the stages made
        figures/NAME-SEED.json, scores/NAME-SEED.npz   of the test documents
        noise.json, noise/     figures of the test documents with errors in them
        results.json     all figures of all seeds, and the tests
        table.md, figure.svg

Every stage is left out where its result is there: the same command goes on where it was
interrupted.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elemdist.artefacts import read_json
from elemdist.atomic import write_atomically
from elemdist.compare_noise import Points, noise_points, noise_table
from elemdist.compare_settings import CompareSettings, Entry
from elemdist.compare_stages import StageError, Stages, trained_lines, write_json
from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.figure_types import Figures
from elemdist.locks import lock
from elemdist.os_errors import reason_of
from elemdist.output import write_out
from elemdist.yaml_text import read_tree, yaml_text

# What may differ between two calls in the same folder: it changes no result.
FREE = ("out", "keep_going", "resamples")


def run(settings: CompareSettings) -> int:
    """``elemdist compare``; the exit code: 1 where a training failed and the table lacks it."""
    settings.check()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    stages = Stages(settings)
    objective = check_entries(settings, stages)
    with claimed(stages.out, settings):
        learn_vocabularies(settings, stages)
        figures: dict[str, dict[int, dict[str, Any]]] = {}
        failed: dict[str, str] = {}
        # Seed by seed, so that an early look at the table compares all models.
        for seed in settings.seeds:
            for entry in settings.models:
                tell(f"{entry.name}, seed {seed}")
                try:
                    found = figures_of(entry, seed, stages, objective)
                except StageError as error:
                    if not settings.keep_going:
                        raise UserError(str(error)) from None
                    failed[f"{entry.name}, seed {seed}"] = str(error)
                    tell(f"{entry.name}, seed {seed}: {error}")
                    continue
                figures.setdefault(entry.name, {})[seed] = found
        points: Points = []
        if objective == "classify":
            try:
                points = noise_points(settings, stages, figures)
            except StageError as error:
                if not settings.keep_going:
                    raise UserError(str(error)) from None
                failed["noise"] = str(error)
        conclude(settings, stages, figures, failed, objective, points)
    return 1 if failed else 0


def tell(line: str) -> None:
    """A line with the time, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def check_entries(settings: CompareSettings, stages: Stages) -> str:
    """The objective that is compared. Raises UserError naming the entry that cannot be."""
    found: dict[str, str] = {}
    for entry in settings.models:
        if entry.baseline != "none":
            continue
        try:
            phases = [phase.settings() for phase in stages.phases(entry)]
            for one in phases:
                one.check_values()
                check_counted(settings, one)
        except UserError as error:
            raise UserError(f"models: {entry.name}: {error}") from None
        check_objective(entry, phases, stages.labelled)
        found[entry.name] = phases[-1].objective
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name}: {objective}" for name, objective in found.items())
        raise UserError(f"models: they have different objectives ({told}), so no figure compares")
    objective = next(iter(found.values()), "classify")
    if objective != "classify" and len(found) < len(settings.models):
        raise UserError("models: a baseline classifies; it cannot be compared in bits per byte")
    return objective


def check_counted(settings: CompareSettings, phase: TrainSettings) -> None:
    """Raise UserError where a budget of FLOPs would leave out what a training computes."""
    if settings.budget.flops and phase.objective == "classify" and phase.classify.refit:
        raise UserError(
            f"classify.refit {phase.classify.refit:g}: a budget of FLOPs does not count what it"
            " computes after the last step; leave it out, or set budget.seconds or budget.steps"
        )


def check_objective(entry: Entry, phases: list[TrainSettings], labelled: bool) -> None:
    """Raises UserError where the data has not what an entry's objective needs."""
    if phases[-1].objective == "classify" and not labelled:
        raise UserError(
            f"models: {entry.name}: it classifies; say where the labels are: input: {{labels_field:"
            " labels}"
        )
    if len(phases) == 2 and phases[0].objective == "classify":
        raise UserError(f"models: {entry.name}: pretrain: its objective is classify; take mlm")


@contextmanager
def claimed(out: Path, settings: CompareSettings) -> Iterator[None]:
    """The folder of a comparison, for this process alone. Raises UserError where it is another's,
    or in use."""
    tree = {k: v for k, v in dataclasses.asdict(settings).items() if k not in FREE}
    text = yaml_text(tree)
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"out: cannot write into {out}: {reason_of(error)}") from None
    try:
        if flaw := lock(handle, f"out: another process compares in {out}; wait for it"):
            tell(f"{out} cannot be locked ({flaw}): see to it that no other comparison runs there")
        stated = out / "compare.yaml"
        if not stated.exists():
            if unknown := [child.name for child in out.iterdir() if child.name != ".lock"]:
                raise UserError(f"out: {out} holds {unknown[0]}, which no comparison made")
            write_atomically(stated, text)
        elif others := other_settings(stated, tree):
            told = ", ".join(others)
            raise UserError(
                f"out: {out} holds a comparison with other settings ({told}); name another folder"
            )
        yield
    finally:
        os.close(handle)


def other_settings(stated: Path, tree: dict[str, Any]) -> list[str]:
    """Return the names of the settings that are others than in the folder. Raises UserError where
    its file cannot be read."""
    old = read_tree(stated)
    old = old if isinstance(old, dict) else {}
    return [name for name in tree | old if old.get(name, tree) != tree.get(name, old)]


def learn_vocabularies(settings: CompareSettings, stages: Stages) -> None:
    """The WordPiece vocabularies of entries that ask for one, from the training documents alone.
    Raises UserError where these cannot be sharded."""
    from elemdist.peers import documents_of, learn_wordpiece

    for entry in settings.models:
        file = stages.vocabulary_file(entry)
        if entry.vocabulary and not file.exists():
            tell(f"{entry.name}: a vocabulary of {entry.vocabulary} tokens")
            try:
                texts = documents_of(stages.plain_shards() / "train")[0]
            except StageError as error:
                raise UserError(str(error)) from None
            file.parent.mkdir(exist_ok=True)
            write_atomically(file, learn_wordpiece(texts, entry.vocabulary, entry.lowercase))


def figures_of(entry: Entry, seed: int, stages: Stages, objective: str) -> dict[str, Any]:
    """The figures of an entry with a seed on the test documents; trains it where need be. Raises
    StageError."""
    name = f"{entry.name}-{seed}"
    file = stages.out / "figures" / f"{name}.json"
    trained = None if entry.baseline != "none" else stages.train(entry, seed)
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        scores = stages.out / "scores" / f"{name}.npz"
        scores.parent.mkdir(exist_ok=True)
        if trained is None:
            write_json(file, baseline_figures(entry, stages, scores))
        else:
            data = stages.shards(entry)
            words: list[str | Path] = ["--data", data / "test", "--out", file]
            words += ["--device", stages.settings.device]
            if objective == "classify":
                words += ["--bootstrap", "0", "--scores", scores]
                if (chosen := stages.settings.thresholds) != "fixed":
                    words += ["--thresholds", chosen, "--tune-on", data / "val"]
            stages.command(stages.out / "logs" / f"eval-{name}.log", "eval", trained, *words)
    found = read_json(file, Figures)
    return {**found, "training": [] if trained is None else spent(entry, seed, stages)}


def baseline_figures(entry: Entry, stages: Stages, scores: Path) -> dict[str, Any]:
    """The same figures of a baseline, which has no seed. Raises StageError."""
    from elemdist import thresholds
    from elemdist.evaluation import write_scores
    from elemdist.multilabel import by_frequency, label_counts, multilabel_figures
    from elemdist.peers import baseline_scores

    folder = stages.plain_shards()
    assert entry.baseline != "none"
    found, labels, count_L = baseline_scores(entry.baseline, folder)
    threshold: Any = 0.5
    if stages.settings.thresholds != "fixed":
        tuned = stages.settings.thresholds == "tuned"
        threshold = (thresholds.best if tuned else thresholds.per_label)(*found["val"])
    score_BL, truth_BL = found["test"]
    each = label_counts(score_BL, truth_BL, threshold)
    figures = multilabel_figures(score_BL, truth_BL, labels, threshold, each)
    figures["thresholds"] = each.threshold_L.tolist()
    figures["by_frequency"] = by_frequency(each, count_L)
    write_scores(scores, score_BL, truth_BL, labels)
    return figures


def spent(entry: Entry, seed: int, stages: Stages) -> list[dict[str, Any]]:
    """What the trainings of an entry took, in order."""
    found = []
    for phase in stages.phases(entry):
        run = stages.out / "runs" / entry.name / f"seed-{seed}" / phase.name
        per_step, lines, steps = 0.0, 0, 0
        for line in trained_lines(run):
            steps, lines = line["step"], lines + 1
            per_step += line["samples"] / steps / line["samples_per_s"]
        figures = {"steps": steps, "seconds": round(per_step / lines * steps, 1)}
        found.append({"phase": phase.name, "parameters": parameters_of(run), **figures})
    return found


def parameters_of(run: Path) -> int:
    """How many numbers the newest checkpoint of a run holds as its model."""
    from elemdist import checkpoint

    return sum(tensor.numel() for tensor in checkpoint.find(str(run)).weights().values())


def conclude(
    settings: CompareSettings,
    stages: Stages,
    figures: dict[str, dict[int, dict[str, Any]]],
    failed: dict[str, str],
    objective: str,
    points: Points,
) -> None:
    """Writes the results, the table and the figure. Raises UserError where nothing was trained."""
    from elemdist.compare_table import draw, results, table

    if not figures:
        raise UserError(f"no training succeeded; the first: {next(iter(failed.values()))}")
    metrics = settings.metrics or (
        ["micro_f1", "macro_f1", "micro_roc_auc"] if objective == "classify" else ["bits_per_byte"]
    )
    found = results(figures, metrics, stages.out / "scores", settings.resamples)
    unit, amount = settings.budget.stated()
    found = {"budget": {unit: amount}, "seeds": settings.seeds, **found, "failed": failed}
    write_json(stages.out / "results.json", found)
    text = table(found) + (f"\n{noise_table(points)}" if points else "")
    write_atomically(stages.out / "table.md", text)
    draw(found, stages.out / "figure.svg")
    places = f"{stages.out / 'results.json'}; the picture: {stages.out / 'figure.svg'}"
    write_out(f"{text}\nall figures: {places}\n")
