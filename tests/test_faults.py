"""What goes wrong while training, and that nothing is lost by it; real ranks over gloo.

After each fault the run is resumed: it must go on from the last finished checkpoint, and its curve
must be that of the undisturbed run.
"""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from elemdist.checkpoint import find
from elemdist.checkpoint_files import digest
from elemdist.errors import (
    EXIT_DIVERGED,
    EXIT_LOST,
    EXIT_STALLED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
)
from elemdist.stop import read_end
from tests.conftest import metrics, wait_until
from tests.disturbed_runs import STEPS, Runs, finished, options
from tests.forked import Training, train

CODES_OF_A_LOSS = {-signal.SIGKILL, EXIT_LOST}


@pytest.fixture(scope="module")
def undisturbed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder / "log", 2, *options(packed, folder / "run"))
    return folder / "run"


@pytest.fixture
def runs(packed: Path, tmp_path: Path, undisturbed: Path) -> Runs:
    return Runs(packed, tmp_path, undisturbed)


@pytest.mark.parametrize("number", range(6))
def test_a_rank_is_killed_at_a_random_moment(number, runs):
    """Any moment, in a step or between two."""
    rng = random.Random(number)
    training = runs.start()
    wait_until(lambda: "step 1/" in training.output(), "step 1")
    time.sleep(rng.uniform(0, 1.5))
    training.kill(rng.randrange(2), signal.SIGKILL)
    codes = training.codes()
    assert set(codes) <= CODES_OF_A_LOSS | {0}, training.output()
    assert "Traceback" not in training.output()
    runs.go_on()


# (rank, the written file, counted from the first checkpoint on): of a checkpoint rank 0 writes its
# state and the weights, rank 1 its state; then rank 0 the manifest, and `latest`.
@pytest.mark.parametrize(
    ("victim", "moment"), [(0, "tensors"), (1, "tensors"), (0, "manifest"), (0, "latest")]
)
def test_a_rank_is_killed_inside_the_writing_of_a_checkpoint(victim, moment, runs):
    training = runs.start(fault="kill_in_write", victim=victim, moment=moment, step=8)
    assert set(training.codes()) <= CODES_OF_A_LOSS, training.output()
    assert "Traceback" not in training.output()
    assert finished(runs.run) == (8 if moment == "latest" else 4)
    runs.go_on()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_saves_and_ends_all(number, runs):
    training = runs.start(fault="slow", seconds=0.1)
    wait_until(lambda: "step 2/" in training.output(), "step 2")
    training.kill(1, number)
    assert training.codes() == [EXIT_STOPPED] * 2, training.output()
    (step,) = map(int, re.findall(r"stopped by SIG\w+ after step (\d+)", training.output()))
    assert finished(runs.run) == step
    end = read_end(runs.run)
    assert (end["state"], end["step"], end["code"]) == ("stopped", step, EXIT_STOPPED)
    runs.go_on()


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_costs_a_checkpoint_but_not_the_run(background, runs):
    """The disk takes nothing in the steps 8 to 11, and then again."""
    more = ["--checkpoint-in-background", str(background)]
    training = runs.start(*more, "--stop-step", "13", fault="full_disk", victim=1, calls=[8, 12])
    assert training.codes() == [0, 0], training.output()
    assert "checkpoint of step 8 not written: " in training.output()
    assert "Traceback" not in training.output()
    assert finished(runs.run) == 13
    assert (runs.run / "checkpoints" / "step-00000012").is_dir()
    runs.go_on(*more)


def test_a_disk_that_is_full_at_the_end_is_one_line_and_the_last_checkpoint_stays(runs):
    training = runs.start("--stop-step", "10", fault="full_disk", victim=1, calls=[9, 99])
    assert training.codes() == [EXIT_USER_ERROR] * 2, training.output()
    (line,) = re.findall("elemdist train: error: .*", training.output())
    assert "checkpoint of step 10 not written" in line
    assert "make room in" in line
    assert finished(runs.run) == 8
    assert read_end(runs.run)["state"] == "failed"
    runs.go_on()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_a_checkpoint_with_a_bad_or_missing_file_is_passed_over(harm, runs):
    training = runs.start("--stop-step", "9")
    assert training.codes() == [0, 0], training.output()
    (file,) = runs.run.glob("checkpoints/step-00000009/state/rank-00001*")
    harm(file)
    out = runs.go_on()
    assert "taking the one before" in out
    assert "resumed after step 8" in out


