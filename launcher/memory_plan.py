"""The memory of a rank by part, by formula: what DeepSpeed's ZeRO leaves on it of the model's
state, and what a pass adds (launcher/activations.py). All sizes in bytes.

The state is what DeepSpeed 0.19.8 holds with the configuration of elemdist/deepspeed_config.py.
What hangs on the text is taken at its most: full samples of one document each, no slot unused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from elemdist.config import TrainSettings
from elemdist.deepspeed_config import BUCKET
from elemdist.model_config import ModelConfig
from launcher.activations import Pass, kept_bytes, largest_temporary

RUNTIME = 2e9  # stated, not computed: kernels, NCCL's buffers, what the allocator cannot use
STATE = 12  # of a parameter: its fp32 master and two moments


@dataclass(frozen=True)
class Case:
    """What the memory of a rank hangs on.

    Attributes:
        config, settings: the model and the run.
        parameters: of the model. small: those of them in tensors that stage 3 keeps whole.
        ranks: all of them. micro_samples, passes: of a step, see elemdist/batch_plan.py.
        bf16: else fp32. zero: `zero_optimization` of DeepSpeed's configuration.
    """

    config: ModelConfig
    settings: TrainSettings
    parameters: int
    small: int
    ranks: int
    micro_samples: int
    passes: int
    bf16: bool
    zero: dict[str, Any]

    @property
    def number(self) -> int:
        """Bytes of a weight."""
        return 2 if self.bf16 else 4

    @property
    def stage(self) -> int:
        """ZeRO's."""
        return int(self.settings.zero.stage)

    def with_sample(self, n: int) -> Case:
        """The same for samples of n rows, one in a pass."""
        config, model = replace(self.config, n=n), self.config.model
        learned = config.embedding_width * (model.positions == "learned")
        added = (config.positions - self.config.positions) * learned
        return replace(self, config=config, parameters=self.parameters + added, micro_samples=1)


def sample_rows(config: ModelConfig) -> int:
    """The most positions that the text of a sample can have; a token is taken for a material."""
    return config.n if config.model.input == "subword" else config.positions


def predicted_rows(settings: TrainSettings, rows: float) -> float:
    """Those of so many rows that go through the head of mlm or clm."""
    shares = {"mlm": settings.mlm.mask_rate, "clm": 1.0, "classify": 0.0}
    return shares[settings.objective] * rows


def pass_of(case: Case) -> Pass:
    """The forward pass of a rank with the most samples."""
    shared = case.settings.sequence_parallel
    rows = -(-case.micro_samples * sample_rows(case.config) // shared)
    predicted = -(-int(predicted_rows(case.settings, rows)) // 1)
    return Pass(
        case.config, case.settings.memory, rows, predicted, case.number,
        shared=shared > 1, samples=case.micro_samples,
    )  # fmt: skip


def weights(case: Case) -> tuple[float, float]:
    """(on the device, in the machine's memory) of the weights themselves."""
    if case.stage < 3:
        return case.number * case.parameters, 0.0
    part = case.number * case.parameters / case.ranks
    kept = case.number * case.small * (case.ranks > 1)
    offload = case.settings.zero.offload_parameters
    if offload == "none":
        return part + kept, 0.0
    if offload == "cpu":
        return kept, part
    buffers = case.zero["offload_param"]
    return kept, case.number * buffers["buffer_count"] * buffers["buffer_size"]


def optimizer(case: Case) -> tuple[float, float]:
    """(on the device, in the machine's memory) of fp32 masters and moments."""
    if case.stage == 0:  # in fp32 the weights are their own masters
        return (STATE if case.bf16 else STATE - 4) * case.parameters, 0.0
    part = STATE * case.parameters / case.ranks
    offload = case.settings.zero.offload_optimizer
    if offload == "none":
        return part, 0.0
    if offload == "cpu":
        return 0.0, part
    count = case.zero["offload_optimizer"]["buffer_count"]
    return 0.0, min(part, 4.0 * count * case.zero["sub_group_size"])


def gradients(case: Case) -> tuple[float, float]:
    """(on the device, in the machine's memory) of the gradients and their sums over passes."""
    whole, part = 4.0 * case.parameters, 4.0 * case.parameters / case.ranks
    passing = case.number * case.parameters  # as the backward pass makes them
    if case.settings.zero.offload_optimizer != "none":
        if case.stage == 3:
            return 0.0, 2 * part  # the sums, and a copy for the optimizer
        # The optimizer's copy, new weights on their way back, and sums over several passes.
        host = part + passing / case.ranks + part * (case.passes > 1)
        return passing if case.stage == 1 else 0.0, host
    if case.stage == 1:
        return whole + (passing if case.bf16 else 0.0), 0.0
    return (whole if case.stage == 0 else part), 0.0


def communication(case: Case) -> float:
    """Buffers for gradients, the weights that stage 3 has gathered, and attention's exchange."""
    run = pass_of(case)
    exchange = 3.0 * run.c * run.rows * case.config.model.width * run.shared
    if case.ranks == 1 and case.stage == 0:
        return exchange
    buckets = 2 if case.stage in (1, 2) and case.zero.get("overlap_comm", True) else 1
    # Where DeepSpeed's optimizer has no buckets, the engine's own are taken to be as large.
    reduced = 4.0 * buckets * case.zero.get("reduce_bucket_size", BUCKET)
    if case.stage < 3:
        return exchange + reduced
    # A weight stays until its next use is further away than the reuse distance: from the forward
    # to the backward pass that is twice its distance from the last layer.
    live = case.zero["stage3_max_reuse_distance"] / 2 + case.zero["stage3_prefetch_bucket_size"]
    gathered = min(case.parameters - case.small, live)
    return exchange + reduced + case.number * gathered


def batch_bytes(case: Case) -> float:
    """Rows, places and keys of a step's samples, and what a pass makes of them."""
    rows = case.micro_samples * sample_rows(case.config)
    return rows * (case.passes * (case.config.slots + 16) + 2 * case.config.slots + 8)


def on_device(case: Case) -> dict[str, float]:
    """Part -> bytes of a rank's device, at the moment when they are most."""
    run = pass_of(case)
    kept = kept_bytes(run)
    # In the optimizer's step no activations are left, but a copy of the gradients is made.
    copies = 4.0 * case.parameters / (case.ranks if case.stage else 1)
    return {
        "weights": weights(case)[0],
        "gradients": gradients(case)[0],
        "optimizer": optimizer(case)[0],
        "batch": batch_bytes(case),
        "activations kept": kept,
        "largest temporary": max(largest_temporary(run), copies - kept),
        "communication": communication(case),
        "runtime": RUNTIME,
    }


def in_host(case: Case) -> float:
    """What is offloaded to the machine's memory, of one rank."""
    return sum(part(case)[1] for part in (weights, gradients, optimizer))


def total(case: Case) -> float:
    """Bytes of a device, of all parts."""
    return sum(on_device(case).values())


def longest_sample(case: Case, memory: float) -> int:
    """The most rows n of a sample that fit `memory`, one sample a pass; 0: none does."""

    def fits(n: int) -> bool:
        return total(case.with_sample(n)) <= memory

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
