"""The groups of a training run's settings; the run itself is in elemdist/config.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from elemdist.errors import UserError
from elemdist.json_types import (
    Amount,
    Bounds,
    Count,
    CountOrNone,
    Positive,
    Rate,
    Share,
    ShareBelowOne,
)

MOST_REPEATS = 1_000_000  # of a source in an epoch: more is a mistake, and would not fit 64 bits


@dataclass
class Source:
    """One shard set of a mixture"""

    path: str
    """Folder of shards, or its URL."""
    weight: Positive | None = None
    """Its share, compared with the weights of the other sources."""
    repeat: Annotated[float, Bounds(0, MOST_REPEATS, above=True)] | None = None
    """How often each of its samples comes in an epoch of the mixture; 1 where it is not set."""
    name: str | None = None
    """What it is called in the metrics; not set: the last folder of the path but "train"."""

    def check(self, place: str) -> None:
        """Raises UserError on values that cannot be; `place` says which source it is."""
        if not self.path:
            raise UserError(f"{place}: no path; name a folder of shards, or its URL")


@dataclass
class DataSettings:
    """Where the rows come from"""

    train: str | None = None
    """Folder of shards to train on, made by `elemdist shard`, or its URL in an object store
    (s3://bucket/folder). This or a mixture is required. What is fetched from a store, or unpacked,
    is kept in $ELEMDIST_CACHE, else in ~/.cache/elemdist."""
    mixture: list[Source] = field(default_factory=list)
    """In place of train several sets, as '[{"path": "a", "weight": 0.7}, {"path": "b", "weight":
    0.3, "name": "code"}]'. Shares are by weight, of a sum of any size; or each set comes `repeat`
    times in an epoch of the mixture, once where neither is set."""
    eval: str | None = None
    """Folder or URL of held-out shards for the evaluation during training; none: no evaluation."""
    eval_samples: CountOrNone = 0
    """Evaluate on the first so many samples only; 0: on all."""
    verify: bool = True
    """Compare the hash of every shard on this machine before training; the ranks share the work.
    Without it only sizes and headers are compared. What is fetched or unpacked always is."""

    def sources(self) -> list[Source]:
        """What is trained on: the sources of the mixture, or the one set."""
        return self.mixture or [Source(self.train or "")]

    def check(self) -> None:
        """Raises UserError unless there is exactly one of train and a mixture that can be."""
        if self.train and self.mixture:
            raise UserError(
                "data.train and data.mixture are both set; leave one out (--data.mixture '[]'"
                " takes back that of a recipe)"
            )
        if not self.train and not self.mixture:
            raise UserError(
                "no training data; add --data.train DIR (from elemdist shard) or --data.mixture"
            )
        for number, source in enumerate(self.mixture):
            source.check(f"data.mixture[{number}]")
        weighted = [source.weight is not None for source in self.mixture]
        if any(weighted) and any(source.repeat is not None for source in self.mixture):
            raise UserError("data.mixture: weights and repeats do not go together; set only one")
        if any(weighted) and not all(weighted):
            raise UserError(
                f"data.mixture[{weighted.index(False)}]: no weight, but others have one; give every"
                " source a weight, or none"
            )


@dataclass
class MlmSettings:
    """Objective mlm"""

    mask_rate: Share = 0.15
    """Share of the materials that are to be predicted: 8 in 10 of them are masked, 1 in 10
    replaced by another material of the batch, 1 in 10 left as it is."""


@dataclass
class ClassifySettings:
    """Objective classify"""

    pooling: Literal["doc", "last", "mean", "max"] = "doc"
    """The document's vector: the output of its DOC row (BERT's CLS), of its last row, or the mean
    or the maximum over all its rows."""
    threshold: Rate = 0.5
    """A label is predicted where its probability reaches this."""
    mask_rate: ShareBelowOne = 0.0
    """Share of the materials hidden from the classifier in training, as in mlm: a remedy for few
    documents, each of which then looks different every time."""
    loss: Literal["cross_entropy", "squared_hinge"] = "cross_entropy"
    """squared_hinge: that of a linear SVM. It finds more of the rare labels in few documents; its
    scores tell which is the likelier label, but are no probabilities."""
    wide: bool = False
    """A linear layer on how often each material stands in the document learns beside the
    transformer, and their logits are added. Input elementwise counts what the units of
    model.ablation.mixing answer to, so misspelt words, too; input subword counts tokens."""
    wide_lead: Amount = 0.0
    """How much more the first material of a sample counts there than those far behind it; 20
    materials on it is a third of that. A document mostly begins with what it is about."""
    wide_l2: Amount = 1e-4
    """How much large weights of that layer cost: this, times half the sum of the squares of a
    label's, on top of its mean loss."""
    refit: Amount = 0.0
    """After the last step the label layers are computed anew, exactly: a linear SVM of this C for
    each label, on what the model makes of the whole training documents; 0: they stay as they are.
    Its scores, too, are no probabilities."""


