"""Training as a user starts it: real processes, gloo, DeepSpeed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from elemdist.checkpoint import find
from tests import forked
from tests.conftest import TINY, elemdist, expect_user_error, metrics, run_command

BIN = Path(sys.executable).parent
SCRIPT = Path("elemdist") / "train.py"
STEPS = 20


def train(run: Path, data: Path, *options: str, ranks: int = 2) -> str:
    """What the ranks printed; test_train_engine.py has runs whose ranks the command starts."""
    words = ["--run-dir", run, "--data.train", data / "train", *TINY, "--steps", str(STEPS)]
    log = run.with_name(f"{run.name}.log")
    log.unlink(missing_ok=True)
    return forked.train(log, ranks, *words, *options)


@pytest.fixture(scope="session")
def zero_runs(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run on two ranks under each ZeRO stage, in fp32."""
    folder = tmp_path_factory.mktemp("zero runs")
    for stage in range(4):
        options = ["--zero.stage", str(stage), "--data.eval", str(packed / "val")]
        train(folder / str(stage), packed, *options, "--eval-every", "10")
    return {stage: folder / str(stage) for stage in range(4)}


def test_all_zero_stages_give_the_same_losses(zero_runs):
    expected = metrics(zero_runs[0])
    assert sorted(expected) == list(range(1, STEPS + 1))
    held_out = metrics(zero_runs[0], "eval")
    assert held_out[20]["loss"] < held_out[10]["loss"]
    for stage in (1, 2, 3):
        got = metrics(zero_runs[stage])
        for step, figures in expected.items():
            for name in ("loss", "grad_norm", "lr"):
                assert got[step][name] == pytest.approx(figures[name], rel=1e-4), (stage, step)


