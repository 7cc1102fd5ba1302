"""Shared by the tests: small shard sets made by the real command, and a way to run commands."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# Several tests run at once: threads that wait for each other would take each other's core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Comparisons in the last bits hold for one set of matrix kernels: those for AVX-512 and bf16, which
# only some CPUs have, sum products of other shapes in another order.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# The same examples every time: what random ones find should be found by who looks for it, and not
# by somebody else's change. ELEMDIST_TEST_RANDOM=1 draws others.
if "ELEMDIST_TEST_RANDOM" not in os.environ:
    hypothesis.settings.register_profile("same", derandomize=True)
    hypothesis.settings.load_profile("same")

REPOSITORY = Path(__file__).resolve().parent.parent
ELEMDIST = str(Path(sys.executable).with_name("elemdist"))

# Topics with words of their own, so that a classifier has something to find.
TOPICS = {
    "weather": ["Regen", "cloud", "storm", "nuage", "ветер", "雨", "sunny", "frost"],
    "kitchen": ["onion", "Brot", "pepper", "soupe", "рис", "鍋", "butter", "oven"],
    "rail": ["train", "Gleis", "signal", "gare", "поезд", "駅", "ticket", "delay"],
}
# For a process that may write only a part of a file: Python would keep that part of a module's
# compiled form, and no later process could import it.
NO_BYTECODE = {"PYTHONDONTWRITEBYTECODE": "1"}
NO_GPU = "no CUDA GPU here; make test on a machine with one"  # why a test is skipped
COMMON = ["the", "and", "of", "was", "near", "very", "once", "again", "it", "then"]


def run_command(
    *words: str | Path, timeout: float = 300, cwd: Path = REPOSITORY, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, as a user does; output as text."""
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def elemdist(
    *words: str | Path, timeout: int = 300, cwd: Path = REPOSITORY, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a verb as a user does, in a fork that has imported everything; see tests/verbs.py."""
    from tests.verbs import run_verb

    return run_verb([str(word) for word in words], {**os.environ, **environment}, cwd, timeout)


def wait_until(
    condition: Callable[[], object],
    what: str,
    seconds: float = 120,
    log: Callable[[], str] = str,
) -> None:
    """Returns as soon as the condition holds; fails, with `what` was awaited and what log() says,
    when it does not."""
    deadline, pause = time.monotonic() + seconds, 0.01
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}\n{log()}"
        time.sleep(pause)
        pause = min(2 * pause, 0.2)  # a condition may ask SLURM


def expect_user_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 2, one line of error with all `parts`, and no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for part in parts:
        assert part in errors[0], errors[0]


def write_corpus(path: Path, documents: int, seed: int) -> Path:
    """JSON Lines of made text with the fields id, text and labels."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(documents):
            labels = rng.sample(sorted(TOPICS), rng.choice([1, 1, 2]))
            words = [word for label in labels for word in rng.choices(TOPICS[label], k=6)]
            words += rng.choices(COMMON, k=rng.randrange(2, 20))
            rng.shuffle(words)
            record = {"id": number, "text": " ".join(words) + ".", "labels": labels}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


# The files that take longest are begun first, so that no process is left alone with one.
LONGEST = (
    "test_faults", "test_readme", "test_compare", "test_bench", "test_exported_folder",
    "test_launch", "test_auto_micro_batch", "test_resume", "test_predict", "test_elastic",
    "test_train",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of the longest files first."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish() -> None:
    """All that is imported and collected by now stays: no collection of garbage goes over it."""
    gc.collect()
    gc.freeze()


APART = {"tests/browser": "make test-browser", "tests/cluster": "make test-cluster"}


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """A table of what was not tested. A skip's reason is "why; what makes it run"."""
    ignored = config.getoption("ignore") or []
    rows = [(name, "has a target of its own", APART[name]) for name in ignored if name in APART]
    for report in terminalreporter.stats.get("skipped", []):
        why, _, how = report.longrepr[2].removeprefix("Skipped: ").partition("; ")
        rows.append((report.nodeid, why, how or "the reason does not say"))
    if rows:
        rows.insert(0, ("not tested", "why", "what makes it run"))
        name_width, why_width = (max(len(row[column]) for row in rows) for column in (0, 1))
        terminalreporter.section(f"not tested: {len(rows) - 1}")
        for name, why, how in rows:
            terminalreporter.write_line(f"{name:{name_width}} | {why:{why_width}} | {how}")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the tests fetch or unpack goes to a folder of theirs, not to the user's."""
    os.environ["ELEMDIST_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def streaming_alone() -> Iterator[None]:
    """No other such test runs on this machine meanwhile. Runs with a StreamingDataset that begin at
    once can fail: streaming looks which number of shared memory is free, and takes it later."""
    with Path(tempfile.gettempdir(), f"elemdist-streaming-{os.getuid()}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def own_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming_alone: None
) -> Iterator[None]:
    """Lock files and caches of a test's runs stay its own; the shared memory is the machine's."""
    monkeypatch.setenv("ELEMDIST_CACHE", str(tmp_path / "cache"))
    # Not in tmp_path, which is too long for the sockets of a DataLoader's worker.
    with tempfile.TemporaryDirectory(prefix="elemdist-", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield
    tempfile.tempdir = None


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "made.jsonl", 400, seed=3)


MakeShards = Callable[..., Path]


@pytest.fixture(scope="session")
def make_shards(tmp_path_factory: pytest.TempPathFactory) -> MakeShards:
    """make_shards(source, *options) -> a new folder of shards; n = 32 and v = 8 unless told."""

    def make(source: Path, *options: str) -> Path:
        out = tmp_path_factory.mktemp("shards") / "set"
        done = elemdist(
            "shard", source, "--out", out, "--n", "32", "--v", "8", "--processes", "1", *options
        )
        assert done.returncode == 0, done.stderr
        return out

    return make


@pytest.fixture(scope="session")
def packed(corpus: Path, make_shards: MakeShards) -> Path:
    """Shards for pre-training, train/ and val/."""
    return make_shards(corpus, "--packing", "packed", "--holdout-last", "50")


@pytest.fixture(scope="session")
def labelled(corpus: Path, make_shards: MakeShards) -> Path:
    """Shards for classification, train/ and val/."""
    return make_shards(corpus, "--input.labels-field", "labels", "--holdout-last", "50")


TINY = [
    "--model.layers", "2", "--model.width", "32", "--batch.global-samples", "16",
    "--batch.micro-samples", "4", "--optim.warmup-steps", "5", "--log-every", "1",
    "--device", "cpu", "--optim.lr", "5e-3",
]  # fmt: skip


CLASSIFY = [*TINY, "--objective", "classify", "--classify.pooling", "max", "--eval-every", "0"]


@pytest.fixture(scope="session")
def classifier(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a classifier that has learned something of the made-up corpus."""
    run = tmp_path_factory.mktemp("classifier") / "run"
    done = elemdist(
        "train", *CLASSIFY, "--steps", "40", "--run-dir", run, "--data.train", labelled / "train"
    )
    assert done.returncode == 0, done.stderr
    return run


def metrics(run: Path, kind: str = "train") -> dict[int, dict[str, float]]:
    """Step -> figures of a run's metrics.jsonl."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["kind"] == kind]
    assert len(steps) == len(set(steps)), "a step was written twice"
    return {record["step"]: record for record in records if record["kind"] == kind}
