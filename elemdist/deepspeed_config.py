"""DeepSpeed's configuration, derived from our settings; what a user lays above it goes key by key.

Whatever a release of DeepSpeed has given another default, and whatever the numbers or the speed
hang on, is stated here, so that neither changes with the version that is installed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elemdist.deepspeed_import import import_deepspeed
from elemdist.deepspeed_overrides import check_own_keys, overridden
from elemdist.errors import UserError
from elemdist.json_text import json_text
from elemdist.run_settings import ZeroSettings

if TYPE_CHECKING:  # the settings' own check calls the one below
    import torch

    from elemdist.batch_plan import BatchPlan
    from elemdist.config import TrainSettings
    from elemdist.engine import Ranks

# Elements of a buffer, which DeepSpeed takes in full however small the model is: 200 MB in fp32.
BUCKET = 50_000_000
ALLGATHER = 500_000_000  # elements that are gathered at a time, at most
NVME_GROUP = 100_000_000  # parameters that are in memory at a time when their states are on disk


def use_bf16(settings: TrainSettings, device: torch.device) -> bool:
    """Whether training on `device` is in bf16."""
    auto = settings.precision == "auto"
    return device.type == "cuda" if auto else settings.precision == "bf16"


def check_settings(settings: TrainSettings) -> None:
    """Raises UserError on what ZeRO cannot do, whatever the data and the machine. Loads nothing."""
    check_offload(settings.zero)
    check_own_keys(settings.deepspeed)


def check_offload(zero: ZeroSettings) -> None:
    """Raises UserError where something is offloaded that this stage cannot offload."""
    optimizer, parameters = zero.offload_optimizer, zero.offload_parameters
    if optimizer != "none" and zero.stage == 0:
        raise UserError(
            "zero.offload_optimizer: stage 0 keeps the optimizer's state whole on every device;"
            " set --zero.stage 1, 2 or 3"
        )
    if optimizer == "nvme" and zero.stage != 3:
        raise UserError(
            f"zero.offload_optimizer: nvme needs stage 3, not {zero.stage}; set --zero.stage 3, or"
            " take cpu"
        )
    if parameters != "none" and zero.stage != 3:
        raise UserError(
            f"zero.offload_parameters: stage {zero.stage} keeps the parameters whole on every"
            " device; set --zero.stage 3"
        )
    if "nvme" in (optimizer, parameters) and not zero.nvme_path:
        raise UserError("zero.nvme_path: something is offloaded to nvme; add --zero.nvme-path DIR")


def check_nvme(zero: ZeroSettings) -> None:
    """Raises UserError where this machine cannot offload to a disk as the settings ask."""
    if "nvme" not in (zero.offload_optimizer, zero.offload_parameters):
        return
    path = Path(zero.nvme_path or "")
    if not path.is_dir():
        raise UserError(f"zero.nvme_path: there is no folder {path} on this machine; make it")
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(
            f"zero.nvme_path: cannot write to {path}: {error.strerror}; choose another folder"
        ) from None
    import_deepspeed()
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("AsyncIOBuilder")
    if not builder.is_compatible(verbose=False):
        raise UserError(
            "zero.offload_optimizer, zero.offload_parameters: nvme needs libaio with its headers"
            " and a C++ compiler, which this machine lacks; install libaio-dev (libaio-devel) and"
            " g++, or take cpu"
        )
    try:
        builder.load(verbose=False)
    except Exception as error:  # whatever the compiler or the linker says
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise UserError(
            f"zero.offload_optimizer, zero.offload_parameters: nvme needs DeepSpeed's async_io,"
            f" which cannot be built here ({reason[0]}); take cpu"
        ) from None


def deepspeed_config(settings: TrainSettings, plan: BatchPlan, ranks: Ranks) -> dict[str, Any]:
    """DeepSpeed's whole configuration: the derived one, and settings.deepspeed above it.

    Needs no process group. Raises UserError on what ZeRO cannot do, and on an override that
    DeepSpeed does not know or that would break the arithmetic of training.
    """
    check_settings(settings)
    bf16 = use_bf16(settings, ranks.device)
    if settings.zero.offload_parameters == "nvme" and ranks.device.type == "cpu" and not bf16:
        raise UserError(
            "zero.offload_parameters: on a CPU DeepSpeed reads parameters back from a disk in bf16"
            " only; set --precision bf16, or take cpu"
        )
    config = derived(settings, plan, ranks.device)
    if not settings.deepspeed:
        return config
    import_deepspeed()  # whose own models of the configuration know the keys
    return overridden(config, settings.deepspeed)


def config_text(config: dict[str, Any]) -> str:
    """A configuration as JSON, for a run folder or a terminal; DeepSpeed itself reads it, too."""
    return json_text(config, indent=2) + "\n"


def derived(settings: TrainSettings, plan: BatchPlan, device: torch.device) -> dict[str, Any]:
    """The configuration that our settings give."""
    bf16, zero = use_bf16(settings, device), settings.zero
    config: dict[str, Any] = {
        # DeepSpeed counts every rank's largest share; losses are scaled by the true numbers.
        "train_micro_batch_size_per_gpu": plan.micro_samples,
        "gradient_accumulation_steps": plan.passes,
        "managed_gradient_accumulation": True,
        "gradient_clipping": settings.optim.grad_clip,
        "gradient_allreduce_op": "mean",
        "gradient_predivide_factor": 1.0,
        "prescale_gradients": False,
        **precision(bf16, zero),
        "zero_optimization": zero_section(zero, device, bf16),
        **reports(),
    }
    # The optimizer is torch's, on tensors of the CPU as well: DeepSpeed's own wants a compiler.
    if zero.stage:
        config["zero_allow_untested_optimizer"] = True
    if zero.offload_optimizer != "none":
        config["zero_force_ds_cpu_optimizer"] = False
    if "nvme" in (zero.offload_optimizer, zero.offload_parameters):
        config["aio"] = {
            "block_size": 1 << 20,
            "queue_depth": 8,
            "intra_op_parallelism": 1,
            "single_submit": False,
            "overlap_events": True,
            "use_gds": False,
        }
    return config


def has_own_optimizer(zero: ZeroSettings, bf16: bool) -> bool:
    """Return True for DeepSpeed's optimizer of bf16, whose keys are other than those of ZeRO."""
    return bf16 and zero.stage == 1 and zero.offload_optimizer == "none"


