"""Made-up corpora for whole runs, runs that are killed, and their results as bytes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path

from tests.conftest import ELEMDIST

# A run with everything: labels and duplicates need a first pass, the split makes two sets.
MANY = [
    "--n", "16", "--v", "8", "--item-mb", "1", "--shard-mb", "1", "--input.labels-field", "labels",
    "--dedup", "exact", "--split", "train=0.8,val=0.2", "--on-error", "skip",
]  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes]:
    """Name -> content of all files beneath a folder."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def write_corpus(path: Path, records: int, seed: int = 0) -> Path:
    """JSON Lines with labels, repeated documents, and a broken line here and there."""
    rng = random.Random(seed)
    words = ["river", "Straße", "雨", "a", "12,5", "…", "compilation", "\n\n"]
    with path.open("w", encoding="utf-8") as file:
        for number in range(records):
            text = " ".join(rng.choices(words, k=rng.randrange(0, 120)))
            record = {"id": number, "text": text, "labels": rng.sample(["x", "y", "z"], 1)}
            line = json.dumps(record) if rng.random() > 0.001 else "{broken"
            file.write(line + "\n")
    return path


def interrupted(corpus: Path, out: Path, *options: str) -> None:
    """Leaves an unfinished run in `out`: killed as soon as two work items are done."""
    command = [ELEMDIST, "shard", str(corpus), "--out", str(out), "--processes", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        # An entry has its name once it is whole.
        if len(list(out.glob(".elemdist/done/*.json"))) >= 2 or process.poll() is not None:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not list(out.rglob("index.json"))
