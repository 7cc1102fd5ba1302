"""The settings of a training run, and the arithmetic that follows from them.

Defaults < YAML recipe < command line: ``elemdist train configs/tiny.yaml --model.layers 12``.
n and v are not settings of training: they come from the shards (see the manifest).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

from elemdist.deepspeed_config import check_settings
from elemdist.errors import UserError
from elemdist.json_types import misfit
from elemdist.model_settings import ModelSettings
from elemdist.run_settings import (
    BatchSettings,
    ClassifySettings,
    DataSettings,
    GuardSettings,
    MemorySettings,
    MlmSettings,
    OptimSettings,
    ZeroSettings,
)

# Settings by their smallest value.
AT_LEAST_1 = """
steps log_every keep_last sequence_parallel guard.most_bad_steps
model.layers model.width model.slot_width model.slot_layers
model.canine.rate model.canine.local model.canine.kernel model.canine.hashes model.canine.buckets
batch.global_samples batch.micro_samples
"""
AT_LEAST_0 = """
eval_every checkpoint_every ranks stop_step checkpoint_every_minutes keep_every peak_tflops
batch.global_bytes guard.spike guard.stall_s guard.stall_steps data.eval_samples
model.heads model.feedforward model.embedding_width model.window model.global_every
model.ablation.mixing memory.checkpoint_every memory.tile_rows memory.tile_loss_rows
classify.refit classify.wide_lead classify.wide_l2
optim.lr optim.eps optim.weight_decay optim.warmup_steps optim.grad_clip
"""


@dataclass
class TrainSettings:
    """The run"""

    run_dir: str | None = None
    """Folder of the run: settings, metrics, TensorBoard, checkpoints. Required."""
    objective: Literal["mlm", "clm", "classify"] = "mlm"
    """mlm: predict masked materials, in bits per byte. clm: predict the next material (a decoder).
    classify: multilabel, a sigmoid each."""
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    mlm: MlmSettings = field(default_factory=MlmSettings)
    classify: ClassifySettings = field(default_factory=ClassifySettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    zero: ZeroSettings = field(default_factory=ZeroSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """DeepSpeed's own configuration, key by key, above what is derived from the settings here:
    '{"zero_optimization.overlap_comm": true}'."""
    sequence_parallel: int = 1
    """Ranks that share each sequence: every one has a part of its rows, and in attention a part of
    the heads, whose number must divide by this."""
    attention: Literal["auto", "flash_attn", "varlen", "sdpa"] = "auto"
    """What computes attention; auto: the first of these that this machine has."""
    compile: bool = False
    """Compile the row-wise parts of the blocks with torch.compile, which takes a minute at the
    start; needs a C++ compiler."""
    steps: int = 1000
    """Optimizer steps of the whole run."""
    stop_step: int = 0
    """End this start of the run after that step, with a checkpoint, the schedule unchanged;
    0: at the end of the run."""
    eval_every: int = 200
    """Steps between evaluations; one is made after the last step in any case. 0: only that one."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is made after the last step in any case. 0: only that one."""
    checkpoint_every_minutes: float = 0.0
    """Minutes between checkpoints, beside those by steps; 0: none by time."""
    checkpoint_in_background: bool = False
    """Train on while a checkpoint is written, out of a copy in the machine's memory."""
    keep_last: int = 2
    """Checkpoints kept; older ones are removed once a newer one is complete."""
    keep_every: int = 0
    """Of the older ones, those of steps that are a multiple of this stay; 0: none does."""
    log_every: int = 10
    """Steps between lines of metrics."""
    profile: bool = False
    """Write a trace of three steps, after five to warm up, to the run folder, for Perfetto."""
    wandb: str | None = None
    """Project of Weights & Biases that gets the metrics, too, if wandb is installed."""
    peak_tflops: float = 0.0
    """What a device computes at most, in 10^12 operations a second, for the MFU; 0: what its maker
    states, where it is known."""
    auto_micro_batch: bool = False
    """Find the largest batch.micro_samples that fits the device, by trying."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the forward and backward pass; the optimizer keeps fp32. auto: bf16 on CUDA, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""
    ranks: int = 0
    """Processes that `elemdist train` starts; 0: one per GPU, or one on CPU. Ignored under
    deepspeed, torchrun and srun, which start the ranks themselves."""
    seed: int = 1
    """Of initialisation, data order, masks and dropout."""
    init_from: str | None = None
    """Run folder whose newest checkpoint gives the initial encoder weights, or hf:FOLDER, a model
    that transformers saved (BERT, ALBERT, CANINE)."""
    resume: bool = False
    """Go on from the newest complete checkpoint in run_dir; from the start if there is none."""
    deterministic: bool = False
    """Only algorithms that give the same numbers every time; on CUDA slower."""

    def check(self) -> None:
        """Raises UserError on what can be said without looking at the data."""
        if not self.run_dir:
            raise UserError("no run folder; add --run-dir DIR")
        self.data.check()
        self.check_values()

    def check_values(self) -> None:
        """Raises UserError on a value that cannot be, whatever the run."""
        if (wrong := misfit(self, TrainSettings)) is not None:
            raise UserError(wrong)
        check_settings(self)
        for low, names in ((1, AT_LEAST_1), (0, AT_LEAST_0)):
            at_least(low, **{name: attrgetter(name)(self) for name in names.split()})
        if not self.model.rotary_base > 1:
            raise UserError(f"model.rotary_base: {self.model.rotary_base} is not above 1")
        if not 0 < self.mlm.mask_rate <= 1:
            raise UserError(f"mlm.mask_rate: {self.mlm.mask_rate} is not in (0, 1]")
        for name, share in [
            ("model.dropout", self.model.dropout),
            ("classify.mask_rate", self.classify.mask_rate),
            ("optim.beta1", self.optim.beta1),
            ("optim.beta2", self.optim.beta2),
        ]:
            if not 0 <= share < 1:
                raise UserError(f"{name}: {share} is not in [0, 1)")


def at_least(low: int, **values: float) -> None:
    """Raises UserError on a setting below its smallest value."""
    for name, value in values.items():
        if value < low:
            raise UserError(f"{name}: {value} is below {low}, its smallest value")


def learning_rate(optim: OptimSettings, steps: int, step: int) -> float:
    """Learning rate of optimizer step `step` (0 is the first) of a run of `steps` steps.

    A pure function of the step, so that a resumed run needs no state of a schedule.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    done = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    left = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "none": 1.0}
    share = optim.final_lr_share if optim.decay != "none" else 0.0
    return optim.lr * (share + (1 - share) * left[optim.decay])
