from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from elemdist.config import TrainSettings
from elemdist.deepspeed_overrides import flat
from elemdist.engine import join_ranks, told_when_late
from elemdist.errors import RankError, UserError
from tests.deepspeed_reads import field_of
from tests.engine_ranks import run_cases
from tests.test_deepspeed_config import config_of

Z3_BARE = '{"zero_optimization.stage3_param_persistence_threshold": 0}'


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same steps of two ranks under every stage, in fp32 and in bf16, four passes a step."""
    cases = {
        f"{precision} {stage}": {
            "argv": [
                "--zero.stage", str(stage), "--precision", precision, "--batch.micro-samples", "1",
            ]
        }
        for precision in ("fp32", "bf16")
        for stage in range(4)
    }  # fmt: skip
    return run_cases(cases, tmp_path_factory.mktemp("stages"))


def test_all_stages_learn_alike_in_both_precisions(stages):
    for precision, exact in (("fp32", 1e-6), ("bf16", 2e-6)):
        expected, other = stages[f"{precision} 1"]
        for name in ("norms", "losses"):
            assert expected[name] == other[name], "all ranks know the same norms and losses"
        for stage in (0, 2, 3):
            found = stages[f"{precision} {stage}"][0]
            # Stage 0 takes the norm, which only clips here, of gradients that are rounded to bf16.
            close = 1e-3 if (precision, stage) == ("bf16", 0) else 1e-5
            assert found["norms"] == pytest.approx(expected["norms"], rel=close)
            assert found["losses"] == pytest.approx(expected["losses"], rel=exact), stage


def test_deepspeed_reads_all_that_it_is_given_and_records_no_collective(stages):
    for name, found in stages.items():
        precision, stage = name.split()
        config = config_of("--zero.stage", stage, "--precision", precision)
        read = {*found[0]["read"], "synchronized"}  # which counts where a timer is enabled
        assert [key for key in flat(config) if field_of(key) not in read] == [], name
        assert [one["records"] for one in found] == [{}, {}]


def test_bf16_learns_as_fp32_does(stages):
    exact, rounded = stages["fp32 1"][0]["losses"], stages["bf16 1"][0]["losses"]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=1e-3)


def test_ranks_with_different_numbers_of_tiles_do_not_wait_for_each_other(tmp_path):
    """Rank 1 has 4 rows a pass, rank 0 up to 32, so 1 tile and up to 8 of them."""
    tiles = ["--memory.tile-rows", "4", "--memory.tile-loss-rows", "4"]
    bare = ["--zero.stage", "3", "--deepspeed", Z3_BARE, "--memory.checkpoint-every", "1"]
    decoder = ["--model.head", "autoregressive", "--model.slot-width", "32"]
    albert = ["--model.backbone", "albert"]
    cases = {
        "bert": ["--zero.stage", "1"],
        "bert tiles": [*bare, *tiles],
        "decoder": [*decoder, "--zero.stage", "1"],
        "decoder tiles": [*decoder, *bare, *tiles],
        "albert": [*albert, "--zero.stage", "1"],
        "albert tiles": [*albert, *bare, *tiles],
    }
    found = run_cases(
        {name: {"argv": argv, "few_rows": True} for name, argv in cases.items()}, tmp_path
    )
    for name in ("bert", "decoder", "albert"):
        expected, tiled = found[name][0], found[f"{name} tiles"][0]
        for figures in ("losses", "norms"):
            assert tiled[figures] == pytest.approx(expected[figures], rel=1e-5)


def test_a_rank_that_waits_for_others_says_for_whom(monkeypatch, capsys):
    place = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "n1", "MASTER_PORT": "9"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with told_when_late(60):
        pass
    assert capsys.readouterr().err == ""
    with told_when_late(0.01):
        time.sleep(0.2)
    line = "elemdist train: rank 3 of 8 waits for the others, which meet at n1:9\n"
    assert capsys.readouterr().err == line


def test_a_rank_without_a_gpu_of_its_own_says_so_itself(monkeypatch):
    """Rank 0, which has one, has nothing to say."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "2")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "4")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "9")
    with pytest.raises(RankError, match="no GPU of its own"):
        join_ranks(TrainSettings(device="cuda"))
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UserError) as caught:
        join_ranks(TrainSettings(device="cuda"))
    assert not isinstance(caught.value, RankError), "one line for all of them"
