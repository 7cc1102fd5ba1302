"""What README.md shows of a SLURM cluster runs as it stands there, on two small nodes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from elemdist.stop import read_end
from launcher.progress import newest_step
from tests.cluster.cluster import Cluster
from tests.cluster.launched import wait_for_figures
from tests.conftest import REPOSITORY, TINY, wait_until
from tests.readme import SLURM, kind, shown

SHOWN = [command for command in shown() if kind(command) in SLURM]
COMMANDS = {kind(command): shlex.split(command) for command in SHOWN}
# Behind a command: nodes as they are here, and a run that this machine can do.
SMALL = [
    *TINY, "--nodes", "2", "--ranks-per-node", "1", "--preflight", "quick", "--model.heads", "8",
]  # fmt: skip
OURS = "gpus_per_node: 2\ndevice: cpu\nslurm: {partition: main, time: 00:10:00}\n"


@pytest.fixture
def place(packed: Path, tmp_path: Path) -> Path:
    """A folder as a reader's, with shards."""
    for name in ("elemdist", "slurm"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "configs" / "cluster").mkdir(parents=True)
    for file in (REPOSITORY / "configs").glob("*.yaml"):
        (tmp_path / "configs" / file.name).symlink_to(file)
    example = REPOSITORY / "configs" / "cluster" / "example.yaml"
    (tmp_path / "configs" / "cluster" / "example.yaml").write_text(example.read_text())
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "corpus").symlink_to(packed)
    return tmp_path


def test_the_commands_run(cluster: Cluster, place: Path):
    def run(name: str, *more: str, timeout: float = 60) -> str:
        done = cluster.command(*COMMANDS[name], *more, timeout=timeout, cwd=place)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout

    assert set(COMMANDS) == SLURM
    assert len(SHOWN) == len(COMMANDS), "a command is shown in two ways, and one is not run here"
    run("cp")
    ours = place / "configs" / "cluster" / "ours.yaml"
    assert "partition: gpu" in ours.read_text()
    ours.write_text(OURS)
    base = place / "runs" / "base"
    long = ["--steps", "100000", "--checkpoint-every", "0", "--eval-every", "0"]
    run("launch", *SMALL, *long, "--cluster", str(ours))  # a name is one beside elemdist itself
    wait_for_figures(base, 180)
    assert "runs/base" in run("status")
    assert "runs/base: stopped after step " in run("cancel", timeout=120)
    step = newest_step(base)
    assert step > 0
    run("resume", "--steps", str(step + 2))
    wait_until(lambda: (read_end(base) or {}).get("state") == "done", "its end", 180)
    assert f"step {step + 2}/{step + 2}" in run("logs")

    *before, script = COMMANDS["sbatch"][: COMMANDS["sbatch"].index("slurm/train.sbatch") + 1]
    arguments = COMMANDS["sbatch"][len(before) + 1 :]
    here = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--wait", "--time=00:10:00"]
    by_hand = [*before, *here, script, *arguments, *SMALL, "--run-dir", "runs/by-hand"]
    more = ["--steps", "2", "--checkpoint-every", "0", "--eval-every", "0"]
    done = cluster.command(*by_hand, *more, timeout=240, cwd=place)
    logs = "".join(path.read_text() for path in place.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert read_end(place / "runs" / "by-hand")["state"] == "done", logs
    cluster.wait_until_empty(60)
