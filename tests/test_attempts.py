"""Attempts: one number each, one that may write, and a zombie that may not; real training."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from elemdist.attempts import VARIABLE, Attempt, numbers
from elemdist.errors import EXIT_STOPPED, EXIT_SUPERSEDED, EXIT_USER_ERROR, Superseded, UserError
from elemdist.stop import read_end
from tests.conftest import wait_until
from tests.disturbed_runs import STEPS, finished, options
from tests.forked import Training, train
from tests.test_elastic import same_run


def test_every_start_gets_a_number_of_its_own(tmp_path):
    taken: list[int] = []

    def begin() -> None:
        for _ in range(20):
            taken.append(Attempt.begin(tmp_path, {"job": "7"}).number)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 161)) == numbers(tmp_path)
    assert Attempt(tmp_path, 5).read("begin")["job"] == "7"
    assert Attempt.newest(tmp_path).number == 160
    assert Attempt.newest(tmp_path / "none") is None


def test_the_newest_alone_may_write(tmp_path, monkeypatch):
    first = Attempt.begin(tmp_path)
    first.check()
    second = Attempt.begin(tmp_path)
    second.check()
    with pytest.raises(Superseded, match=r"attempt 1 .* superseded by attempt 2"):
        first.check()
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(Superseded):
        Attempt.of_ranks(tmp_path)


def test_a_run_in_use_is_not_begun_again(tmp_path):
    ours = Attempt.of_ranks(tmp_path)
    assert ours.alive()
    with pytest.raises(UserError, match=f"is being trained by process {os.getpid()}"):
        Attempt.of_ranks(tmp_path)
    assert numbers(tmp_path) == [1], "and not superseded by the try"


def test_the_first_reason_to_stop_stands(tmp_path):
    attempt = Attempt.begin(tmp_path)
    assert attempt.asked_to_stop() is None
    attempt.ask_to_stop("the time limit")
    attempt.ask_to_stop("another")
    assert attempt.asked_to_stop() == "the time limit"


def test_what_is_written_comes_back_and_nonsense_is_nothing(tmp_path):
    attempt = Attempt.begin(tmp_path)
    attempt.write("end", {"code": 76})
    assert attempt.read("end")["code"] == 76
    for text in ("[1]", "{", ""):
        (attempt.folder / "end.json").write_text(text)
        assert attempt.read("end") == {}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "attempts").write_text("a file")
    with pytest.raises(UserError, match="cannot write into"):
        Attempt.begin(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder / "log", 2, *options(packed, folder / "run"))
    return folder / "run"


def test_a_stop_file_saves_and_ends_all_ranks(packed, tmp_path, undisturbed):
    run, log = tmp_path / "run", tmp_path / "log"
    training = Training(log, 2, *options(packed, run), fault="slow", seconds=0.2)
    wait_until(lambda: "step 2/" in training.output(), "step 2")
    Attempt.newest(run).ask_to_stop("the time limit of the job")
    assert training.codes() == [EXIT_STOPPED] * 2, training.output()
    end = read_end(run)
    assert finished(run) == end["step"] < STEPS
    assert "stopped by the time limit of the job after step" in end["reason"]
    train(log, 2, *options(packed, run), "--resume")  # the next one has a stop file of its own
    same_run(run, undisturbed, STEPS)


def test_the_same_run_twice_at_once_is_refused_and_the_first_goes_on(packed, tmp_path):
    run = tmp_path / "run"
    training = Training(tmp_path / "log", 2, *options(packed, run), fault="slow", seconds=0.3)
    wait_until(lambda: "step 2/" in training.output(), "step 2")
    words = options(packed, run, "--resume")
    out = train(tmp_path / "log 2", 1, *words, code=EXIT_USER_ERROR)
    assert "is being trained by process" in out
    assert training.codes() == [0, 0], training.output()


@pytest.mark.parametrize("moment", ["publish", "clear up", "step"])
def test_a_zombie_that_wakes_up_is_refused(moment, packed, tmp_path, undisturbed):
    """All its ranks stand still, right before they make a checkpoint visible, say, and wake up
    when another attempt has trained to the end."""
    run = tmp_path / "run"
    zombie = Training(
        tmp_path / "zombie", 2, *options(packed, run), fault="freeze", moment=moment, step=8
    )
    wait_until(lambda: all(stands_still(one.pid) for one in zombie.processes), "a stop")
    before = finished(run)
    assert before == (8 if moment == "clear up" else 4)
    out = train(
        tmp_path / "log", 2, *options(packed, run, "--resume"), fault="launched", run=str(run)
    )
    assert f"resumed after step {before}" in out
    latest = tree(run)
    for rank in range(2):
        zombie.kill(rank, signal.SIGCONT)
    assert zombie.codes() == [EXIT_SUPERSEDED] * 2, zombie.output()
    assert "attempt 1 of the run" in zombie.output()
    assert "Traceback" not in zombie.output()
    assert tree(run) == latest, "the zombie has changed the run folder"
    same_run(run, undisturbed, STEPS)
    assert read_end(run)["state"] == "done"


def stands_still(pid: int | None) -> bool:
    return "\nState:\tT" in Path(f"/proc/{pid}/status").read_text()


def tree(run: Path) -> dict[str, bytes]:
    """What the run is made of: its checkpoints, metrics and end, byte for byte."""
    files = [*run.glob("checkpoints/**/*"), run / "metrics.jsonl", run / "end.json"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}
