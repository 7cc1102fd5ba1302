"""Arithmetic by formula: what a training step has to compute, and what a GPU could.

These are model FLOPs, as the model FLOPs utilisation (MFU) is defined (Chowdhery et al. 2022, arXiv
2204.02311): the matrix products of the forward pass, and twice as many of the backward pass. What
is computed a second time to save memory does not count, nor what a kernel computes beside it, nor
anything that is no matrix product (norms, GELU, softmax, the sums of the table's gradient: some 1 %
of the operations), nor what the last block leaves out for rows that no one looks at. Plain numbers
in, plain numbers out: no tensor is made.

Shape suffixes: see elemdist/rows.py; F inner width of the feed-forward, E values of an element.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, cast, get_args

from elemdist.model_config import ModelConfig
from elemdist.model_settings import ModelSettings

PASSES = 3.0  # forward, and the gradients of inputs and of weights
Precision = Literal["bf16", "fp32"]
GpuName = Literal[
    "A100-40", "A100-80", "H100", "H100-PCIe", "H100-NVL", "H200", "H200-NVL", "GH200", "B200",
    "L40S", "L40", "L4", "A10G", "A10", "A30", "A40", "RTX-A6000", "RTX-6000-Ada", "RTX-3090",
    "RTX-4090",
]  # fmt: skip


class Gpu(NamedTuple):
    """What the maker states: memory in GB, dense TFLOPS of bf16 and of fp32 without TF32."""

    memory_gb: float
    bf16: float
    fp32: float


GPUS: dict[GpuName, Gpu] = {
    "A100-40": Gpu(40, 312, 19.5),
    "A100-80": Gpu(80, 312, 19.5),
    "H100": Gpu(80, 989, 67),
    "H100-PCIe": Gpu(80, 756, 51),
    "H100-NVL": Gpu(94, 835, 60),
    "H200": Gpu(141, 989, 67),
    "H200-NVL": Gpu(141, 835, 60),
    "GH200": Gpu(96, 989, 67),
    "B200": Gpu(180, 2250, 75),
    "L40S": Gpu(48, 362, 91.6),
    "L40": Gpu(48, 181, 90.5),
    "L4": Gpu(24, 121, 30.3),
    "A10G": Gpu(24, 70, 35),
    "A10": Gpu(24, 125, 31.2),
    "A30": Gpu(24, 165, 10.3),
    "A40": Gpu(48, 149.7, 37.4),
    "RTX-A6000": Gpu(48, 154.8, 38.7),
    "RTX-6000-Ada": Gpu(48, 364, 91.1),
    "RTX-3090": Gpu(24, 71, 35.6),
    "RTX-4090": Gpu(24, 165.2, 82.6),
}
assert set(GPUS) == set(get_args(GpuName))


def words(name: str) -> set[str]:
    """The words of a device's name."""
    return set(name.replace("-", " ").split())


def gpu_of(device_name: str) -> GpuName | None:
    """The GPU that a driver calls so, such as ``NVIDIA A100-SXM4-40GB``; None: not in the table."""
    found = words(device_name)
    if found & {"Laptop", "MIG"}:  # slower ones, or parts of one
        return None
    if "40GB" not in found and "A100" in found:
        return "A100-80"
    fitting = [name for name in GPUS if words(name) - {"40", "80"} <= found]
    return max(fitting, key=lambda name: len(words(name)), default=None)


def stated_tflops(device_name: str, precision: Precision = "bf16") -> float | None:
    """The dense TFLOPS that a GPU's maker states; None for CPUs and what is not in the table.

    Args:
        device_name: as torch.cuda.get_device_name gives it, or a name of :data:`GPUS`.
        precision: of the matrix products; fp32 means without TF32, as torch has it by default.
    """
    name = cast(GpuName, device_name) if device_name in GPUS else gpu_of(device_name)
    return None if name is None else float(getattr(GPUS[name], precision))


def pairs(length: int, causal: bool = False, window: int = 0) -> float:
    """(query, key) pairs of attention within a segment: a square, half of it and its diagonal if
    causal, a band where a row sees `window` rows on each side (causal: before it)."""
    reach = min(window, length - 1) if window else length - 1
    one_side = reach * length - reach * (reach + 1) / 2
    return length + one_side * (1 if causal else 2)


def attention_flops(
    lengths: Iterable[int], width: int, causal: bool = False, window: int = 0
) -> float:
    """Of one layer's attention, forward: queries with keys, and what they give with values."""
    counts = Counter(lengths)  # a batch has many segments of few lengths
    return 4.0 * width * sum(n * pairs(length, causal, window) for length, n in counts.items())


def block_flops(model: ModelSettings, slots: int = 0) -> float:
    """Of a block's matrices, forward, a row; `slots`: of a first projection that keeps V apart."""
    return 6.0 * model.width * model.width / max(1, slots) + finish_flops(model)


