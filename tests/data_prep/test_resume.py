"""Runs that are killed, stopped, shared out or disturbed: the set is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import texts as made_texts

from data_prep import shard
from data_prep.settings import ShardSettings
from elemdist.shards import ShardSet
from tests.conftest import ELEMDIST, elemdist, expect_user_error
from tests.data_prep.corpora import MANY, files_of, interrupted, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "made.jsonl", 16_000)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    done = elemdist("shard", corpus, "--out", out, "--processes", "1", *MANY)
    assert done.returncode == 0, done.stderr
    found = files_of(out)
    shards = [name for name in found if name.endswith(".mds")]
    assert len(shards) > 16, "too few for a run to be killed in between"
    assert "rejects.jsonl" in found
    return found


def test_killed_at_ten_moments(corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    rng = random.Random()
    seed = rng.randrange(1 << 30)
    rng.seed(seed)
    print(f"seed {seed}")
    out = tmp_path / "set"
    command = [ELEMDIST, "shard", str(corpus), "--out", str(out), "--processes", "2", *MANY]
    longest, killed = 4.0, 0
    while killed < 10:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            process.communicate(timeout=rng.uniform(0.0, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
        else:  # this machine is done before that moment: from the start, and sooner
            longest = min(longest, time.monotonic() - began)
            shutil.rmtree(out)
        if (out / ".elemdist").exists():
            assert not (out / "train/index.json").exists() or (out / "train/journal.jsonl").exists()
    done = elemdist(*command[1:])
    assert done.returncode == 0, done.stderr
    assert files_of(out) == undisturbed


@pytest.mark.parametrize("processes", ["2", "5"])
def test_more_processes(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path, processes: str
) -> None:
    done = elemdist("shard", corpus, "--out", tmp_path / "set", "--processes", processes, *MANY)
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "set") == undisturbed


def test_parts_of_an_array(corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "set"
    command = ["shard", corpus, "--out", out, "--processes", "1", *MANY]
    parts = [[*command, "--part", f"{number}/3"] for number in range(3)]
    for told in ("its share of the first pass is done", "the same command without --part"):
        for part in parts[:2]:
            done = elemdist(*part)
            assert done.returncode == 0, done.stderr
        done = elemdist(*parts[2])
        assert told in done.stdout or "work items are done" in done.stdout
        assert not (out / "train/index.json").exists()
    done = elemdist(*command)
    assert done.returncode == 0, done.stderr
    assert files_of(out) == undisturbed


@settings(
    deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    documents=st.lists(made_texts, min_size=1, max_size=30),
    repeat=st.integers(1, 60),
    segmenter=st.sampled_from(("word", "char", "byte")),
    packing=st.sampled_from(("document", "packed")),
    dedup=st.sampled_from(("off", "exact", "normalized")),
)
def test_random_corpora(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[str],
    repeat: int,
    segmenter: Any,
    packing: Any,
    dedup: Any,
) -> None:
    folder = tmp_path_factory.mktemp("random")
    rng = random.Random(0)
    for number in range(4):
        some = [rng.choice(documents) + str(rng.randrange(50)) * 40 for _ in range(100 * repeat)]
        lines = [json.dumps({"text": text}) + "\n" for text in some]
        (folder / f"{number}.jsonl").write_text("".join(lines))
    found = []
    for processes in (1, 2, 5):
        out = folder / str(processes)
        shard.run(
            ShardSettings(
                [str(folder / f"{number}.jsonl") for number in range(4)],
                str(out),
                n=8,
                v=4,
                segmenter=segmenter,
                packing=packing,
                dedup=dedup,
                item_mb=1,
                shard_mb=1,
                processes=processes,
                quiet=True,
            )
        )
        found.append(files_of(out))
    assert found[0] == found[1] == found[2]


def test_what_is_done_is_not_done_again(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    interrupted(corpus, out, *MANY)
    entry = sorted(out.glob(".elemdist/done/*"))[0]
    shards = sorted(out.glob("*/shard.00000.*"))
    before = [path.stat().st_mtime_ns for path in (entry, *shards)]
    done = elemdist("shard", corpus, "--out", out, "--processes", "1", *MANY)
    assert done.returncode == 0, done.stderr
    assert [path.stat().st_mtime_ns for path in shards] == before[1:]


def test_damaged_while_unfinished(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "set"
    interrupted(corpus, out, *MANY)
    first = sorted(out.glob("train/shard.00000.*"))[0]
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    sorted(out.glob("train/shard.00001.*"))[0].unlink()
    done = elemdist("shard", corpus, "--out", out, "--processes", "2", *MANY)
    assert done.returncode == 0, done.stderr
    assert files_of(out) == undisturbed


def test_a_state_that_a_dying_machine_tore(
    corpus: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Names without content, as a power failure leaves them, are work that is not done."""
    out = tmp_path / "set"
    interrupted(corpus, out, *MANY)
    for folder, content in (
        ("scan", b""),
        ("scan", b"[]"),
        ("done", b""),
        ("done", b'{"sets": 5}'),
    ):
        entries = sorted(out.glob(f".elemdist/{folder}/*.json"))
        entries[len(content) % 2].write_bytes(content)
    done = elemdist("shard", corpus, "--out", out, "--processes", "2", *MANY)
    assert done.returncode == 0, done.stderr
    assert files_of(out) == undisturbed


