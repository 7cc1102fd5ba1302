"""The settings of a training run, and the arithmetic that follows from them.

Defaults < YAML recipe < command line: ``elemdist train configs/tiny.yaml --model.layers 12``.
n and v are not settings of training: they come from the shards (see the manifest).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from elemdist.deepspeed_config import check_settings
from elemdist.errors import UserError
from elemdist.json_types import Amount, Count, CountOrNone, Processes, Seed, check_types
from elemdist.model_settings import ModelSettings, Objective
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

TRIAL = 10  # steps: a shorter run tries whether things work, with the schedule of the real one


@dataclass
class TrainSettings:
    """The run"""

    run_dir: str | None = None
    """Folder of the run: settings, metrics, TensorBoard, checkpoints. Required."""
    objective: Objective = "mlm"
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
    sequence_parallel: Count = 1
    """Ranks that share each sequence: every one has a part of its rows, and in attention a part of
    the heads, whose number must divide by this."""
    attention: Literal["auto", "flash_attn", "varlen", "sdpa"] = "auto"
    """What computes attention; auto: the first of these that this machine has."""
    compile: bool = False
    """Compile the row-wise parts of the blocks with torch.compile, which takes a minute at the
    start; needs a C++ compiler."""
    steps: Count = 1000
    """Optimizer steps of the whole run."""
    stop_step: CountOrNone = 0
    """End this start of the run after that step, with a checkpoint, the schedule unchanged;
    0: at the end of the run."""
    eval_every: CountOrNone = 200
    """Steps between evaluations; one is made after the last step in any case. 0: only that one."""
    checkpoint_every: CountOrNone = 500
    """Steps between checkpoints; one is made after the last step in any case. 0: only that one."""
    checkpoint_every_minutes: Amount = 0.0
    """Minutes between checkpoints, beside those by steps; 0: none by time."""
    checkpoint_in_background: bool = False
    """Train on while a checkpoint is written, out of a copy in the machine's memory."""
    keep_last: Count = 2
    """Checkpoints kept; older ones are removed once a newer one is complete."""
    keep_every: CountOrNone = 0
    """Of the older ones, those of steps that are a multiple of this stay; 0: none does."""
    log_every: Count = 10
    """Steps between lines of metrics."""
    profile: bool = False
    """Write a trace of three steps, after five to warm up, to the run folder, for Perfetto."""
    wandb: str | None = None
    """Project of Weights & Biases that gets the metrics, too, if wandb is installed."""
    peak_tflops: Amount = 0.0
    """What a device computes at most, in 10^12 operations a second, for the MFU; 0: what its maker
    states, where it is known."""
    auto_micro_batch: bool = False
    """Find the largest batch.micro_samples that fits the device, by trying."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the forward and backward pass; the optimizer keeps fp32. auto: bf16 on CUDA, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU."""
    ranks: Processes = 0
    """Processes that `elemdist train` starts; 0: one per GPU, or one on CPU. Ignored under
    deepspeed, torchrun and srun, which start the ranks themselves."""
    seed: Seed = 1
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
        self.check_schedule()

    def check_schedule(self) -> None:
        """Raises UserError on a warm-up that the run is too short for."""
        warmup = self.optim.warmup_steps or 0
        if warmup > self.steps >= TRIAL:
            raise UserError(
                f"optim.warmup_steps: {warmup} is more than the {self.steps} steps of the run, so"
                f" the learning rate would only rise; set --optim.warmup-steps {self.steps // 10}"
            )

    def check_values(self) -> None:
        """Raises UserError on a value that cannot be, whatever the run."""
        check_types(self)
        check_settings(self)


def learning_rate(optim: OptimSettings, steps: int, step: int) -> float:
    """Learning rate of optimizer step `step` (0 is the first) of a run of `steps` steps.

    A pure function of the step, so that a resumed run needs no state of a schedule.
    """
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    done = (step - optim.warmup) / max(1, steps - optim.warmup)
    left = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "none": 1.0}
    share = optim.final_lr_share if optim.decay != "none" else 0.0
    return optim.lr * (share + (1 - share) * left[optim.decay])