def finish_flops(model: ModelSettings) -> float:
    """Of those behind the attention, which the last block has for the rows only that are used."""
    inner = (3 if model.activation == "geglu" else 2) * model.feedforward
    return 2.0 * model.width * (model.width + inner)


def encoder_flops(
    config: ModelConfig, lengths: Sequence[int], finished: float, mixed: float
) -> float:
    """Return those of embedding and blocks, forward, for segments of these lengths, of which
    `finished` rows are finished, and `mixed` different ones go through the mixing layer."""
    model, rows = config.model, sum(lengths)
    widened = config.embedding_width * model.width if model.embedding_width else 0
    mixing = 4.0 * mixed * model.ablation.mixing * config.embedding_width
    inputs = mixing + 2.0 * rows * widened
    spared = (rows - finished) * finish_flops(model)
    apart = config.v if model.ablation.first_projection == "block_diagonal" else 0
    if model.backbone != "canine":
        first = block_flops(model, apart)
        products = rows * (first + (model.layers - 1) * block_flops(model))
        return inputs + products + stack_attention(config, lengths) - spared
    return inputs + canine_flops(config, lengths, apart) - spared


def stack_attention(config: ModelConfig, lengths: Sequence[int]) -> float:
    """Of the attention of all blocks of the stack, forward."""
    model = config.model
    every = model.global_every
    wide = len(range(0, model.layers, every)) if every else (0 if model.window else model.layers)
    counted = [(wide, 0), (model.layers - wide, model.window)]
    return sum(
        layers * attention_flops(lengths, model.width, config.causal, window)
        for layers, window in counted
        if layers
    )


def canine_flops(config: ModelConfig, lengths: Sequence[int], slots: int) -> float:
    """Of a CANINE's blocks on rows and on molecules, and the convolutions between, forward."""
    model, rows = config.model, sum(lengths)
    canine, width = model.canine, model.width
    molecules = [max(1, length // canine.rate) for length in lengths]
    chunks = [length % canine.local for length in lengths]
    chunks += [canine.local] * sum(length // canine.local for length in lengths)
    down = 2.0 * canine.rate * width * width * sum(molecules)
    up = 4.0 * canine.kernel * width * width * rows
    outer = rows * (block_flops(model, slots) + block_flops(model))
    seen = attention_flops(chunks, width) + attention_flops(lengths, width, window=model.window)
    deep = model.layers * block_flops(model) * sum(molecules) + stack_attention(config, molecules)
    return down + up + outer + seen + deep


def head_flops(config: ModelConfig, predicted: float, slots: float) -> float:
    """Of the predictions, forward, for so many rows with so many slots in use in all."""
    model = config.model
    if model.head != "autoregressive":
        return 2.0 * predicted * config.embedding_width * (model.width + config.elements)
    width = model.slot_width
    block = block_flops(ModelSettings(width=width, feedforward=4 * width))
    used = slots / max(1.0, predicted)  # of a row: as if all rows had the same
    blocks = slots * (block + 4.0 * width * (used + 1) / 2)
    spread = 2.0 * predicted * model.width * config.slots * width
    return spread + model.slot_layers * blocks + 2.0 * slots * width * config.elements


def classifier_flops(config: ModelConfig, segments: int, rows: float) -> float:
    """Return those of the classifier, forward, for segments with `rows` different materials in all.
    The counts of the wide part take one product less in the backward pass: how often a word stands
    there is given."""
    width, labels = config.model.width, len(config.labels or ())
    flops = 2.0 * segments * width * (width + labels)
    if config.wide:
        counts = 0 if config.symbols else 2.0 * segments * rows * config.units
        flops += 2.0 * segments * config.units * labels + counts * (PASSES - 1) / PASSES
    return flops


def step_flops(
    config: ModelConfig,
    lengths: Sequence[int],
    predicted_rows: float = 0,
    used_slots: float | None = None,
    mixed_rows: float | None = None,
) -> float:
    """Model FLOPs of one forward and backward pass, see the top of the file.

    Args:
        lengths: rows of each segment, ``batch.segments.lengths``: attention ends at them.
        predicted_rows: rows that go through the end of the last block and the head of mlm and clm;
            the classifier takes one vector of each segment and needs none.
        used_slots: slots of them up to each one's end mark, which the autoregressive head's work
            hangs on: bytes of text and end marks; None: all of each.
        mixed_rows: how many different rows there are, each of which goes through the mixing layer
            once (model.ablation.mixing); None: all are different.
    """
    mixed = sum(lengths) if mixed_rows is None else mixed_rows
    if config.objective == "classify":
        head = classifier_flops(config, len(lengths), mixed)
    else:
        slots = predicted_rows * config.slots if used_slots is None else used_slots
        head = head_flops(config, predicted_rows, slots)
    finished = config.finished(sum(lengths), len(lengths), predicted_rows)
    return PASSES * (encoder_flops(config, lengths, finished, mixed) + head)
