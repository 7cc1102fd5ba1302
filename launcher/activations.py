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
    def finished(self) -> float:
        """The rows that the last block finishes."""
        return self.config.finished(self.rows, self.samples, self.predicted)

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


def seen_bytes(model: ModelSettings, c: int, shared: bool = False) -> float:
    """Of a block up to its attention's outcome, its input included, a row."""
    width, rotary, pre = model.width, model.positions == "rotary", model.norm == "pre"
    # Turned queries and keys are others than the projection's, which the values keep alive.
    qkv = 5 if rotary and not shared else 3
    turns = 2 * width // model.heads if rotary and c < 4 else 0  # cosines and sines, rounded
    return c * (width * (2 + pre + qkv) + turns) + 8 * pre + 4 * model.heads


def finish_bytes(model: ModelSettings, c: int, tiled: bool) -> float:
    """Of what comes behind it, a row: the sums, what the norms give, and the feed-forward."""
    width, pre = model.width, model.norm == "pre"
    fixed = 16 - 8 * pre + width * (model.dropout > 0)
    return c * width * (3 - pre) + fixed + (0 if tiled else feed_bytes(model, c))


def block_bytes(model: ModelSettings, c: int, tiled: bool, shared: bool = False) -> float:
    """Of one block on all rows, its input included, a row."""
    by_rows = c * model.width * shared  # what ranks that share the rows send back to them
    return seen_bytes(model, c, shared) + by_rows + finish_bytes(model, c, tiled)


def last_block_bytes(run: Pass) -> float:
    """Of the block that the head stands on, which finishes no other rows than those it looks at."""
    model, c = run.model, run.c
    tiled = is_tiled(run, run.finished)
    if run.finished == run.rows:
        return run.rows * block_bytes(model, c, tiled, run.shared)
    copied = c * model.width  # of the attention's outcome
    finish = run.finished * (copied + finish_bytes(model, c, tiled))
    return run.rows * seen_bytes(model, c, run.shared) + finish


def is_tiled(run: Pass, rows: float) -> bool:
    """Whether the feed-forward takes so many rows in several tiles."""
    return 0 < run.memory.tile_rows < rows


def recomputes(run: Pass, number: int) -> bool:
    """Whether block `number` keeps its input only."""
    every = run.memory.checkpoint_every
    return bool(every) and number % every == 0


def recomputes_last(run: Pass) -> bool:
    """Whether the block that the head stands on does."""
    canine = run.model.backbone == "canine"  # whose last block is none of the stack's
    return bool(run.memory.checkpoint_every) if canine else recomputes(run, run.model.layers - 1)


def stack_bytes(run: Pass, rows: float) -> float:
    """Of all blocks of the stack on so many rows, if it finishes all of them."""
    whole = block_bytes(run.model, run.c, is_tiled(run, rows), run.shared)
    inputs = run.c * run.model.width
    numbers = range(run.model.layers)
    return rows * sum(inputs if recomputes(run, number) else whole for number in numbers)


def spared_bytes(run: Pass) -> float:
    """What the last block keeps less than one that finishes all rows."""
    if recomputes_last(run):
        return 0.0
    tiled = is_tiled(run, run.rows)
    return run.rows * block_bytes(run.model, run.c, tiled, run.shared) - last_block_bytes(run)


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
    last = run.finished * (run.c * model.width + 8) if model.norm == "pre" else 0.0
    canine = model.backbone == "canine"
    blocks = canine_bytes(run) if canine else stack_bytes(run, run.rows)
    return embedding_bytes(run) + blocks - spared_bytes(run) + last


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
        vectors = run.samples * run.c * 2.0 * width  # of the documents, and what tanh gives
        return run.rows * 4.0 * width * averaged + vectors + wide_bytes(run)
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
            head += tile_gradients(run, head_parameters(run.config))
    waiting = run.c * answers(run)  # their gradient, for that of the embedding
    # The gradients of what goes into ReLU and what comes out.
    mixing = 2.0 * run.c * run.rows * run.model.ablation.mixing
    return max(
        head,
        waiting + block_temporary(run) - head_bytes(run),
        waiting + mixing + embedding_bytes(run) - kept_bytes(run),
    )


def tile_gradients(run: Pass, parameters: int) -> float:
    """Return the bytes of the gradients of parameters: a tile's, and the sums of all in fp32."""
    return (run.c + 4.0) * parameters


def head_parameters(config: ModelConfig) -> int:
    """Return how many parameters the head has."""
    import torch

    from elemdist.model import build_head

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_head(config).parameters())


def block_temporary(run: Pass) -> float:
    """The most that the backward pass needs in a block beside what is kept before the last one's:
    in that one or, as it may finish few rows only, in the one before."""
    model, rows = run.model, run.rows
    canine, again = model.backbone == "canine", recomputes_last(run)
    inputs, last = run.c * model.width * rows, last_block_bytes(run)
    most = one_block(run, run.finished) + (last - inputs if again else 0)
    if canine and again:  # the windows and their gradients
        most = max(most, (4 * model.canine.kernel + 2) * inputs)
    if canine or model.layers == 1:
        return most
    before = one_block(run, rows) - (inputs if again else last)
    if recomputes(run, model.layers - 2):
        whole = rows * block_bytes(model, run.c, is_tiled(run, rows), run.shared)
        before += whole - inputs
    return max(most, before)


def one_block(run: Pass, finished: float) -> float:
    """The most that the backward pass of a block that finishes so many rows makes itself."""
    model, c, memory, rows = run.model, run.c, run.memory, run.rows
    wide, narrow = c * model.width * rows, c * model.width * finished
    tiled = is_tiled(run, finished)
    feed = feed_bytes(model, c) * (memory.tile_rows if tiled else finished)
    # The gradients of what goes into and out of GELU, while some of what was kept is still there.
    inside = feed / 2 if tiled else c * model.feedforward * finished * (1 + gated(model))
    ends = 3 * narrow + feed + inside if tiled else narrow + max(narrow, inside)
    # Those of queries, keys, values and outcome; a flash kernel sums queries' up in fp32.
    attention = 3 * wide + 4 * model.width * rows - (0 if tiled else feed)
    return max(ends, attention)
