"""DeepSpeed's own keys above the derived configuration: known ones only, none of ours.

DeepSpeed itself passes over a top-level key that it does not know, so a mistyped one would change
nothing and say nothing. Keys come dotted, {"zero_optimization.overlap_comm": true}, or nested.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from elemdist.errors import UserError, nearest

# What training itself sets, and the setting of ours to use instead. A key covers those beneath it.
OURS = {
    "train_batch_size": "batch.global_samples",
    "train_micro_batch_size_per_gpu": "batch.micro_samples",
    "gradient_accumulation_steps": "batch.micro_samples",
    "gradient_clipping": "optim.grad_clip",
    "optimizer": "optim",
    "scheduler": "optim.decay and optim.warmup_steps",
    "fp16": "precision",
    "bf16.enabled": "precision",
    "bf16.bf16_master_weights_and_grads": "precision",
    "bf16.bf16_optimizer_states": "precision",
    "bfloat16": "precision",
    "torch_autocast": "precision",
    "compile": "compile",
    "sequence_parallel_size": "sequence_parallel",
    "activation_checkpointing": "memory.checkpoint_every",
    "zero_optimization.stage": "zero.stage",
    "zero_optimization.offload_optimizer.device": "zero.offload_optimizer",
    "zero_optimization.offload_optimizer.nvme_path": "zero.nvme_path",
    "zero_optimization.offload_param.device": "zero.offload_parameters",
    "zero_optimization.offload_param.nvme_path": "zero.nvme_path",
    "zero_optimization.cpu_offload": "zero.offload_optimizer",
    "zero_optimization.cpu_offload_param": "zero.offload_parameters",
    "wandb": "wandb",
}
# What would break the sums of gradients, their norm, or the exact optimizer.
FIXED = (
    "managed_gradient_accumulation",
    "gradient_allreduce_op",
    "gradient_predivide_factor",
    "prescale_gradients",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "data_types",
    "bf16.check_grad_overflow",
    "checkpoint",
    "zero_optimization.compute_grad_norm",
    "zero_optimization.zenflow",
    "zero_optimization.offload_optimizer.ratio",
    "zero_optimization.offload_optimizer.super_offload",
    "zero_optimization.legacy_stage1",
    "zero_optimization.leaf_module",
)
# What cannot be, and why.
REFUSED = {
    "comms_logger": "is off in every run, and DeepSpeed would turn it on wherever the key stands,"
    " enabled or not: each collective then waits for the device and is recorded for ever",
}
# What these print goes through DeepSpeed's log.
LOGGED = ("steps_per_print", "dump_state", "timers")
# Sections that do something only if they are enabled.
SWITCHED = ("flops_profiler", "tensorboard", "csv_monitor", "comet", "timers.throughput")

# These DeepSpeed reads one by one, without a model; its defaults.
FLOPS_PROFILER = {
    "flops_profiler.profile_step": 1,
    "flops_profiler.module_depth": -1,
    "flops_profiler.top_modules": 1,
    "flops_profiler.detailed": True,
    "flops_profiler.output_file": "",
    "flops_profiler.recompute_fwd_factor": 0.0,
}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of nested keys, some of which may be dotted already.

    Raises UserError on a key that is no text, and on one that stands twice."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if not isinstance(name, str):
            raise UserError(f"deepspeed: {prefix}{name} is no name of a key; put it in quotes")
        inner = value if isinstance(value, dict) and value else None
        part = flat(inner, f"{prefix}{name}.") if inner else {prefix + name: value}
        for key in part:
            if key in found:
                raise UserError(f"deepspeed: {key} stands twice, nested and dotted; keep one")
        found |= part
    return found


def beneath(key: str, keys: Iterable[str]) -> str | None:
    """The one of `keys` that is `key` or stands above or beneath it; None: no one does."""
    near = (one for one in keys if f"{key}.".startswith(f"{one}.") or one.startswith(f"{key}."))
    return next(near, None)


def check_own_keys(overrides: dict[str, Any]) -> None:
    """Raises UserError on a key that follows from a setting of ours. Loads nothing."""
    for key in flat(overrides):
        if (ours := beneath(key, OURS)) is not None:
            raise UserError(
                f"deepspeed: {key} follows from the setting {OURS[ours]}; set that instead"
            )
        if (refused := beneath(key, REFUSED)) is not None:
            raise UserError(f"deepspeed: {key}: {refused} {REFUSED[refused]}; leave it out")
        if beneath(key, FIXED) is not None:
            raise UserError(
                f"deepspeed: {key} is fixed, as the sums of gradients and the checkpoints stand on"
                " it; leave it out"
            )


def fields(prefix: str, model: Any) -> dict[str, str]:
    """Dotted key -> the same by the name that users know, of all fields of a model of DeepSpeed."""
    names: dict[str, str] = {}
    for name, field in model.model_fields.items():
        if not (field.json_schema_extra or {}).get("deprecated"):
            usual = prefix + (field.alias or name)
            names |= {prefix + name: usual, usual: usual}
    return names


def keys_of_stages() -> dict[str, str]:
    """Dotted key -> the same by the name that users know, of all that ZeRO and bf16 have at any
    stage."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero import config as zero

    known = fields("bf16.", DeepSpeedBF16Config)
    known |= fields("zero_optimization.", zero.DeepSpeedZeroConfig)
    for section, model in [
        ("offload_optimizer", zero.DeepSpeedZeroOffloadOptimizerConfig),
        ("offload_param", zero.DeepSpeedZeroOffloadParamConfig),
    ]:
        known |= fields(f"zero_optimization.{section}.", model)
    return known