def test_restart_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "made.jsonl", 6000), tmp_path / "set"
    interrupted(corpus, out, *MANY)
    (out / "rejects.jsonl").write_text("of a merge that was killed\n")
    corpus.write_text('{"text": "all is well now", "labels": ["x"]}\n' * 3)
    # Whatever the split, three times one document are one: the other set stays empty.
    done = elemdist("shard", corpus, "--out", out, *MANY, "--restart")
    assert done.returncode == 0, done.stderr
    assert not (out / "rejects.jsonl").exists()
    assert len(list(out.glob("*/*.mds"))) == 1
    assert not (out / ".elemdist").exists()


def test_an_error_keeps_what_is_done(tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "made.jsonl", 6000), tmp_path / "set"
    lines = corpus.read_text().splitlines(keepends=True)
    good = [line for line in lines if not line.startswith("{broken")]
    corpus.write_text("".join(good) + "{broken\n")
    command = ["shard", corpus, "--out", out, "--n", "16", "--item-mb", "1", "--processes", "1"]
    failed = elemdist(*command)
    expect_user_error(failed, f"line {len(good) + 1:,}", "not valid JSON")
    assert re.search(r"[1-9]\d* of \d+ work items are done and kept", failed.stderr)
    done = elemdist(*command, "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert "left out for errors: 1 document, see rejects.jsonl" in done.stdout
    (reject,) = (json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines())
    assert reject["where"] == f"line {len(good) + 1:,}"
    assert ShardSet(str(out)).manifest["rejected_documents"] == 1


def test_standard_input(corpus: Path, tmp_path: Path) -> None:
    lines = corpus.read_bytes().splitlines(keepends=True)[:3000]
    text = b"".join(line for line in lines if not line.startswith(b"{broken"))
    (tmp_path / "same.jsonl").write_bytes(text)
    options = ["--n", "16", "--item-mb", "1", "--input.format", "jsonl"]
    piped = subprocess.run(
        [ELEMDIST, "shard", "-", "--out", str(tmp_path / "a"), *options],
        input=text,
        capture_output=True,
    )
    assert piped.returncode == 0, piped.stderr.decode()
    assert (
        elemdist("shard", tmp_path / "same.jsonl", "--out", tmp_path / "b", *options).returncode
        == 0
    )
    for path in sorted((tmp_path / "b").glob("*.mds")):
        assert (tmp_path / "a" / path.name).read_bytes() == path.read_bytes()
    assert ShardSet(str(tmp_path / "a")).manifest["sources"][0]["path"] == "-"
    assert not (tmp_path / "a/.elemdist").exists()


def test_killed_process(corpus: Path, tmp_path: Path) -> None:
    """A process that the system kills ends the run with one line, and the next run goes on."""
    out = tmp_path / "set"
    options = ["--n", "16", "--item-mb", "1", "--on-error", "skip", "--processes", "2"]
    command = [ELEMDIST, "shard", str(corpus), "--out", str(out), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    workers: list[int] = []
    while not workers:  # the command's children serve; theirs do the work
        assert process.poll() is None
        workers = [worker for child in children(process.pid) for worker in children(child)]
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2, told
    assert "a process was killed at its work" in told
    done = elemdist(*command[1:])
    assert done.returncode == 0, done.stderr


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found
