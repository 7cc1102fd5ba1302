"""Runs that do not fit what stands in the output folder, or what `shard` can do."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep import shard
from data_prep.settings import InputSettings, ShardSettings
from elemdist.errors import UserError
from tests.conftest import ELEMDIST, elemdist, expect_user_error
from tests.data_prep.corpora import MANY, files_of, interrupted, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "made.jsonl", 8_000)


@pytest.mark.parametrize("plan", ["[1]", '{"settings": 5}', "{}"])
def test_a_damaged_plan(corpus: Path, tmp_path: Path, plan: str) -> None:
    path = tmp_path / "set/.elemdist/plan.json"
    path.parent.mkdir(parents=True)
    path.write_text(plan)
    expect_user_error(elemdist("shard", corpus, "--out", tmp_path / "set"), "plan.json is damaged")


def test_another_command_is_refused(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    interrupted(corpus, out, *MANY)
    other = elemdist("shard", corpus, "--out", out, *MANY, "--n", "32")
    expect_user_error(other, "unfinished run with n 16 instead of 32", "--restart")
    more = write_corpus(tmp_path / "more.jsonl", 5)
    expect_user_error(elemdist("shard", corpus, more, "--out", out, *MANY), "--restart")


def test_changed_input_is_refused(tmp_path: Path) -> None:
    corpus, out = write_corpus(tmp_path / "made.jsonl", 6000), tmp_path / "set"
    options = ["--n", "16", "--v", "8", "--item-mb", "1", "--on-error", "skip"]
    interrupted(corpus, out, *options)
    with corpus.open("a") as file:
        file.write('{"text": "more"}\n')
    again = ["shard", corpus, "--out", out, *options]
    expect_user_error(elemdist(*again), f"{corpus} changed since", "--restart")
    done = elemdist(*again, "--restart")
    assert done.returncode == 0, done.stderr
    fresh = tmp_path / "fresh"
    assert elemdist("shard", corpus, "--out", fresh, *options).returncode == 0
    assert files_of(out) == files_of(fresh)


def test_a_second_run_is_refused(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    command = [ELEMDIST, "shard", str(corpus), "--out", str(out), "--processes", "1", *MANY]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (out / ".elemdist/plan.json").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)  # so that it is surely still at work
    try:
        expect_user_error(elemdist(*command[1:]), "another run is at work", str(out))
        expect_user_error(elemdist(*command[1:], "--part", "0/2"), "another run is at work")
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
    again = elemdist(*command[1:])
    assert again.returncode == 0
    assert "complete already" in again.stdout


def test_input_settings_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")

    def refuse(wanted: str, **more: Any) -> None:
        with pytest.raises(UserError, match=wanted):
            shard.run(ShardSettings([str(path)], str(tmp_path / "out"), quiet=True, **more))

    refuse("split: '.*'.*train=0.98", split="train")
    refuse("make 0.9 together", split="train=0.8,val=0.1")
    refuse("exclude each other", split="train=0.5,val=0.5", holdout_last=1)
    refuse("K/N", part="3/3")
    refuse("have no id", split="a=1.0", split_by="id", input=InputSettings(document="line"))
    refuse("unknown 'xxh3_129'.*did you mean 'xxh3_128'", hashes="xxh3_129")
    refuse("compression", compression="zip")
    refuse("subword and tokenizer", segmenter="subword")
