"""The arithmetic of a global batch: who takes which samples of it, in how many passes.

The loss is a sum over the global batch divided by its size, so the parts need not be equal, and
any number of ranks can share any batch that has a sample for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from elemdist.errors import UserError
from elemdist.run_settings import BatchSettings
from elemdist.units import counted


@dataclass(frozen=True)
class BatchPlan:
    """How the ranks share a global batch.

    Attributes:
        global_samples: samples of an optimizer step.
        groups: of ranks that share a sequence; each takes samples of its own.
        sequence_parallel: ranks of a group.
        passes: forward and backward passes of each rank in a step.
    """

    global_samples: int
    groups: int
    sequence_parallel: int
    passes: int

    @property
    def micro_batches(self) -> int:
        """Into how many parts the ranks cut the global batch."""
        return self.groups * self.passes

    @property
    def micro_samples(self) -> int:
        """The most samples of a pass."""
        return -(-self.global_samples // self.micro_batches)

    def micro_batch(self, group: int, number: int) -> int:
        """Which of the micro-batches a group takes in its pass `number`."""
        return number * self.groups + group

    def samples(self, micro_batch: int) -> range:
        """The samples of a micro-batch, as places in the global batch."""
        count, parts = self.global_samples, self.micro_batches
        return range(micro_batch * count // parts, (micro_batch + 1) * count // parts)

    def chain(self, sample_bytes: int) -> str:
        """One line that says how the global batch comes about; `sample_bytes`: n * v."""
        count, most = self.global_samples, self.micro_samples
        least = count // self.micro_batches
        micro = f"{most}" if least == most else f"{least} or {most}"
        shared = self.sequence_parallel
        ranks = counted(self.groups, "group" if shared > 1 else "rank")
        ranks += f" of {shared} ranks" if shared > 1 else ""
        return (
            f"{counted(count, 'sample')} ({count * sample_bytes:,} bytes) a step ="
            f" {micro} a pass x {ranks} x {counted(self.passes, 'pass')}"
        )


def global_samples(batch: BatchSettings, sample_bytes: int) -> int:
    """Samples of a step; `sample_bytes`: n * v. Raises UserError where bytes do not make one."""
    if not batch.global_bytes:
        return batch.global_samples
    samples = round(batch.global_bytes / sample_bytes)
    if samples < 1:
        raise UserError(
            f"batch.global_bytes: {batch.global_bytes} are less than one sample of these shards,"
            f" {sample_bytes} bytes; set at least that"
        )
    return samples


def plan_batch(
    batch: BatchSettings, sample_bytes: int, ranks: int, sequence_parallel: int = 1
) -> BatchPlan:
    """How `ranks` share the global batch; `sample_bytes`: n * v.

    Raises:
        UserError: the ranks do not divide into groups, there are more groups than samples, or
            single samples do not divide into them.
    """
    if ranks % sequence_parallel:
        raise UserError(
            f"sequence_parallel: {counted(ranks, 'rank')} cannot be divided into groups of"
            f" {sequence_parallel}; take a divisor of {ranks}, or another number of ranks"
        )
    groups, samples = ranks // sequence_parallel, global_samples(batch, sample_bytes)
    if samples < groups:
        raise UserError(
            f"batch: {samples} global samples do not give each of {groups} ranks (or groups of"
            f" ranks) one; set --batch.global-samples {groups} or more, or start fewer ranks"
        )
    passes = -(-samples // (groups * batch.micro_samples))
    if passes * groups > samples:  # of single samples, and one group would have none in a pass
        below = samples // groups * groups
        raise UserError(
            f"batch: {samples} global samples, one a pass, do not divide into {groups} ranks (or"
            f" groups of ranks); --batch.global-samples {below} or {below + groups} would"
        )
    return BatchPlan(samples, groups, sequence_parallel, passes)