def test_the_gradient_is_that_of_one_rank_and_one_pass(packed, zero_runs, tmp_path):
    """Ranks and accumulation change nothing but the order of the sums (dropout off)."""
    options = ["--model.dropout", "0", "--steps", "5"]
    train(tmp_path / "one", packed, *options, "--batch.micro-samples", "16", ranks=1)
    train(tmp_path / "two", packed, *options, "--batch.micro-samples", "4", ranks=2)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    for step in one:
        assert two[step]["loss"] == pytest.approx(one[step]["loss"], rel=1e-5)
        assert two[step]["grad_norm"] == pytest.approx(one[step]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_stopped_and_resumed_gives_the_same_numbers(stage, packed, zero_runs, tmp_path):
    options = ["--zero.stage", str(stage), "--data.eval", str(packed / "val")]
    options += ["--eval-every", "10"]
    assert "done: 7 of 20" in train(tmp_path / "run", packed, *options, "--stop-step", "7")
    out = train(tmp_path / "run", packed, *options, "--resume")
    assert "resumed after step 7\n" in out, "and no setting differs"
    whole, parts = metrics(zero_runs[stage]), metrics(tmp_path / "run")
    assert sorted(parts) == sorted(whole)
    for step in whole:
        assert parts[step]["loss"] == whole[step]["loss"], step
        assert parts[step]["grad_norm"] == whole[step]["grad_norm"], step
    last = metrics(tmp_path / "run", "eval")[STEPS]
    assert last["loss"] == metrics(zero_runs[stage], "eval")[STEPS]["loss"]


def test_a_corrupt_checkpoint_is_passed_over_with_a_line_that_says_so(packed, tmp_path):
    run = tmp_path / "run"
    options = ["--checkpoint-every", "3"]
    train(run, packed, *options, "--stop-step", "6", ranks=1)
    (damaged,) = (run / "checkpoints/step-00000006").rglob("rank-*.safetensors")
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    short = ["--stop-step", "4", "--resume", "--keep-last", "1"]
    out = train(run, packed, *options, *short, ranks=1)
    # the new one stays, not the damaged one of a later step
    assert [p.name for p in (run / "checkpoints").glob("step-*")] == ["step-00000004"]
    assert not list(run.rglob("*.py"))
    assert "does not have the bytes that were written; taking the one before" in out
    assert "resumed after step 3; settings that differ from before: keep_last 2 -> 1" in out
    out = train(run, packed, *options, "--stop-step", "9", "--resume", ranks=1)
    assert "resumed after step 4" in out
    assert sorted(metrics(run)) == list(range(1, 10))
    assert sorted(p.name for p in (run / "checkpoints").glob("step-*"))[-1] == "step-00000009"


def test_deepspeed_and_torchrun_train_like_the_command(packed, zero_runs, tmp_path):
    words = ["--data.train", packed / "train", *TINY, "--zero.stage", "1", "--steps", str(STEPS)]
    words += ["--stop-step", "3"]
    starts = {
        "deepspeed": [BIN / "deepspeed", "--num_gpus", "2"],
        "torchrun": [BIN / "torchrun", "--nproc-per-node", "2"],
    }
    for name, start in starts.items():
        done = run_command(*start, SCRIPT, "--run-dir", tmp_path / name, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        got, expected = metrics(tmp_path / name), metrics(zero_runs[1])
        assert sorted(got) == [1, 2, 3]
        for step in got:
            assert got[step]["loss"] == pytest.approx(expected[step]["loss"], rel=1e-5)


def test_a_run_folder_tells_all_about_the_run(zero_runs, packed):
    run = zero_runs[3]
    assert any((run / "tensorboard").iterdir())
    report = json.loads((run / "environment.json").read_text())
    assert report["packages"]["deepspeed"]
    assert report["v"] == 8
    figures = metrics(run)[STEPS]
    for name in ("bits_per_byte", "bytes_per_s", "rows_per_s", "data_wait_share", "time_s"):
        assert figures[name] >= 0
    assert figures["samples"] == STEPS * 16
    checkpoint = find(str(run))
    assert checkpoint.step == STEPS
    assert checkpoint.settings().zero.stage == 3
    # whole weights, though every rank held a part of them
    whole, plain = checkpoint.weights(), find(str(zero_runs[0])).weights()
    assert {k: w.shape for k, w in whole.items()} == {k: w.shape for k, w in plain.items()}
    for name, weight in plain.items():
        torch.testing.assert_close(whole[name], weight, atol=1e-4, rtol=1e-3)


def test_settings_of_a_run_are_a_recipe_for_the_same_run(zero_runs, tmp_path):
    done = elemdist(
        "train", zero_runs[1] / "settings.yaml", "--run-dir", tmp_path / "again",
        "--stop-step", "2", "--ranks", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for step, figures in metrics(tmp_path / "again").items():
        assert figures["loss"] == metrics(zero_runs[1])[step]["loss"]


def test_bf16_learns_as_fp32_does(packed, zero_runs, tmp_path):
    for stage in ("0", "2"):
        train(tmp_path / stage, packed, "--zero.stage", stage, "--precision", "bf16")
        got, expected = metrics(tmp_path / stage), metrics(zero_runs[0])
        assert got[STEPS]["loss"] == pytest.approx(expected[STEPS]["loss"], rel=0.02)
        assert find(str(tmp_path / stage)).weights()["encoder.norm.weight"].dtype == torch.bfloat16


def test_a_classifier_starts_from_a_pretrained_run_and_is_evaluated(packed, labelled, tmp_path):
    pretrained, run = tmp_path / "pretrained", tmp_path / "classifier"
    train(pretrained, packed, "--steps", "2", ranks=1)
    out = train(
        run, labelled, "--objective", "classify", "--init-from", str(pretrained),
        "--data.eval", str(labelled / "val"), "--steps", "150", "--log-every", "50",
        "--classify.pooling", "mean", "--classify.mask-rate", "0.1",
    )  # fmt: skip
    assert f"encoder weights from {pretrained}" in out
    target = tmp_path / "figures.json"
    done = elemdist("eval", run, "--data", labelled / "val", "--out", target, "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(target.read_text())
    assert figures["documents"] == 50
    assert set(figures["labels"]) == {"weather", "kitchen", "rail"}
    assert figures["micro_f1"] > 0.9
    during = metrics(run, "eval")[150]
    for name in ("micro_f1", "macro_roc_auc", "macro_average_precision", "loss"):
        assert figures[name] == pytest.approx(during[name], rel=1e-5)


def test_eval_of_masked_materials_equals_the_evaluation_in_training(zero_runs, packed):
    done = elemdist("eval", zero_runs[2], "--data", packed / "val", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    during = metrics(zero_runs[2], "eval")[STEPS]
    assert figures["bits_per_byte"] == pytest.approx(during["bits_per_byte"], rel=1e-5)
    assert figures["materials"] == during["materials"] > 100


def test_mistakes_get_one_line_and_exit_code_2(packed, labelled, zero_runs, tmp_path, make_shards):
    data = ["--data.train", packed / "train"]
    new = tmp_path / "new"
    for words, parts in [
        (["--run-dir", zero_runs[1], *data], ["is not empty", "--resume"]),
        (["--run-dir", new], ["--data.train"]),
        (["--run-dir", new, "--data.train", tmp_path / "none"], ["none", "elemdist shard"]),
        (["--run-dir", new, *data, "--objective", "classify"], ["no labels", "labels-field"]),
        (["--run-dir", new, *data, "--model.width", "100"], ["multiple of", "96 and 104"]),
        (
            ["--run-dir", new, *data, "--batch.global-samples", "0"],
            ["0 is below 1"],
        ),
        (["--run-dir", new, *data, "--init-from", tmp_path], ["no complete checkpoint"]),
        (
            ["--run-dir", new, *data, "--init-from", zero_runs[1], "--model.width", "32"],
            ["model.layers is 2", "set --model.layers"],
        ),
        (
            ["--run-dir", zero_runs[1], *data, *TINY, "--resume", "--model.layers", "1"],
            ["its model.layers is 2, this start's is 1", "same settings"],
        ),
    ]:
        done = elemdist("train", "--device", "cpu", *words)
        expect_user_error(done, *parts)
        assert not new.exists() or {path.name for path in new.iterdir()} <= {"attempts"}
    # the same from a rank that was started by torchrun, and from two ranks
    done = elemdist("train", "--run-dir", zero_runs[1], *data, *TINY, "--ranks", "2")
    expect_user_error(done, "is not empty")


def test_eval_mistakes_get_one_line_and_exit_code_2(
    packed, labelled, zero_runs, corpus, make_shards, tmp_path
):
    other = make_shards(corpus, "--v", "6")
    for words, parts in [
        ([zero_runs[1], "--data", other], ["v=6", "shard with --n 32 --v 8"]),
        ([tmp_path, "--data", packed / "val"], ["no complete checkpoint"]),
        ([zero_runs[1]], ["--data SHARDS"]),
        (
            [zero_runs[1], "--data", packed / "val", "--out", tmp_path / "no" / "x"],
            ["does not exist"],
        ),
    ]:
        expect_user_error(elemdist("eval", *words), *parts)


def test_an_unknown_label_at_evaluation_is_named(labelled, corpus, make_shards, tmp_path):
    run = tmp_path / "run"
    train(run, labelled, "--objective", "classify", "--steps", "1", ranks=1)
    source = tmp_path / "other.jsonl"
    source.write_text('{"text": "a", "labels": ["rail", "cooking"]}\n')
    other = make_shards(source, "--input.labels-field", "labels")
    expect_user_error(elemdist("eval", run, "--data", other), "'cooking'", "not trained on")


def test_a_damaged_or_missing_shard_is_named(packed, tmp_path):
    copy = tmp_path / "copy"
    for damage, parts in [
        (lambda shard: shard.unlink(), ["is missing"]),
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-1]), ["bytes instead of"]),
        (lambda shard: flip(shard, 20), ["damaged"]),
        (lambda shard: flip(shard, -5), ["damaged"]),
    ]:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(packed / "train", copy)
        (shard,) = copy.glob("*.mds")
        damage(shard)
        words = ["--run-dir", tmp_path / "run", "--data.train", copy, *TINY]
        expect_user_error(elemdist("train", *words), str(shard), *parts)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
