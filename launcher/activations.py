"""How many bytes a forward pass keeps for the backward pass, and the most that comes on top.

Read off the modules, tensor by tensor: what torch keeps of each operation, a tensor that two of
them share once. Numbers of the model's precision take `c` bytes (bf16: 2, fp32: 4); statistics of
norms, logarithms of the softmax's sums and probabilities are fp32 always, masks of dropout a byte.
Attention is a flash kernel, or torch's scaled dot product without padding: both keep queries, keys,
values, their outcome and one number a row and head.

Shape suffixes: see elemdist/rows.py; F inner width of the feed-forward, E values of an element.
"""

from __future__ import annotations

from dataclasses import dataclass

from elemdist.model_config import ModelConfig
from elemdist.model_settings import ModelSettings
from elemdist.run_settings import MemorySettings


@dataclass(frozen=True)
class Pass:
    """A forward pass of one rank.

    Attributes:
        rows: rows without padding, of this rank. predicted: those that go through the head.
        c: bytes of a number. shared: whether ranks share the rows. samples: that the rows are of.
    """

    config: ModelConfig
    memory: MemorySettings
    rows: int
    predicted: int
    c: int
    shared: bool = False
    samples: int = 1

    @property
    def model(self) -> ModelSettings:
        """The model's settings."""
        return self.config.model


def gated(model: ModelSettings) -> bool:
    """Whether the feed-forward has a gate beside it."""
    return model.activation == "geglu"


def feed_bytes(model: ModelSettings, c: int) -> float:
    """Of the inside of a feed-forward layer, a row."""
    # What goes into GELU and what comes out; gated, there are two halves and their product.
    return c * model.feedforward * (4 if gated(model) else 2) + model.width * (model.dropout > 0)


def block_bytes(model: ModelSettings, c: int, tiled: bool, shared: bool = False) -> float:
    """Of one block, its input included, a row."""
    width, rotary = model.width, model.positions == "rotary"
    # Turned queries and keys are others than the projection's, which the values keep alive.
    qkv = 5 if rotary and not shared else 3
    outcome = 2 if shared else 1  # by heads and, sent back, by rows
    numbers = width * (4 + qkv + outcome)  # with the input, the sums, and what the norms give
    turns = 2 * width // model.heads if rotary and c < 4 else 0  # cosines and sines, rounded
    fixed = 16 + 4 * model.heads + width * (model.dropout > 0)
    return c * (numbers + turns) + fixed + (0 if tiled else feed_bytes(model, c))


def is_tiled(run: Pass, rows: float) -> bool:
    """Whether the feed-forward takes so many rows in several tiles."""
    return 0 < run.memory.tile_rows < rows


def recomputes(run: Pass, number: int) -> bool:
    """Whether block `number` keeps its input only."""
    every = run.memory.checkpoint_every
    return bool(every) and number % every == 0


def stack_bytes(run: Pass, rows: float) -> float:
    """Of all blocks of the stack on so many rows."""
    whole = block_bytes(run.model, run.c, is_tiled(run, rows), run.shared)
    inputs = run.c * run.model.width
    numbers = range(run.model.layers)
    return rows * sum(inputs if recomputes(run, number) else whole for number in numbers)


