"""What DeepSpeed is told, and what a user may tell it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from elemdist.batch_plan import BatchPlan
from elemdist.commandline import parse
from elemdist.config import TrainSettings
from elemdist.deepspeed_config import (
    check_settings,
    config_text,
    deepspeed_config,
)
from elemdist.deepspeed_import import import_deepspeed
from elemdist.engine import Ranks
from elemdist.errors import UserError
from elemdist.ports import free_port
from launcher.local import rank_environment
from tests.conftest import TINY, run_command

PLAN = BatchPlan(global_samples=64, groups=2, sequence_parallel=1, passes=8)


def settings_of(*words: str) -> TrainSettings:
    return parse(TrainSettings, list(words), "test")


def config_of(*words: str, device: str = "cpu") -> dict:
    return deepspeed_config(settings_of(*words), PLAN, Ranks(0, 0, 2, torch.device(device)))


def as_deepspeed_reads(config: dict):
    import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    return DeepSpeedConfig(json.loads(config_text(config)))


OFFLOADED = [
    "--zero.stage", "3", "--zero.offload-optimizer", "nvme", "--zero.offload-parameters", "nvme",
    "--zero.nvme-path", "/fast",
]  # fmt: skip


@pytest.mark.parametrize("words", [["--zero.stage", str(stage)] for stage in range(4)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deepspeed_takes_every_stated_value(words, precision):
    words = [*words, "--precision", precision, "--optim.grad-clip", "0.5"]
    config = config_of(*words)
    read = as_deepspeed_reads(config)
    zero = read.zero_config.model_dump(by_alias=True)
    for key, value in config["zero_optimization"].items():
        assert zero[key] == value, key
    assert read.gradient_clipping == 0.5
    assert read.communication_data_type == torch.float32
    assert read.bfloat16_config.enabled == (precision == "bf16")
    assert (read.gradient_accumulation_steps, read.train_micro_batch_size_per_gpu) == (8, 4)
    assert not read.timers_config.enabled
    assert not read.monitor_config.enabled
    assert not read.comms_config.comms_logger.enabled


def test_no_default_of_zero_is_left_to_deepspeed():
    """A release that adds a key, or takes one away, shows here."""
    config = config_of(*OFFLOADED, "--precision", "bf16")
    read = as_deepspeed_reads(config)
    known = read.zero_config.model_dump(by_alias=True)
    stated = config["zero_optimization"]
    for key in ("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"):
        del known[key]  # the former names of the two offloads
    former = {"legacy_stage1", "stage3_gather_fp16_weights_on_model_save"}
    not_ours = {"zenflow", "leaf_module", "pipeline_loading_checkpoint"}
    muon = {"save_muon_momentum_buffer_in_memory"}
    assert set(known) - set(stated) == former | not_ours | muon
    assert set(known["offload_param"]) == set(stated["offload_param"])
    superchip = {"super_offload", "cpuadam_cores_perc"}
    assert set(known["offload_optimizer"]) - superchip == set(stated["offload_optimizer"])
    assert set(read.aio_config) == set(config["aio"])


def test_memory_is_pinned_and_communication_overlaps_where_there_is_a_gpu():
    words = ["--zero.stage", "2", "--zero.offload-optimizer", "cpu"]
    for device in ("cpu", "cuda"):
        zero = config_of(*words, device=device)["zero_optimization"]
        assert zero["overlap_comm"] == (device == "cuda")
        assert zero["offload_optimizer"]["pin_memory"] == (device == "cuda")
    assert config_of(device="cuda")["bf16"]["enabled"]


def test_overrides_dotted_and_nested_from_the_command_line_and_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("deepspeed: {zero_optimization: {overlap_comm: true}, steps_per_print: 7}\n")
    plain = config_of("--zero.stage", "3")
    for words in (
        [str(recipe)],
        ["--deepspeed", '{"zero_optimization.overlap_comm": true, "steps_per_print": 7}'],
    ):
        config = config_of("--zero.stage", "3", *words)
        expected = {**plain["zero_optimization"], "overlap_comm": True}
        assert config == {**plain, "zero_optimization": expected, "steps_per_print": 7}
    assert not plain["zero_optimization"]["overlap_comm"]


def test_a_key_by_either_of_its_names_is_one_key():
    for name in ("prefetch_bucket_size", "stage3_prefetch_bucket_size"):
        words = ["--deepspeed", json.dumps({"zero_optimization": {name: 1000}})]
        zero = config_of("--zero.stage", "3", *words)["zero_optimization"]
        assert zero["stage3_prefetch_bucket_size"] == 1000
        assert "prefetch_bucket_size" not in zero


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ({"zero_optimization.overlap_com": 1}, ["did you mean 'zero_optimization.overlap_comm'"]),
        ({"step_per_print": 1}, ["no key step_per_print", "did you mean 'steps_per_print'"]),
        ({"elasticity": {"enabled": True}}, ["no key elasticity.enabled"]),
        ({"zero_optimization": {"stage": 2}}, ["zero_optimization.stage", "zero.stage"]),
        ({"zero_optimization": True}, ["zero_optimization", "zero.stage"]),
        ({"train_batch_size": 8}, ["batch.global_samples"]),
        ({"train_micro_batch_size_per_gpu": 8}, ["batch.micro_samples"]),
        ({"gradient_accumulation_steps": 8}, ["batch.micro_samples"]),
        ({"gradient_clipping": 0.1}, ["optim.grad_clip"]),
        ({"optimizer": {"type": "Adam", "params": {}}}, ["optim"]),
        ({"scheduler.type": "WarmupLR"}, ["optim.warmup_steps"]),
        ({"fp16": {"enabled": True}}, ["precision"]),
        ({"bf16.enabled": True}, ["precision"]),
        ({"zero_optimization.offload_param.device": "cpu"}, ["zero.offload_parameters"]),
        ({"gradient_allreduce_op": "sum"}, ["gradient_allreduce_op is fixed"]),
        ({"zero_optimization.compute_grad_norm": False}, ["is fixed"]),
        ({"zero_optimization.sub_group_size": "auto"}, ["leave the key out"]),
        ({"zero_optimization.sub_group_size": -1}, ["greater than or equal to 0"]),
        ({"zero_optimization.overlap_comm": "yes"}, ["'yes' does not fit", "true or false"]),
        ({"communication_data_type": "fp8"}, ["fp8"]),
        ({"zero_optimization.offload_param.buffer_count": 2}, ["there is no key"]),
        ({"bf16.immediate_grad_update": True, "bf16": {"immediate_grad_update": True}}, ["twice"]),
    ],
)
def test_an_override_that_cannot_be_is_one_line(override, parts):
    with pytest.raises(UserError) as caught:
        config_of("--zero.stage", "3", "--deepspeed", json.dumps(override))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("deepspeed: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["0", "--zero.offload-optimizer", "cpu"], ["zero.offload_optimizer", "stage 1, 2 or 3"]),
        (["2", "--zero.offload-optimizer", "nvme", "--zero.nvme-path", "/"], ["needs stage 3"]),
        (["2", "--zero.offload-parameters", "cpu"], ["zero.offload_parameters", "--zero.stage 3"]),
        (["3", "--zero.offload-optimizer", "nvme"], ["zero.nvme_path"]),
        (["3", "--zero.offload-parameters", "nvme"], ["zero.nvme_path"]),
        (["3", "--deepspeed", '{"optimizer": {}}'], ["optimizer", "optim"]),
    ],
)
def test_settings_that_zero_cannot_follow_are_one_line(words, parts):
    with pytest.raises(UserError) as caught:
        check_settings(settings_of("--zero.stage", *words))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_a_cpu_takes_parameters_back_from_a_disk_in_bf16_only():
    with pytest.raises(UserError, match="--precision bf16"):
        config_of(*OFFLOADED)
    config_of(*OFFLOADED, "--precision", "bf16")
    config_of(*OFFLOADED, "--precision", "fp32", device="cuda")


def test_the_check_of_settings_loads_neither_torch_nor_deepspeed():
    code = "import sys, elemdist.deepspeed_config; print({'torch', 'deepspeed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_no_rank_loads_torchs_compiler(stage, packed, tmp_path):
    compiler = {"torch._inductor.compile_fx", "torch._dynamo", "sympy"}
    code = (
        "import sys; from elemdist.train import main; assert main(sys.argv[1:]) == 0\n"
        f"loaded = {compiler} & set(sys.modules)\n"
        "assert 'deepspeed' in sys.modules and not loaded, loaded\n"
    )
    words = [*TINY, "--steps", "1", "--zero.stage", stage, "--run-dir", tmp_path / "run"]
    place = rank_environment(0, 1, free_port())
    done = run_command(
        sys.executable, "-c", code, *words, "--data.train", packed / "train", **place
    )
    assert done.returncode == 0, done.stderr
