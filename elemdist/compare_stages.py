"""What a comparison consists of: shards, a vocabulary, trial runs, training, evaluation.

Each stage is a command of elemdist in a process of its own, ends in a file that is whole or not
there, and is left out where that file is there already.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from elemdist.artefacts import read_json
from elemdist.atomic import write_atomically
from elemdist.commandline import parse
from elemdist.compare_settings import CompareSettings, Entry
from elemdist.config import TrainSettings
from elemdist.errors import EXIT_INTERRUPTED, EXIT_STOPPED
from elemdist.figure_types import Cost
from elemdist.json_text import json_text
from elemdist.metrics_file import records_of
from elemdist.mixture import check_filled
from elemdist.rank_variables import without_ranks
from elemdist.shards import ShardSet
from elemdist.stop import die_with_parent, read_end

TRIAL_STEPS = 40  # of which the first half only warms up


class StageError(Exception):
    """A command ended with another exit code than 0; the message names its log."""


@dataclass(frozen=True)
class Phase:
    """One training: pre-training, or what is compared.

    Attributes:
        name: pretrain or train. words: its recipes and settings, as for `elemdist train`.
    """

    name: str
    words: list[str]

    def settings(self) -> TrainSettings:
        """Raises UserError on a key or value that cannot be."""
        return parse(TrainSettings, self.words, "elemdist compare")


class Stages:
    """The stages of one comparison, in its folder.

    Args:
        settings: of the comparison, checked.
    """

    def __init__(self, settings: CompareSettings) -> None:
        assert settings.out is not None
        self.settings, self.out = settings, Path(settings.out)

    def command(self, log: Path, verb: str, *words: str | Path) -> None:
        """Runs `elemdist VERB`, its output added to a log. Raises StageError."""
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "elemdist", verb, *map(str, words)]
        with open(log, "ab") as file:
            process = subprocess.Popen(
                command,
                env=without_ranks(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()  # training saves first
            process.wait()
            raise
        if code in (EXIT_STOPPED, EXIT_INTERRUPTED):
            raise KeyboardInterrupt
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            told = next((line for line in reversed(lines) if "error: " in line), "")
            reason = told.partition("error: ")[2] or f"exit code {code}"
            raise StageError(f"elemdist {verb}: {reason} (its output: {log})")

    # Shards

    def shards(self, entry: Entry) -> Path:
        """Return the folder of an entry's shards, made where they are not there: train, val and
        test. Raises StageError; UserError where one of them is empty."""
        folder = self.out / "shards" / entry.name
        base = [*as_words(self.shard_settings(entry)), "--quiet"]
        self.shard(folder, [*base, *self.split_words()], [self.settings.text], "train")
        if self.settings.test is not None:
            labels = ["--labels-from", str(folder / "train")] if self.labelled else []
            self.shard(folder / "test", [*base, *labels], [self.settings.test])
        for part in ("train", "val", "test"):
            if (folder / part / "index.json").exists():
                setting = "test" if part == "test" and self.settings.test is not None else "split"
                check_filled(setting, ShardSet(str(folder / part)))
        return folder

    def plain_shards(self) -> Path:
        """Those of the baselines, and of the text that a vocabulary is learned from."""
        return self.shards(Entry(".plain", shard={"n": 512, "v": 16}))

    def text_shards(self, entry: Entry) -> list[Path]:
        """What an entry is pre-trained on: the training documents, and the unlabelled ones."""
        folder = self.out / "shards" / f"{entry.name}-text"
        base = self.shard_settings(entry) | {"packing": "packed"}
        base = {name: value for name, value in base.items() if name != "input.labels_field"}
        base.pop("overlong", None)
        words = [*as_words(base), "--quiet"]
        self.shard(folder, [*words, *self.split_words()], [self.settings.text], "train")
        found = [folder / "train"]
        if self.settings.unlabelled:
            self.shard(folder / "unlabelled", words, self.settings.unlabelled)
            found.append(folder / "unlabelled")
        return found

    def shard(
        self, folder: Path, words: list[str], inputs: Sequence[str | None], part: str = ""
    ) -> None:
        """Makes a set, or those of a split, of which `part` is one."""
        if not (folder / part / "index.json").exists():
            log = self.out / "logs" / f"shard-{folder.relative_to(self.out / 'shards')}.log"
            sources = [source for source in inputs if source is not None]
            self.command(log, "shard", *sources, "--out", folder, *words)

    def shard_settings(self, entry: Entry) -> dict[str, Any]:
        """The settings of `elemdist shard` for an entry."""
        chosen = {f"input.{name}": value for name, value in self.settings.input.items()}
        chosen |= entry.shard
        if entry.vocabulary:
            chosen |= {"segmenter": "subword", "tokenizer": str(self.vocabulary_file(entry))}
        return chosen

    def split_words(self) -> list[str]:
        """How documents are split, for the command line."""
        by = "id" if self.settings.input.get("id_field") else "bytes"
        return ["--split", self.settings.split, "--split-by", by]

    @property
    def labelled(self) -> bool:
        """Whether the documents have labels."""
        return bool(self.settings.input.get("labels_field"))

    def vocabulary_file(self, entry: Entry) -> Path:
        """Where an entry's learned tokenizer lies."""
        return self.out / "vocabularies" / f"{entry.name}.json"

    # Training

    def phases(self, entry: Entry) -> list[Phase]:
        """The trainings of an entry, in order; `words` without what a single run adds."""
        shared = ["--ranks", str(self.settings.ranks), "--device", self.settings.device]
        shared += ["--checkpoint-every", "0", "--log-every", str(TRIAL_STEPS // 2)]
        extra = {"model.input": "subword", "model.tokenizer": str(self.vocabulary_file(entry))}
        own = as_words(extra) if entry.vocabulary else []
        train = [*entry.recipe, *shared, *as_words(entry.settings), *own]
        if not entry.pretrain:
            return [Phase("train", train)]
        before = [*entry.pretrain, *shared, *as_words(entry.pretrain_settings), *own]
        return [Phase("pretrain", before), Phase("train", train)]

    def data_words(self, entry: Entry, phase: Phase) -> list[str]:
        """The data of a phase, for the command line of `elemdist train`."""
        if phase.name == "pretrain":
            sources = [{"path": str(path)} for path in self.text_shards(entry)]
            return ["--data.mixture", json_text(sources)]
        folder = self.shards(entry)
        # Nothing is chosen by these evaluations: they are for the curves.
        return ["--data.train", str(folder / "train"), "--data.eval", str(folder / "val")]

    def steps(self, entry: Entry, phase: Phase) -> int:
        """How many the budget allows for. For all but `steps` a trial tells what one costs."""
        unit, amount = self.settings.budget.stated()
        if entry.pretrain:
            share = entry.pretrain_share
            amount *= share if phase.name == "pretrain" else 1 - share
        cost = 1.0 if unit == "steps" else self.cost_of_a_step(entry, phase)[unit]
        return max(1, round(amount / cost))

    def cost_of_a_step(self, entry: Entry, phase: Phase) -> dict[str, float]:
        """Seconds, bytes of text and floating-point operations of a step, by a trial run."""
        file = self.out / "trials" / f"{entry.name}-{phase.name}.json"
        if file.exists():
            found: dict[str, float] = read_json(file, Cost)
            return found
        run = self.out / "trials" / f"{entry.name}-{phase.name}"
        words = [*phase.words, *self.data_words(entry, phase), "--run-dir", str(run), "--resume"]
        # A peak of 1 TFLOPS makes a count of operations out of the MFU.
        words += ["--steps", str(TRIAL_STEPS), "--eval-every", "0", "--peak-tflops", "1"]
        words += ["--optim.warmup-steps", "0"]  # of the whole run; it changes no cost
        words += ["--data.eval", "null"] if phase.name == "train" else []
        log = self.out / "logs" / f"trial-{entry.name}-{phase.name}.log"
        self.command(log, "train", *words)
        *_, last = trained_lines(run)
        gpus = read_json(run / "environment.json", dict[str, Any])["gpus"]
        own = phase.settings()  # an entry may have ranks and a device of its own
        ranks = own.ranks or max(1, len(gpus) if own.device != "cpu" else 0)
        samples = last["samples"] / last["step"]
        seconds = samples / last["samples_per_s"]
        cost = {
            "seconds": seconds,
            "bytes": last["bytes_per_s"] * seconds,
            "flops": last["mfu"] * 1e12 * ranks * seconds,
        }
        write_json(file, cost)
        return cost

    def train(self, entry: Entry, seed: int) -> Path:
        """All trainings of an entry with a seed; the run folder of the last."""
        place = self.out / "runs" / entry.name / f"seed-{seed}"
        start: list[str] = []
        for phase in self.phases(entry):
            run = place / phase.name
            end = read_end(run)
            if end is None or end["state"] != "done":
                steps = self.steps(entry, phase)
                words = [*phase.words, *self.data_words(entry, phase), *start]
                words += ["--run-dir", str(run), "--steps", str(steps), "--seed", str(seed)]
                words += ["--eval-every", str(max(1, steps // 8)), "--resume"]
                words += ["--checkpoint-every-minutes", "5", "--keep-last", "1"]
                log = self.out / "logs" / f"{entry.name}-{seed}-{phase.name}.log"
                self.command(log, "train", *words)
            start = ["--init-from", str(run)]
        return run


def as_words(values: dict[str, Any]) -> list[str]:
    """Settings by dotted key as words of a command line."""
    words = []
    for key, value in values.items():
        words += [f"--{key}", value if isinstance(value, str) else json_text(value)]
    return words


def trained_lines(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of training in a run's metrics. Raises UserError."""
    return (line for line in records_of(run / "metrics.jsonl") if line["kind"] == "train")


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all, and its folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json_text(value, indent=2) + "\n")