def precision(bf16: bool, zero: ZeroSettings) -> dict[str, Any]:
    """Weights in bf16 have masters, sums of gradients and moments in fp32."""
    # DeepSpeed knows no fp32 sums in stage 0; there build_engine has torch make them.
    sums = "bf16" if bf16 and zero.stage == 0 else "fp32"
    section: dict[str, Any] = {
        "enabled": bf16,
        "bf16_master_weights_and_grads": False,
        "bf16_optimizer_states": False,
    }
    if has_own_optimizer(zero, bf16):
        section["immediate_grad_update"] = False
    elif bf16 and zero.stage:
        section["check_grad_overflow"] = True  # else stage 2 would step on a gradient of nan
    return {
        "bf16": section,
        "fp16": {"enabled": False},
        "torch_autocast": {"enabled": False},
        "data_types": {"grad_accum_dtype": sums, "keep_in_fp32_modules": []},
        # bf16 would round the sum of the ranks' gradients, the more of them the more.
        "communication_data_type": "fp32",
    }


def zero_section(zero: ZeroSettings, device: torch.device, bf16: bool) -> dict[str, Any]:
    """Return ZeRO's part of the configuration: the keys that the optimizer of this stage reads."""
    section: dict[str, Any] = {"stage": zero.stage}
    if zero.stage == 0:
        return section
    if has_own_optimizer(zero, bf16):
        return section | {"allgather_bucket_size": ALLGATHER, "compute_grad_norm": True}
    section |= {
        "contiguous_gradients": True,
        "overlap_comm": device.type == "cuda",
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET,
    }
    section |= stage_3_section() if zero.stage == 3 else stage_1_and_2_section()
    if zero.stage == 3 and zero.offload_optimizer == "nvme":
        section["sub_group_size"] = NVME_GROUP
    return section | offload_sections(zero, device)


def offload_sections(zero: ZeroSettings, device: torch.device) -> dict[str, Any]:
    """Return what is offloaded, with the keys that are read for that place and stage."""
    pinned = device.type == "cuda"
    section: dict[str, Any] = {}
    if zero.offload_optimizer != "none":
        optimizer = offload_to(zero.offload_optimizer, zero.nvme_path, pinned)
        if zero.stage == 3:
            optimizer |= {"ratio": 1.0}
        if zero.offload_optimizer == "nvme":
            pipeline = {"pipeline_read": False, "pipeline_write": False}
            optimizer |= {"buffer_count": 4, **pipeline, "fast_init": False}
        section["offload_optimizer"] = optimizer
    if zero.offload_parameters != "none":
        parameters = offload_to(zero.offload_parameters, zero.nvme_path, pinned)
        if zero.offload_parameters == "nvme":
            parameters |= {"buffer_count": 5, "buffer_size": 100_000_000}
            parameters |= {"max_in_cpu": 1_000_000_000}
        section["offload_param"] = parameters
    return section


def stage_1_and_2_section() -> dict[str, Any]:
    """Return what ZeRO 1 and 2 have beyond stage 3."""
    return {
        "use_multi_rank_bucket_allreduce": True,
        "allgather_bucket_size": ALLGATHER,
        "round_robin_gradients": False,
        "parameter_alignment": False,
        "compute_grad_norm": True,
        "ignore_unused_parameters": True,
    }


def stage_3_section() -> dict[str, Any]:
    """What ZeRO 3 has beyond the other stages."""
    return {
        "sub_group_size": 1_000_000_000,
        "stage3_prefetch_bucket_size": BUCKET,
        "stage3_param_persistence_threshold": 100_000,
        "stage3_model_persistence_threshold": (1 << 63) - 1,  # no bound but the one above
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
        "stage3_module_granularity_threshold": 0,
        "stage3_use_all_reduce_for_fetch_params": False,
        "stage3_allgather_sequential": False,
        "zero_hpz_partition_size": 1,
        "zero_quantized_weights": False,
        "zero_quantized_nontrainable_weights": False,
        "zero_quantized_gradients": False,
        "memory_efficient_linear": True,
        "override_module_apply": True,
        "log_trace_cache_warnings": False,
        "enable_sanity_checks": False,
    }


def offload_to(device: str, path: str | None, pinned: bool) -> dict[str, Any]:
    """The section of what is offloaded."""
    # Pinned memory serves copies from and to a GPU; without one it only cannot be swapped out.
    place = {"nvme_path": path} if device == "nvme" else {}
    return {"device": device, **place, "pin_memory": pinned}


def reports() -> dict[str, Any]:
    """Return what DeepSpeed is to print, time and write of its own: nothing.

    `comms_logger` must not be here: the key turns it on, whatever stands in it.
    """
    sections = ("flops_profiler", "tensorboard", "wandb", "csv_monitor", "comet")
    return {
        "log_level": "error",
        "steps_per_print": 1 << 30,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
        "disable_python_gc": False,
        # Waits for the device twice in every pass.
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        # Each its own: an override of one must not reach the others.
        **{name: {"enabled": False} for name in sections},
        "compile": {"deepcompile": False},
    }