def known_keys(config: dict[str, Any]) -> dict[str, str]:
    """Dotted key -> the same by the name that users know, of all that may be overridden: what
    `config`, the derived configuration, states, as a run reads nothing else of ZeRO's, and what
    DeepSpeed's models of its monitors have."""
    from deepspeed.monitor import config as monitor

    stated = flat(config)
    known = {key: key for key in (*stated, *FLOPS_PROFILER)}
    known |= {key: name for key, name in keys_of_stages().items() if name in stated}
    known |= fields("tensorboard.", monitor.TensorBoardConfig)
    known |= fields("csv_monitor.", monitor.CSVConfig)
    known |= fields("comet.", monitor.CometConfig)
    return {key: name for key, name in known.items() if key not in OURS and key not in FIXED}


def overridden(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`config` with the overrides above it.

    Raises:
        UserError: a key is not known, is set by training itself, or its value does not fit.
    """
    check_own_keys(overrides)
    known = known_keys(config)
    result, stated = copy.deepcopy(config), FLOPS_PROFILER | flat(config)
    wanted = flat(overrides)
    for key, value in wanted.items():
        if key not in known:
            raise UserError(f"deepspeed: {unknown(key, known, stated)}")
        check_value(key, value, stated.get(known[key]))
        *path, name = known[key].split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
        place[name] = value
    check_switches(wanted, result)
    check_reports(result)
    if "log_level" not in wanted and any(beneath(key, LOGGED) for key in wanted):
        result["log_level"] = "info"  # else they would print nothing
    check_as_deepspeed(result)
    return result


def unknown(key: str, known: Iterable[str], stated: dict[str, Any]) -> str:
    """Return why a key that is not known is refused."""
    if key in keys_of_stages():
        stage = stated["zero_optimization.stage"]
        return (
            f"{key} changes nothing in this run: with ZeRO {stage}, this precision and what is"
            " offloaded, nothing reads it; leave it out"
        )
    return f"there is no key {key}{hint(key, known)}"


def check_switches(wanted: dict[str, Any], config: dict[str, Any]) -> None:
    """Raises UserError on a key of a section of `config` that is not enabled."""
    states = flat(config)
    for key in wanted:
        section, _, name = key.rpartition(".")
        if section in SWITCHED and name != "enabled" and not states[f"{section}.enabled"]:
            raise UserError(
                f"deepspeed: {key} changes nothing without {section}.enabled: true; add that or"
                " leave it out"
            )


def check_reports(config: dict[str, Any]) -> None:
    """Raises UserError on what DeepSpeed would fail on as late as in the engine."""
    from deepspeed.utils.logging import log_levels

    if (level := config["log_level"].lower()) not in log_levels:
        raise UserError(f"deepspeed: log_level: '{level}' is none of {', '.join(log_levels)}")
    if config["steps_per_print"] < 1:
        raise UserError(
            f"deepspeed: steps_per_print: {config['steps_per_print']} is not at least 1; leave it"
            " out to print nothing"
        )


def hint(key: str, known: Iterable[str]) -> str:
    """The nearest key of the same section; where there is no such section, the nearest section."""
    section = key.partition(".")[0]
    sections = {other.partition(".")[0] for other in known}
    if section not in sections:
        return nearest(section, sections)
    return nearest(key, [other for other in known if other.partition(".")[0] == section])


def check_value(key: str, value: Any, stated: Any) -> None:
    """Raises UserError where a value is of another kind than the one `stated` in its place."""
    if value == "auto":
        raise UserError(
            f"deepspeed: {key}: 'auto' means something to transformers only; leave the key out"
        )
    for kind, expected in ((bool, "true or false"), ((int, float), "a number"), (str, "text")):
        if isinstance(stated, kind):
            boolean = isinstance(value, bool)
            if not isinstance(value, kind) or boolean != (kind is bool):
                raise UserError(f"deepspeed: {key}: '{value}' does not fit; expected {expected}")
            return


def check_as_deepspeed(config: dict[str, Any]) -> None:
    """Raises UserError with DeepSpeed's own reason where it would refuse a configuration."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    try:
        DeepSpeedConfig(copy.deepcopy(config))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"deepspeed: {place}: {first['msg']}") from None
    except Exception as error:  # AssertionError, ValueError, errors of its own
        raise UserError(f"deepspeed: {' '.join(str(error).split())}") from None
