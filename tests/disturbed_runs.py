"""Runs of real ranks that are disturbed, go on, and are compared with an undisturbed one."""

from __future__ import annotations

from pathlib import Path

from elemdist.checkpoint import find
from elemdist.stop import read_end
from tests.conftest import TINY
from tests.forked import Training, train
from tests.test_elastic import same_run

STEPS, EVERY = 20, 4


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
        "--model.layers", "1", "--steps", str(STEPS), "--checkpoint-every", str(EVERY), *more,
    ]  # fmt: skip


def finished(run: Path) -> int:
    """The step of the newest checkpoint that is whole, 0 without one."""
    names = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    return find(str(run)).step if names else 0
