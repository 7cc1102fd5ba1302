"""The settings of a launch: time limits, clusters, what the ranks read, mistakes."""

from __future__ import annotations

import pytest

from elemdist.commandline import parse
from elemdist.config import TrainSettings
from elemdist.errors import UserError
from launcher.settings import LaunchSettings, as_recipe, read, seconds, train_recipe

DATA = ["--data.train", "/shards", "--run-dir", "/runs/a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 5400), ("2:30", 150), ("1:00:00", 3600), ("1-0", 86400), ("2-03:04", 183840),
        ("1-00:00:01", 86401),
    ],
)  # fmt: skip
def test_time_limits(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "UNLIMITED"])
def test_what_is_no_time_limit(text):
    with pytest.raises(UserError, match="is no time limit"):
        seconds(text)


def test_a_recipe_gives_the_same_settings_again(tmp_path):
    words = [
        *DATA, "--nodes", "4", "--slurm.partition", "gpu", "--slurm.time", "24:00:00",
        "--slurm.options", '["--comment=a b"]', "--optim.lr", "3e-4", "--model.layers", "3",
        "--deepspeed", '{"zero_optimization.overlap_comm": true}',
    ]  # fmt: skip
    settings = read(words, "test")
    path = tmp_path / "launch.yaml"
    path.write_text(as_recipe(settings))
    assert read([str(path)], "test") == settings
    path.write_text(train_recipe(settings))
    ranks = parse(TrainSettings, [str(path)], "test")
    assert (ranks.optim.lr, ranks.model.layers) == (3e-4, 3)
    assert "slurm" not in path.read_text()


def test_a_mixture_comes_through(tmp_path):
    mixture = '[{"path": "/a", "weight": 0.7}, {"path": "/b", "weight": 0.3, "name": "code"}]'
    settings = read(["--run-dir", "/r", "--data.mixture", mixture], "test")
    path = tmp_path / "launch.yaml"
    path.write_text(as_recipe(settings))
    assert read([str(path)], "test").data.mixture == settings.data.mixture


def test_a_cluster_lies_beneath_the_recipe_and_the_command_line(tmp_path):
    cluster, recipe = tmp_path / "ours.yaml", tmp_path / "recipe.yaml"
    cluster.write_text("gpus_per_node: 4\nnodes: 3\nslurm: {partition: gpu, account: us}\n")
    recipe.write_text("nodes: 2\nsteps: 7\n")
    words = [str(recipe), "--cluster", str(cluster), "--slurm.account", "them", *DATA]
    found = read(words, "test")
    assert (found.nodes, found.steps, found.gpus_per_node) == (2, 7, 4)
    assert (found.slurm.partition, found.slurm.account) == ("gpu", "them")
    assert found.world_size == 8


def test_a_cluster_that_is_not_there_names_those_that_are():
    with pytest.raises(UserError, match=r"there is no .*exampel.*did you mean 'example'"):
        read(["--cluster", "exampel"], "test")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slurm.time", "4:00", "--slurm.save-s", "300"], "slurm.time: 4:00 is not longer"),
        (["--nodes", "0"], "nodes: 0 is below 1"),
        (["--slurm.container", "pyxis"], "needs --slurm.image"),
        (["--slurm.environment", '["no value"]'], "is not NAME=value"),
        (["--data.train", "s3://key:secret@bucket/a"], "was given with a password"),
        (["--retry.without-progress", "0"], "retry.without_progress: 0 is below 1"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as caught:
        read([*DATA, *words], "test").check_launch()
    assert "secret" not in str(caught.value)


def test_every_cluster_in_configs_can_be_read():
    from launcher.settings import CLUSTERS

    names = [path.stem for path in CLUSTERS.glob("*.yaml")]
    assert "example" in names
    for name in names:
        read(["--cluster", name, *DATA], "test").check_launch()


def test_defaults_are_a_launch():
    assert LaunchSettings().world_size == 8
