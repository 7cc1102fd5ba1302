"""The main job from end to end, in a few minutes: python -m elemdist.demo

Text that every Python installation has becomes shards, an elementwise BERT is pre-trained on it
under DeepSpeed ZeRO on two ranks, becomes a multilabel classifier, and is judged on files that it
has never seen. Every step shows the command that it runs: the same commands work on other text.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from elemdist import demo_corpus
from elemdist.artefacts import read_json
from elemdist.atomic import write_atomically, write_result
from elemdist.demo_corpus import PARTS, Corpus, Document
from elemdist.errors import EXIT_USER_ERROR, UserError
from elemdist.figure_types import Figures
from elemdist.json_text import json_text
from elemdist.os_errors import reason_of

MARKER = ".made-by-elemdist-demo"  # only a folder with it in it is ever removed
RECIPES = Path(__file__).resolve().parent.parent / "configs" / "demo"
SHAPE = ("--n", "256", "--v", "12", "--segmenter", "word")


class StepError(Exception):
    """A command of the demo ended with another exit code than 0."""

    def __init__(self, command: str, code: int) -> None:
        super().__init__(f"demo: `{command}` ended with exit code {code}; its output tells why")
        self.code = code


class Story:
    """Tells the steps, runs their commands and keeps the time of each."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.number = 0
        self.took_s: dict[str, float] = {}

    def tell(self, heading: str, *lines: str) -> None:
        """A step's heading and why it is there."""
        self.number += 1
        print(f"\n=== {self.number}. {heading} ===", *lines, sep="\n", flush=True)

    def elemdist(self, *arguments: str | Path, timed_as: str = "") -> None:
        """Runs an elemdist command as a user would, its output straight to the terminal."""
        words = [str(argument) for argument in arguments]
        shown = shlex.join(["elemdist", *words])
        print(f"\n$ {shown}", flush=True)
        started = time.perf_counter()
        code = subprocess.run([console_script(), *words]).returncode
        if code:  # a negative one is the signal that ended it, which shells report as 128 + n
            raise StepError(shown, code if code > 0 else 128 - code)
        if timed_as:
            self.took_s[timed_as] = time.perf_counter() - started

    def total_s(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.start


def console_script() -> str:
    """The elemdist command of the environment that runs this."""
    script = Path(sys.executable).with_name("elemdist")
    if not script.exists():
        raise UserError(f"{script}: not there; `make setup` installs it")
    return str(script)


def fresh_folder(folder: Path) -> None:
    """Makes the demo's folder, in place of an earlier demo's; never in place of anything else."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: not a folder of an earlier demo; choose another with --out")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise UserError(f"{folder}: holds files that are not a demo's; choose another --out")
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / MARKER, "The next demo replaces this folder.\n")
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {reason_of(error)}") from None


def recipe(name: str) -> str:
    """The recipe's path as short as it can be typed here."""
    path = RECIPES / name
    if not path.exists():
        raise UserError(f"{path}: no such recipe; run the demo from a clone of the repository")
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


def default_ranks() -> int:
    """Two, or as many as there are GPUs where there are any."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 2
    return min(2, gpus)


def collect(out: Path, story: Story) -> Corpus:
    """Writes the text and the labelled functions as JSON Lines."""
    story.tell(
        "Collect the text",
        "The source and the documentation of this Python's standard library. The task: which",
        "modules does a function use? Its import statements are cut out, and the labels are",
        "what Python's own parser says. Files for the test are in no training text.",
    )
    corpus = demo_corpus.build()
    text = out / "text"
    text.mkdir()
    print()
    for part in PARTS:
        if part != "test":
            write_jsonl(text / f"source-{part}.jsonl", corpus.texts[part], corpus.labels)
        write_jsonl(text / f"functions-{part}.jsonl", corpus.functions[part], corpus.labels)
    print(f"labels: {' '.join(corpus.labels)}")
    return corpus


def write_jsonl(path: Path, documents: list[Document], labels: list[str]) -> None:
    """Writes documents as JSON Lines, and says so."""
    lines = [json_text(document.record(labels)) + "\n" for document in documents]
    write_result(path, "".join(lines))
    print(f"{path}: {len(lines):,} documents, {path.stat().st_size / 1e6:.1f} MB")


def shard(out: Path, story: Story) -> None:
    """Text to rows of bytes."""
    story.tell(
        "Shard",
        "Text becomes rows of 12 bytes, a word or a mark each, and samples of 256 rows.",
        "Text for pre-training is packed without gaps; a function is a document of its own.",
    )
    text, shards = out / "text", out / "shards"
    for part in ("train", "val"):
        source, target = text / f"source-{part}.jsonl", shards / f"source-{part}"
        story.elemdist("shard", source, "--out", target, *SHAPE, "--packing", "packed")
    labelled: list[str | Path] = ["--packing", "document", "--input.labels-field", "labels"]
    for part in PARTS:
        source, target = text / f"functions-{part}.jsonl", shards / f"functions-{part}"
        story.elemdist("shard", source, "--out", target, *SHAPE, *labelled)
        if part == "train":  # the other parts have the same labels, in the same order
            labelled += ["--labels-from", target]


def train(out: Path, ranks: int, story: Story) -> None:
    """Pre-training and fine-tuning."""
    shards, runs = out / "shards", out / "runs"
    story.tell("Pre-train", "The model learns to write masked words, byte by byte.")
    story.elemdist(
        *("train", recipe("pretrain.yaml"), "--run-dir", runs / "pretrain"),
        *("--data.train", shards / "source-train", "--data.eval", shards / "source-val"),
        *("--ranks", str(ranks)),
        timed_as="pre-training",
    )
    story.tell("Fine-tune", "The same encoder with a new head: a yes or no for each module.")
    story.elemdist(
        *("train", recipe("classify.yaml"), "--run-dir", runs / "classify"),
        *("--data.train", shards / "functions-train", "--data.eval", shards / "functions-val"),
        *("--init-from", runs / "pretrain", "--ranks", str(ranks)),
        timed_as="fine-tuning",
    )


def evaluate(out: Path, story: Story) -> dict[str, Any]:
    """The figures on the functions of files kept apart."""
    story.tell("Evaluate", "On functions of files that were in no training text.")
    figures = out / "test.json"
    data = out / "shards" / "functions-test"
    story.elemdist("eval", out / "runs" / "classify", "--data", data, "--out", figures)
    result: dict[str, Any] = read_json(figures, Figures)
    return result


def report(out: Path, corpus: Corpus, test: dict[str, Any], story: Story) -> None:
    """The curves, and all figures beside what needs no model."""
    from elemdist.demo_figures import print_table  # loads torch

    picture = out / "curves.png"
    story.tell("Look")
    runs = out / "runs"
    story.elemdist("plot", runs / "pretrain", runs / "classify", "--out", picture)
    print_table(out, corpus, test)
    times = {**story.took_s, "all steps": story.total_s()}
    print("minutes: " + ", ".join(f"{name} {took_s / 60:.1f}" for name, took_s in times.items()))
    print(f"curves: {picture}")


def main(argv: list[str] | None = None) -> int:
    """Runs the story; the exit code is that of the step that failed, if one did."""
    parser = argparse.ArgumentParser(prog="python -m elemdist.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for all it makes")
    parser.add_argument(
        "--ranks", type=int, default=0, help="processes of training; default: 2, or one per GPU"
    )
    settings = parser.parse_args(argv)
    out, story = settings.out, Story()
    try:
        console_script()
        fresh_folder(out)
        ranks = settings.ranks or default_ranks()
        corpus = collect(out, story)
        shard(out, story)
        train(out, ranks, story)
        test = evaluate(out, story)
        report(out, corpus, test, story)
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except StepError as error:
        print(error, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