@dataclass
class BatchSettings:
    """Batch sizes"""

    global_samples: Count = 64
    """Samples per optimizer step, over all ranks."""
    global_bytes: CountOrNone = 0
    """The same in bytes, n * v for each sample, rounded to the nearest number of samples; takes
    the place of global_samples. 0: not used."""
    micro_samples: Count = 8
    """Most samples per rank in one forward and backward pass; the rest is gradient accumulation."""


@dataclass
class OptimSettings:
    """AdamW and its learning rate"""

    lr: Amount = 1e-3
    """Peak learning rate of AdamW."""
    beta1: ShareBelowOne = 0.9
    """Decay of the mean of the gradients."""
    beta2: ShareBelowOne = 0.98
    """Decay of the mean of the squared gradients."""
    eps: Amount = 1e-6
    """Term added to the denominator."""
    weight_decay: Amount = 0.01
    """Decoupled weight decay, for matrices only (not for the element table)."""
    warmup_steps: CountOrNone | None = None
    """Steps over which the learning rate rises linearly to its peak; not set: 100. More than the
    run has are refused, but for trials of fewer than 10 steps."""
    decay: Literal["linear", "cosine", "none"] = "linear"
    """Shape of the fall of the learning rate after the warm-up."""
    final_lr_share: Rate = 0.0
    """The learning rate at the last step, as a share of the peak."""
    grad_clip: Amount = 1.0
    """Largest norm of the gradient over all parameters; 0: no clipping."""

    @property
    def warmup(self) -> int:
        """Return the steps of the warm-up."""
        return 100 if self.warmup_steps is None else self.warmup_steps


@dataclass
class ZeroSettings:
    """DeepSpeed ZeRO"""

    stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed ZeRO shards over the ranks: 0 nothing, 1 the optimizer's state, 2 also the
    gradients, 3 also the parameters."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where the optimizer's state lies: on the device, in the machine's memory (stages 1 to 3), or
    on a fast disk (stage 3)."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """The same for the parameters, of stage 3 only."""
    nvme_path: str | None = None
    """Folder on the fast disk, needed where something is offloaded to nvme."""


@dataclass
class MemorySettings:
    """Less memory for more time; the numbers stay the same"""

    checkpoint_every: CountOrNone = 0
    """Keep only the input of every so many'th block and compute the block again for the gradient;
    1: of all blocks, 0: of none."""
    tile_rows: CountOrNone = 0
    """The feed-forward layers take so many rows at a time; 0: all at once."""
    tile_loss_rows: CountOrNone = 0
    """The predictions and their loss take so many rows at a time; 0: all at once."""


@dataclass
class GuardSettings:
    """What happens when training goes wrong"""

    bad_step: Literal["skip", "rollback", "stop"] = "skip"
    """After a step whose loss or gradient is not finite, or a spike; its update is never applied.
    skip: go on with the next batch. rollback: go back to the newest checkpoint and on from there
    with the batches behind this one. stop: save and end."""
    spike: Amount = 0.0
    """A step is bad, too, when the norm of its gradient is above so many times the median of the
    last 100; 0: never."""
    most_bad_steps: Count = 10
    """End the run after so many bad steps in a row, or so many rollbacks to one checkpoint."""
    stall_s: Amount = 1800.0
    """Print every rank's stack and end when a rank has made no progress for so many seconds;
    0: never."""
    stall_steps: Amount = 50.0
    """The same after so many times the median time of a step, where that is sooner, but not before
    5 minutes; 0: only after stall_s."""
