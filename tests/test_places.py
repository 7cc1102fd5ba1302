"""The words that ranks are started with inside a job; that they start, too: tests/cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from elemdist.attempts import Attempt
from elemdist.errors import UserError
from launcher.own_job import OwnJob
from launcher.places import Here, InJob, place_of
from launcher.settings import LaunchSettings
from launcher.submission import of_job

JOB = OwnJob(123, "123", "", "a-run", ["n1", "n2", "n3"], tasks=1, cpus=1, gpus=0, restarts=0)


@pytest.fixture
def words(monkeypatch, tmp_path):
    """words(settings) -> those of srun on n1 and n3."""
    monkeypatch.setenv("SLURM_JOB_CPUS_PER_NODE", "8(x3)")

    def made(settings: LaunchSettings) -> list[str]:
        place = InJob(settings, tmp_path / "run", tmp_path / "recipe.yaml", JOB)
        return place.words(Attempt(tmp_path / "run", 2), ["n1", "n3"])

    return made


def gpu_settings(**slurm: object) -> LaunchSettings:
    settings = LaunchSettings(nodes=2, gpus_per_node=4, device="cuda")
    for name, value in slurm.items():
        setattr(settings.slurm, name, value)
    return settings


def test_srun_is_told_all_that_it_would_else_take_from_the_job(words, tmp_path):
    found = words(gpu_settings(cpus_per_rank=12))
    assert found[0] == "srun"
    for word in (
        "--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--nodelist=n1,n3", "--mpi=none",
        "--gpus-per-node=4", "--cpus-per-task=12", "--kill-on-bad-exit=1", "--overlap",
        f"--output={tmp_path}/run/attempts/00002/rank-%5t.log",
    ):  # fmt: skip
        assert word in found
    assert found[-3:] == ["--run-dir", str(tmp_path / "run"), "--resume"]
    cpu = words(LaunchSettings(nodes=2, ranks_per_node=2, device="cpu"))
    assert not [word for word in cpu if "gpu" in word or "het" in word]


def test_apptainer_gets_the_gpus_the_checkout_and_the_folders(words, tmp_path):
    found = words(gpu_settings(container="apptainer", image="/i.sif", mounts=["/data:/d"]))
    place = found.index("apptainer")
    home = Path(__file__).resolve().parent.parent
    assert found[place : place + 3] == ["apptainer", "exec", "--nv"]
    assert f"--bind={tmp_path}/run" in found
    assert f"--bind={home}" in found
    assert "--bind=/data:/d" in found
    image = found.index("/i.sif")
    assert found[image + 1 : image + 4] == ["python3", "-u", f"{home}/elemdist/train.py"]


def test_pyxis_is_told_by_options_of_srun(words, tmp_path):
    found = words(gpu_settings(container="pyxis", image="img.sqsh", mounts=["/data"]))
    python = found.index("python3")
    assert "--container-image=img.sqsh" in found[:python]
    (mounts,) = [word for word in found[:python] if word.startswith("--container-mounts=")]
    assert f"{tmp_path}/run:{tmp_path}/run" in mounts
    assert mounts.endswith(",/data:/data")


def test_a_job_that_is_not_what_the_settings_say_is_refused(words, tmp_path):
    with pytest.raises(UserError, match=r"nodes: the job has 3, the run asks for 4.*--nodes=4"):
        place_of(LaunchSettings(nodes=4), tmp_path, tmp_path, JOB)
    with pytest.raises(UserError, match="ranks_per_node: a node has 8 CPUs for 9 ranks"):
        place_of(LaunchSettings(nodes=2, ranks_per_node=9), tmp_path, tmp_path, JOB)
    assert type(place_of(LaunchSettings(nodes=2, local=True), tmp_path, tmp_path, JOB)) is Here


@pytest.mark.parametrize(
    ("facts", "known", "expected"),
    [
        ({"gpus": 8}, {}, {"nodes": "4", "gpus_per_node": "8", "gpus": "true"}),
        ({"gpus": 8}, {"nodes": "1"}, {"gpus_per_node": "8", "gpus": "true"}),
        (
            {"gpus": 4},
            {"spare_nodes": "1", "slurm.gpus": "true"},
            {"nodes": "3", "gpus_per_node": "4"},
        ),
        (
            {"gpus": 8, "cpus": 64},
            {},
            {"nodes": "4", "gpus_per_node": "8", "gpus": "true", "cpus_per_rank": "8"},
        ),
        ({}, {}, {"nodes": "4", "ranks_per_node": "1", "gpus": "false"}),
        (
            {"tasks": 2, "cpus": 3},
            {},
            {"nodes": "4", "ranks_per_node": "2", "gpus": "false", "cpus_per_rank": "3"},
        ),
    ],
)
def test_what_was_submitted_by_hand_takes_what_its_job_has(facts, known, expected, monkeypatch):
    monkeypatch.setattr("launcher.submission.count_gpus", lambda: 0)
    words = of_job(known, replace(JOB, nodes=["n1", "n2", "n3", "n4"], **facts))
    pairs = [word.removeprefix("--").removeprefix("slurm.").split("=") for word in words]
    assert dict(pairs) == expected
