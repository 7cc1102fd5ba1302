"""What DeepSpeed is told, and what a user may tell it."""

from __future__ import annotations

import json
import re
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


BOOLEAN = ("overlap_comm", "round_robin_gradients")
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
    assert not read.comms_config.comms_logger_enabled  # which the mere presence of its key sets


def test_no_default_of_zero_is_left_to_deepspeed():
    """A release that adds a key, or takes one away, shows here."""
    config = config_of(*OFFLOADED, "--precision", "bf16")
    read = as_deepspeed_reads(config)
    known = read.zero_config.model_dump(by_alias=True)
    stated = {**config_of("--zero.stage", "2")["zero_optimization"], **config["zero_optimization"]}
    for key in ("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"):
        del known[key]  # the former names of the two offloads
    former = {"legacy_stage1", "stage3_gather_fp16_weights_on_model_save"}
    not_ours = {"zenflow", "leaf_module", "save_muon_momentum_buffer_in_memory"}
    # Of checkpoints that DeepSpeed writes or reads itself, and of a key that nothing reads.
    unread = {"elastic_checkpoint", "load_from_fp32_weights", "pipeline_loading_checkpoint"}
    unread |= {"stage3_gather_16bit_weights_on_model_save", "allgather_partitions"}
    assert set(known) - set(stated) == former | not_ours | unread
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
        logged = {"steps_per_print": 7, "log_level": "info"}
        assert config == {**plain, "zero_optimization": expected, **logged}
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
        ({"zero_optimization.offload_param.buffer_count": 2}, ["changes nothing in this run"]),
        ({"log_level": "loud"}, ["'loud' is none of debug, info"]),
        ({"log_level": 3}, ["'3' does not fit; expected text"]),
        ({"steps_per_print": 0}, ["steps_per_print: 0 is not at least 1"]),
        ({"gradient_predivide_factor": 0}, ["is fixed"]),
        ({"flops_profiler": {"enabled": True, "profile_step": "a"}}, ["expected a number"]),
        ({"comms_logger.enabled": False}, ["comms_logger is off in every run", "leave it out"]),
        ({"comms_logger": {}}, ["comms_logger is off in every run", "enabled or not"]),
        ({"comms_logger": {"verbose": True}}, ["comms_logger is off in every run"]),
        ({"disable_allgather": True}, ["there is no key disable_allgather"]),
        ({"zero_optimization.allgather_partitions": False}, ["changes nothing in this run"]),
        ({"zero_optimization.elastic_checkpoint": True}, ["changes nothing in this run"]),
        ({"zero_optimization.round_robin_gradients": True}, ["changes nothing in this run"]),
        ({"zero_optimization.offload_param.pin_memory": False}, ["changes nothing in this run"]),
        ({"bf16.immediate_grad_update": True}, ["changes nothing in this run"]),
        ({"zero_optimization.zenflow": {}}, ["is fixed"]),
        ({"weight_quantization": {}}, ["there is no key weight_quantization"]),
        ({"expert_parallel": {"enabled": False}}, ["there is no key expert_parallel"]),
        ({"data_parallel_size": 1}, ["there is no key data_parallel_size"]),
        ({"tensorboard": {"job_name": "a"}}, ["without tensorboard.enabled: true"]),
        ({"csv_monitor.output_path": "a"}, ["without csv_monitor.enabled: true"]),
        ({"comet.project": "a"}, ["without comet.enabled: true"]),
        ({"flops_profiler.profile_step": 5}, ["without flops_profiler.enabled: true"]),
        ({"timers.throughput.synchronized": True}, ["without timers.throughput.enabled: true"]),
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


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_a_key_of_other_stages_is_refused(stage):
    readers = {"overlap_comm": "123", "round_robin_gradients": "12", "sub_group_size": "3"}
    readers |= {"stage3_prefetch_bucket_size": "3", "allgather_bucket_size": "12"}
    for name, stages in readers.items():
        value = json.dumps({"zero_optimization": {name: name in BOOLEAN or 1024}})
        words = ["--zero.stage", stage, "--deepspeed", value]
        if stage in stages:
            assert config_of(*words)["zero_optimization"][name] in (True, 1024)
        else:
            with pytest.raises(UserError, match=f"{name} changes nothing in this run: with ZeRO"):
                config_of(*words)


def test_an_override_of_one_section_leaves_the_others_as_they_are():
    for name in ("flops_profiler", "tensorboard", "csv_monitor"):
        config = config_of("--deepspeed", json.dumps({f"{name}.enabled": True}))
        sections = ("flops_profiler", "tensorboard", "csv_monitor", "comet", "wandb")
        assert [key for key in sections if config[key]["enabled"]] == [name]


def test_what_is_printed_on_request_is_printed():
    for asked in (
        {"steps_per_print": 7},
        {"dump_state": True},
        {"timers.throughput.enabled": True},
    ):
        assert config_of("--deepspeed", json.dumps(asked))["log_level"] == "info"
    quiet = json.dumps({"steps_per_print": 7, "log_level": "error"})
    assert config_of("--deepspeed", quiet)["log_level"] == "error"
    assert config_of()["log_level"] == "error"


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


def test_two_hundred_steps_leave_no_record_of_collectives_and_nothing_of_deepspeeds_on_stdout(
    packed, tmp_path
):
    code = (
        "import sys; from elemdist.train import main; assert main(sys.argv[1:]) == 0\n"
        "from deepspeed.comm import comm\n"
        "logger = comm.comms_logger\n"
        "print('logger', logger.enabled, logger.comms_dict, comm.timers.timers)\n"
    )
    words = [*TINY, "--steps", "200", "--log-every", "100", "--precision", "bf16"]
    words += ["--zero.stage", "1", "--run-dir", tmp_path / "run", "--data.train", packed / "train"]
    place = rank_environment(0, 1, free_port())
    done = run_command(sys.executable, "-c", code, *words, **place)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "logger False {} {}"
    assert "DeepSpeed" not in done.stdout
    assert not [
        line for line in lines if re.match(r"\[|MA |CPU Virtual|begin|end|before|after", line)
    ]