def test_a_hung_rank_is_shown_by_the_stacks_of_all(runs):
    training = runs.start("--guard.stall-s", "4", fault="hang", victim=1, call=10)
    assert training.codes() == [EXIT_STALLED] * 2, training.output()
    stacks = [(runs.run / f"stacks/rank-0000{rank}.txt").read_text() for rank in range(2)]
    assert "in hang" in stacks[1] or "faults.py" in stacks[1]
    assert "all_reduce" in stacks[0] or "backward" in stacks[0] or "train_step" in stacks[0]
    assert read_end(runs.run)["code"] == EXIT_STALLED
    runs.go_on()


def test_ranks_that_wait_for_ever_end_when_another_attempt_has_begun(runs):
    facts = {"victim": 1, "call": 10, "run": str(runs.run)}
    training = runs.start("--guard.stall-s", "600", fault="hang_superseded", **facts)
    assert training.codes(60) == [EXIT_LOST] * 2, training.output()
    assert training.output().count("another attempt of its run has begun") == 2
    assert read_end(runs.run)["state"] == "running", "this is the other's to say"
    assert not (runs.run / "stacks").exists(), "nor do the stacks of the other's ranks lie here"


def test_the_update_of_a_bad_step_is_skipped(runs):
    """Its batch is left out: all else is as if it had never been there."""
    training = runs.start(fault="bad_loss", victim=1, calls=[6])
    assert training.codes() == [0, 0], training.output()
    assert "step 6: the gradient is not finite" in training.output()
    good = metrics(runs.run)
    assert good[6]["bad_steps"] == 1
    assert good[6]["loss"] is None
    expected = metrics(runs.undisturbed)
    for step in range(1, 6):
        assert good[step]["loss"] == expected[step]["loss"]
    assert all(good[step]["loss"] > 0 for step in range(7, STEPS + 1))


def test_bad_steps_in_a_row_end_the_run_with_a_checkpoint_of_the_good_ones(runs):
    more = ["--guard.most-bad-steps", "3"]
    training = runs.start(*more, fault="bad_loss", victim=0, calls=list(range(10, 30)))
    assert training.codes() == [EXIT_DIVERGED] * 2, training.output()
    assert "3 bad steps in a row" in training.output()
    assert read_end(runs.run)["code"] == EXIT_DIVERGED


def test_a_bad_step_ends_the_run_where_that_is_asked_for(runs):
    training = runs.start("--guard.bad-step", "stop", fault="bad_loss", victim=0, calls=[10])
    assert training.codes() == [EXIT_DIVERGED] * 2, training.output()
    assert finished(runs.run) == 9
    runs.go_on("--guard.bad-step", "stop")


def test_a_rollback_goes_on_from_the_checkpoint_with_other_batches(runs):
    """Steps 1 to 4 stand; step 5 is done again, with the batch behind the bad one of step 7."""
    more = ["--guard.bad-step", "rollback"]
    training = runs.start(*more, fault="bad_loss", victim=0, calls=[7])
    assert training.codes() == [0, 0], training.output()
    assert "back to the newest checkpoint, rollback 1" in training.output()
    got, expected = metrics(runs.run), metrics(runs.undisturbed)
    assert sorted(got) == list(range(1, STEPS + 1))
    for step in range(1, 5):
        assert got[step]["loss"] == expected[step]["loss"]
    for step in range(5, STEPS - 2):  # batches 5, 6 and 7 were passed over
        assert got[step]["samples_digest"] == expected[step + 3]["samples_digest"]
    assert got[STEPS]["samples"] == (STEPS + 3) * 16


