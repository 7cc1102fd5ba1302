"""What goes wrong while training, and that nothing is lost by it; real ranks over gloo.

After each fault the run is resumed: it must go on from the last finished checkpoint, and its curve
must be that of the undisturbed run.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from elemdist.checkpoint import find
from elemdist.errors import (
    EXIT_DIVERGED,
    EXIT_LOST,
    EXIT_STALLED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
)
from elemdist.stop import read_end
from tests.conftest import TINY, metrics
from tests.forked import Training, train
from tests.test_elastic import same_run

STEPS, EVERY = 20, 4
CODES_OF_A_LOSS = {-signal.SIGKILL, EXIT_LOST}


class Runs:
    """A run and its undisturbed twin."""

    def __init__(self, data: Path, folder: Path, undisturbed: Path) -> None:
        self.data, self.folder, self.undisturbed = data, folder, undisturbed
        self.run, self.log = folder / "run", folder / "log"

    def words(self, *more: str) -> list[str | Path]:
        return options(self.data, self.run, *more)

    def start(self, *more: str, fault: str = "", **facts: object) -> Training:
        return Training(self.log, 2, *self.words(*more), fault=fault, **facts)

    def go_on(self, *more: str) -> str:
        """Resumes; the curve must be that of the undisturbed run, and no finished step lost."""
        before = len(self.log.read_text())
        found = finished(self.run)
        out = train(self.log, 2, *self.words("--resume", *more))[before:]
        assert f"resumed after step {found}" in out
        same_run(self.run, self.undisturbed, STEPS)
        assert read_end(self.run)["state"] == "done"
        assert not list(self.run.glob("checkpoints/.writing-*"))
        return out


def options(data: Path, run: Path, *more: str) -> list[str | Path]:
    return [
        "--run-dir", run, "--data.train", data / "train", *TINY, "--zero.stage", "2",
        "--steps", str(STEPS), "--checkpoint-every", str(EVERY), *more,
    ]  # fmt: skip


def finished(run: Path) -> int:
    """The step of the newest checkpoint that is whole, 0 without one."""
    names = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    return find(str(run)).step if names else 0


@pytest.fixture(scope="module")
def undisturbed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder / "log", 2, *options(packed, folder / "run"))
    return folder / "run"


@pytest.fixture
def runs(packed: Path, tmp_path: Path, undisturbed: Path) -> Runs:
    return Runs(packed, tmp_path, undisturbed)


@pytest.mark.parametrize("number", range(5))
def test_a_rank_is_killed_at_a_random_moment(number, runs):
    """Any moment, most likely in a step or in the start."""
    rng = random.Random(number)
    training = runs.start()
    wait_for(lambda: "step 1/" in training.output() or number == 0)
    time.sleep(rng.uniform(0, 2))
    training.kill(rng.randrange(2), signal.SIGKILL)
    codes = training.codes()
    assert set(codes) <= CODES_OF_A_LOSS | {0}, training.output()
    assert "Traceback" not in training.output()
    runs.go_on()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
