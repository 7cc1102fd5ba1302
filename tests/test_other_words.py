"""Words of other programs get the right one of ours, on one line."""

from __future__ import annotations

import json

import pytest

from elemdist.cli import VERBS
from elemdist.commandline import parse
from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.other_words import RENAMED, SAID, verb_here
from elemdist.other_words import VERBS as OTHERS
from elemdist.shards import ShardSet
from elemdist.train_arguments import understood
from launcher.settings import LaunchSettings


def told(*argv: str, kind: type = TrainSettings) -> str:
    """What the command line says to these arguments."""

    def read() -> None:
        parse(kind, understood(list(argv)) if kind is TrainSettings else list(argv), "elemdist")

    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--config", "x.yaml"], "unknown option --config; a recipe is given as it is"),
        (["-c", "x.yaml"], "unknown option -c; a recipe is given as it is"),
        (["--nproc_per_node", "2"], "here it is --ranks;"),
        (["--num_gpus=2"], "unknown option --num_gpus; here it is --ranks;"),
        (["--learning-rate", "1e-3"], "here it is --optim.lr;"),
        (["--epochs", "3"], "steps: --steps N, which is epochs x samples / batch.global_samples"),
        (["--num-train-epochs=3"], "training is counted in steps"),
        (["--gradient_accumulation_steps", "4"], "it follows from batch.global_samples"),
        (["--hostfile", "hosts"], "elemdist launch --nodes N"),
        (["--output_dir", "x"], "here it is --run-dir;"),
        (["--run-dir", "--resume"], "option --run-dir needs a value"),
        (["--steps"], "option --steps needs a value"),
        (["-x"], "unknown option -x"),
    ],
)
def test_options_of_other_programs(argv, expected):
    assert expected in told(*argv)


def test_the_nearest_setting_that_the_verb_has_is_named():
    assert "here it is --ranks-per-node;" in told("--num_gpus", "2", kind=LaunchSettings)
    assert "here it is --nodes;" in told("--nnodes", "2", kind=LaunchSettings)
    assert not SAID.keys() & RENAMED.keys()


@pytest.mark.parametrize(
    ("name", "verb"), [("run", "train"), ("preprocess", "shard"), ("tokenize", "shard"),
                       ("infer", "predict"), ("stop", "cancel"), ("evaluate", "eval")],
)  # fmt: skip
def test_verbs_of_other_programs(name, verb):
    assert verb_here(name, VERBS) == f"; here it is '{verb}'"
    assert verb_here("trian", VERBS) == "; did you mean 'train'?"


def test_every_verb_that_is_named_is_one():
    assert set(OTHERS.values()) <= VERBS.keys()
    assert not OTHERS.keys() & VERBS.keys()


def test_what_is_no_recipe_is_told_what_it_is(tmp_path, packed, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.yaml").touch()
    (tmp_path / "corpus.txt").write_text("a text\n")
    assert f"is given by --data.train {packed}/train" in told(str(packed))
    assert f"is given by --data.train {packed}/train" in told(f"{packed}/train")
    assert "a run goes on by --run-dir run --resume" in told("run")
    assert "did you mean 'configs/tiny.yaml'?" in told("tiny")
    assert "did you mean 'configs/tiny.yaml'?" in told("tiny.yaml")
    assert "did you mean 'configs/tiny.yaml'?" in told("configs/tyni.yaml")
    assert "`elemdist shard corpus.txt --out DIR`: --data.train DIR" in told("corpus.txt")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("", "it has no index.json: name SET/train or SET/val"),
        ("text.jsonl", "no shard folder SET/text.jsonl: it is a file: `elemdist shard SET/text"),
        (
            "texts",
            "no index.json: `elemdist shard SET/texts --out DIR` makes one of the text in it",
        ),
        ("none", "no shard folder SET/none: make one with `elemdist shard`"),
    ],
)
def test_data_that_are_no_shards_are_told_how_they_become_some(place, expected, packed):
    (packed / "text.jsonl").touch()
    (packed / "texts").mkdir(exist_ok=True)
    (packed / "texts" / "a.txt").touch()
    with pytest.raises(UserError) as caught:
        ShardSet(str(packed / place))
    assert expected.replace("SET", str(packed)) in str(caught.value)


def test_what_launchers_add_is_taken_away():
    plain = ["t.yaml", "--steps", "3"]
    for more in (
        ["--local_rank", "1"], ["--local-rank", "1"], ["--local_rank=1"], ["--local-rank=1"],
        ["--deepspeed"],
    ):  # fmt: skip
        assert understood([*plain, *more]) == plain
        assert understood([*more, *plain[1:]]) == plain[1:]
    own = ["--deepspeed", '{"zero_optimization.overlap_comm": true}']
    assert understood(own) == own


def test_a_file_of_deepspeed_is_translated(tmp_path):
    file = tmp_path / "ds.json"
    config = {
        "train_batch_size": 16, "gradient_clipping": 1.0, "wall_clock_breakdown": False,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "zero_optimization": {"stage": 2, "overlap_comm": True},
    }  # fmt: skip
    file.write_text(json.dumps(config))
    for words in ([f"--deepspeed_config={file}"], ["--deepspeed-config", str(file)]):
        message = told("--deepspeed", *words)
        for part in (
            "train_batch_size is --batch.global-samples", "optimizer is --optim",
            "zero_optimization.stage is --zero.stage", "zero_optimization.overlap_comm",
        ):  # fmt: skip
            assert part in message
    assert "cannot be read" in told("--deepspeed_config", str(tmp_path / "none.json"))
    assert "DeepSpeed's configuration follows" in told("--deepspeed_config")


def test_a_run_that_is_to_go_on_is_its_own_recipe(tmp_path):
    run, said = tmp_path / "run", []
    run.mkdir()
    own = run / "settings.yaml"
    words = ["--run-dir", str(run), "--resume"]
    assert understood(words) == words, "there is nothing to go on with"
    own.write_text("steps: 7\n")
    assert understood(words, said.append) == [str(own), *words]
    assert said == [f"resuming with the settings of the run, {own}"]
    assert understood([*words, "--steps", "9"]) == [str(own), *words, "--steps", "9"]
    for more in (["t.yaml"], ["--data.train", "set"], ["--help"], ["--resume", "false"]):
        assert understood([*words, *more]) == [*words, *more]
