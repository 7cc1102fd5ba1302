"""The settings of a mixture, in recipes and on the command line."""

from __future__ import annotations

import json

import pytest

from elemdist.commandline import parse
from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.mixture import names_of
from elemdist.run_settings import DataSettings, Source


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["a/wiki/train", "s3://key@bucket/code/train/?signature=x"], ["wiki", "code"]),
        (["train", "/", ".", "../law/./train/"], ["train", "/", ".", "law"]),
        (["a/wiki", "b/wiki"], None),
    ],
)
def test_a_source_is_called_by_the_last_folder_that_says_more_than_train(paths, expected):
    sources = [Source(path) for path in paths]
    if expected is not None:
        assert names_of(sources) == expected
        return
    with pytest.raises(UserError, match="two sources are called 'wiki'"):
        names_of(sources)
    sources[1].name = "other"
    assert names_of(sources) == ["wiki", "other"]


def data_settings(*argv: str) -> DataSettings:
    found = parse(TrainSettings, list(argv), "elemdist train").data
    found.check()
    return found


def test_a_mixture_is_read_from_a_recipe_and_from_the_command_line(tmp_path):
    path = tmp_path / "mix.yaml"
    path.write_text(
        "data:\n  mixture:\n    - {path: shards/wiki, weight: 0.7}\n"
        "    - path: shards/code\n      weight: 3e-1\n      name: 24:00:00\n"
    )
    both = [
        Source("shards/wiki", weight=0.7),
        Source("shards/code", weight=0.3, name="24:00:00"),
    ]
    assert data_settings(str(path)).mixture == both
    text = json.dumps([{"path": "a", "repeat": 2}, {"path": "b"}])
    assert data_settings(str(path), "--data.mixture", text).mixture == [
        Source("a", repeat=2.0),
        Source("b"),
    ]
    alone = data_settings(str(path), "--data.mixture", "[]", "--data.train", "d")
    assert (alone.mixture, alone.sources()) == ([], [Source("d")])


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        ('[{"path": "a", "wieght": 1}]', "mixture[0]: unknown key 'wieght'; did you mean 'weight'"),
        ('[{"path": "a"}, {"weight": 1}]', "data.mixture[1]: path is missing"),
        ('[{"path": ""}]', "data.mixture[0]: no path"),
        ('[{"path": "a", "weight": "much"}]', "mixture[0].weight: 'much' does not fit; expected f"),
        ('[{"path": "a", "weight": -1}]', "data.mixture[0].weight: -1.0 is not above 0"),
        ('[{"path": "a", "weight": 0}]', "data.mixture[0].weight: 0.0 is not above 0"),
        ('[{"path": "a", "weight": NaN}]', "mixture[0].weight: 'NaN' does not fit"),
        ('[{"path": "a", "repeat": 0}]', "data.mixture[0].repeat: 0.0 is not above 0"),
        ('[{"path": "a", "repeat": 1e30}]', "repeat: 1e+30 is above 1000000"),
        ('[{"path": "a", "weight": 1}, {"path": "b", "repeat": 2}]', "weights and repeats do not"),
        ('[{"path": "a", "weight": 1}, {"path": "b"}]', "data.mixture[1]: no weight, but others"),
        ("[]", "--data.train DIR (from elemdist shard) or --data.mixture"),
        ('["a"]', "data.mixture[0]: expected keys with values"),
        ('{"path": "a"}', "data.mixture: expected a list"),
        ("a,b", "data.mixture: not valid JSON"),
    ],
)
def test_a_mistake_in_a_mixture_is_one_line(mixture, expected):
    with pytest.raises(UserError) as caught:
        data_settings("--data.mixture", mixture)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_set_and_a_mixture_exclude_each_other():
    with pytest.raises(UserError, match=r"data\.train and data\.mixture are both set"):
        data_settings("--data.mixture", '[{"path": "a"}]', "--data.train", "b")