def test_data_that_is_lost_ends_the_run_with_what_was_done(runs, tmp_path):
    runs.data = shutil.copytree(runs.data, tmp_path / "data")
    more = ["--data.verify", "false"]
    folder = runs.data / "train"
    training = runs.start(*more, fault="lose_shards", victim=1, call=6, folder=str(folder))
    assert training.codes() == [EXIT_USER_ERROR] * 2, training.output()
    (line,) = re.findall("elemdist train: error: .*", training.output())
    assert str(folder) in line
    assert finished(runs.run) >= 5
    shutil.move(f"{folder}.lost", folder)
    runs.go_on(*more)


class Poison:
    """Unpickled by a loader that runs code, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("name", ["state/rank-00000.safetensors", "model.safetensors"])
def test_a_checkpoint_of_somebody_else_executes_nothing(name, runs, tmp_path):
    """A pickle in place of a file, which the manifest vouches for: one line, and no code runs."""
    training = runs.start("--stop-step", "4")
    assert training.codes() == [0, 0], training.output()
    place, target = runs.run / "checkpoints" / "step-00000004", tmp_path / "executed"
    torch.save({"weight": torch.ones(3), "more": Poison(target)}, place / name)
    manifest = json.loads((place / "manifest.json").read_text())
    size = (place / name).stat().st_size
    manifest["files"][name] = [size, digest(place / name)]
    (place / "manifest.json").write_text(json.dumps(manifest))
    out = train(tmp_path / "log 2", 2, *runs.words("--resume"), code=EXIT_USER_ERROR)
    assert len(re.findall("elemdist train: error: ", out)) == 1, out
    assert "Traceback" not in out
    assert not target.exists()
    torch.load(io.BytesIO((place / name).read_bytes()), weights_only=False)
    assert target.exists(), "the poison does not work, so this test shows nothing"


def is_used(path: Path) -> bool:
    """Whether a living process, as one of another test, has a file in its memory, or open."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f" {path}\n" in (process / "maps").read_text():
                return True
            if any(one.readlink() == path for one in (process / "fd").iterdir()):
                return True
    return False


@pytest.mark.usefixtures("streaming_alone")  # what those tests kill leaves some, too
def test_nothing_is_left_behind(runs):
    """No process, no shared memory, no port: what a killed rank leaves, and those around it."""
    before = set(Path("/dev/shm").iterdir())
    training = runs.start()
    wait_until(lambda: "step 2/" in training.output(), "step 2")
    training.kill(0, signal.SIGKILL)
    training.codes()
    assert all(not process.is_alive() for process in training.processes)
    left = set(Path("/dev/shm").iterdir()) - before
    assert not [path for path in left if not is_used(path)], "nobody's"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", training.port)) != 0


def test_a_thousand_steps_with_a_kill_every_fifty_end_like_those_without(packed, tmp_path):
    """The soak. Every start is killed about 50 steps on, in another place."""
    more = ["--steps", "1000", "--checkpoint-every", "20", "--eval-every", "0", "--log-every", "50"]
    more += ["--batch.micro-samples", "8"]  # one pass a step
    whole = options(packed, tmp_path / "whole", *more)
    train(tmp_path / "log", 2, *whole)
    words, rng, kills, last = options(packed, tmp_path / "run", *more), random.Random(1), 0, 0
    while True:
        log = tmp_path / f"log-{kills}"
        call = 50 + rng.randrange(-9, 10)
        training = Training(
            log, 2, *words, "--resume", fault="kill_in_step", victim=kills % 2, call=call
        )
        codes = training.codes()
        if codes == [0, 0]:
            break
        assert set(codes) <= CODES_OF_A_LOSS, training.output()
        kills += 1
        assert finished(tmp_path / "run") > last, "no progress"
        last = finished(tmp_path / "run")
    assert kills >= 20
    got, expected = metrics(tmp_path / "run"), metrics(tmp_path / "whole")
    assert got[1000]["loss"] == pytest.approx(expected[1000]["loss"], abs=1e-5)
    ours, theirs = (find(str(tmp_path / name)).weights() for name in ("run", "whole"))
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name