def embedding_bytes(run: Pass) -> float:
    """Of the embedding up to the first block."""
    config, model = run.config, run.model
    width, learned = config.embedding_width, model.positions == "learned"
    index = 8 * model.canine.hashes if model.input == "canine" else config.slots
    fixed = index + 8 * learned + 8 + width * (model.dropout > 0)
    turns = 0 if learned else 4 * (model.width // model.heads)
    numbers = width * (1 + bool(model.embedding_width))
    if mixing := model.ablation.mixing:  # the most: of rows that are all different
        numbers += 2 * width + mixing
        fixed += 16  # which row each is, and two figures of the layer norm in fp32
    return run.rows * (run.c * numbers + fixed + turns)


def encoder_bytes(run: Pass) -> float:
    """Of embedding, blocks and last norm."""
    model = run.model
    last = run.rows * (run.c * model.width + 8) if model.norm == "pre" else 0.0
    if model.backbone != "canine":
        return embedding_bytes(run) + stack_bytes(run, run.rows) + last
    return embedding_bytes(run) + canine_bytes(run) + last


def canine_bytes(run: Pass) -> float:
    """Of a CANINE's blocks on rows, convolutions, and blocks on molecules."""
    model, c, rows = run.model, run.c, run.rows
    canine, width, pre = model.canine, model.width, model.norm == "pre"
    again, molecules = bool(run.memory.checkpoint_every), rows / canine.rate
    deep = stack_bytes(run, molecules)
    if again:  # the inputs of four parts, and of the norms between them
        return deep + c * width * (rows * (3 + pre) + molecules * (1 + pre)) + 8 * pre * rows
    outer = 2 * block_bytes(model, c, is_tiled(run, rows), run.shared)
    down = c * width + 8 + molecules / rows * (2 * c * width + 8)
    # The windows of rows and molecules, all that the convolution multiplies with.
    up = c * width * (2 * canine.kernel + 2) + 8 + 8 * (canine.kernel + 1)
    up += width * (model.dropout > 0)
    norms = pre * (c * width + 8)
    return deep + rows * (outer + down + up + norms) + molecules * norms


def slot_block(model: ModelSettings) -> ModelSettings:
    """A block of the autoregressive head."""
    width = model.slot_width
    return ModelSettings(
        width=width, heads=width // 32, feedforward=4 * width, norm="pre", dropout=0.0
    )


def head_inside(run: Pass) -> float:
    """Of the predictions, a row: what is kept beside the row's vector and the probabilities."""
    config, model, c = run.config, run.model, run.c
    if model.head != "autoregressive":
        return 3 * c * config.embedding_width + 8 + 9 * config.slots
    width = model.slot_width
    slot = model.slot_layers * block_bytes(slot_block(model), c, tiled=False) + 2 * c * width + 29
    return config.slots * (slot + 9 + c * config.elements)  # the logits of the slots in use


def probabilities(run: Pass) -> float:
    """Of the logarithms of the probabilities of a material's bytes, in fp32."""
    return 4.0 * run.config.slots * run.config.elements


def tile_loss_rows(run: Pass) -> int:
    """The rows whose predictions exist at the same time."""
    tile = run.memory.tile_loss_rows
    return min(run.predicted, tile) if tile else run.predicted


def head_bytes(run: Pass) -> float:
    """Of the head and the loss."""
    width = run.model.width
    if run.config.objective == "classify":
        averaged = run.config.pooling in ("mean", "max")
        return run.rows * 4.0 * width * averaged + wide_bytes(run)
    inside = head_inside(run) + probabilities(run)
    tiled = tile_loss_rows(run) < run.predicted
    return run.predicted * (run.c * width + 8 + (run.config.slots if tiled else inside))


def wide_bytes(run: Pass) -> float:
    """Of a classifier's wide part (elemdist/wide.py), if all rows are different."""
    if not run.config.wide:
        return 0.0
    counts = 8 + run.c  # the logarithms, scaled, and to length 1
    if run.config.symbols:  # the counts themselves are given, and no gradient goes into them
        return run.samples * float(counts * run.config.units)
    return run.samples * float((4 + counts) * run.config.units + 4 * run.rows)


def answers(run: Pass) -> float:
    """How many numbers say how much each unit of the mixing layer answers to each row, of which the
    wide part needs copies."""
    config = run.config
    return float(run.rows * config.units) if config.wide and not config.symbols else 0.0


def kept_bytes(run: Pass) -> float:
    """All that a forward pass keeps until the backward pass."""
    return encoder_bytes(run) + head_bytes(run)


def largest_temporary(run: Pass) -> float:
    """The most that comes on top of :func:`kept_bytes` in the backward pass, or falls short of it:
    in the head; in a block, whose turn comes when what the head kept is gone; or in the mixing
    layer, when only the embedding is left."""
    # In the precision of the model, and of the counts.
    head = answers(run) * (run.c + 4 * (run.c < 4))
    if run.config.objective != "classify":
        rows = tile_loss_rows(run)
        head = rows * 2 * probabilities(run)  # the gradients of loss and logits
        if rows < run.predicted:
            head += rows * (head_inside(run) + probabilities(run))
    waiting = run.c * answers(run)  # their gradient, for that of the embedding
    # The gradients of what goes into ReLU and what comes out.
    mixing = 2.0 * run.c * run.rows * run.model.ablation.mixing
    return max(
        head,
        waiting + block_temporary(run) - head_bytes(run),
        waiting + mixing + embedding_bytes(run) - kept_bytes(run),
    )


def block_temporary(run: Pass) -> float:
    """The most that the backward pass of the last block needs beside what is kept."""
    model, c, memory, rows = run.model, run.c, run.memory, run.rows
    wide, canine = c * model.width * rows, model.backbone == "canine"
    tiled = is_tiled(run, rows)
    feed = feed_bytes(model, c) * (memory.tile_rows if tiled else rows)
    # The gradients of what goes into and out of GELU, while some of what was kept is still there.
    inside = feed / 2 if tiled else c * model.feedforward * rows * (1 + gated(model))
    ends = 3 * wide + feed + inside if tiled else wide + max(wide, inside)
    # Those of queries, keys, values and outcome; a flash kernel sums queries' up in fp32.
    attention = 3 * wide + 4 * model.width * rows - (0 if tiled else feed)
    most = max(ends, attention)
    if memory.checkpoint_every and (canine or recomputes(run, model.layers - 1)):
        most += rows * block_bytes(model, c, tiled, run.shared) - wide
    if canine and memory.checkpoint_every:  # the windows and their gradients
        most = max(most, (4 * model.canine.kernel + 2) * wide)
    return most
