"""What a run has done since its last line of metrics, and the figures that follow from it."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from elemdist.batch import Batch
from elemdist.flops import step_flops
from elemdist.model_config import ModelConfig
from elemdist.objectives import NATS_PER_BIT
from elemdist.sequence_parallel import Share, once


class Tally:
    """Sums of this rank over some steps; what a group of ranks shares is counted on its first.

    Args:
        config: of the model. sources: names of what is trained on. share: of this rank.
        device: where the sums of losses are.
    """

    def __init__(
        self,
        config: ModelConfig,
        sources: list[str],
        share: Share | None,
        device: torch.device,
    ) -> None:
        self.config, self.sources, self.share, self.device = config, sources, share, device
        self.reset()

    def reset(self) -> None:
        """Begins an interval."""
        self.start = time.perf_counter()
        self.steps = self.bad_steps = self.empty_steps = 0
        self.bytes = self.rows = self.samples = self.flops = 0.0
        # The loss, and for each source its nats and what they are divided by.
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.source_K2 = torch.zeros(len(self.sources), 2, dtype=torch.float64, device=self.device)
        self.begin_step()

    def begin_step(self) -> None:
        """Forgets the losses of a step that was begun and does not count."""
        self.step_loss = torch.zeros_like(self.loss)
        self.step_source_K2 = torch.zeros_like(self.source_K2)

    def add_pass(
        self,
        batch: Batch,
        predicted_rows: int,
        loss: Tensor,
        source_K2: Tensor,
        mixed_rows: int | None = None,
    ) -> None:
        """Add a pass: its batch, how many of its rows predict, this rank's share of the global
        batch's loss, the nats by source, and how many different rows this rank has mixed."""
        self.step_loss += loss
        self.step_source_K2 += source_K2
        self.bytes += once(batch.text_bytes, self.share)
        self.rows += once(len(batch.rows_TV), self.share)
        assert batch.source_B is not None, "every batch of training has it"
        self.samples += once(len(batch.source_B), self.share)
        # The text tells, without a wait for the device, how many slots are in use up to the end.
        per_row = batch.text_bytes / max(1, len(batch.rows_TV)) + 1
        used_slots = predicted_rows * min(self.config.slots, per_row)
        if mixed_rows is not None and self.share is not None:  # each mixes those of its part
            mixed_rows *= self.share.size
        flops = step_flops(
            self.config, batch.segments.lengths, predicted_rows, used_slots, mixed_rows
        )
        self.flops += once(flops, self.share)

    def end_step(self, bad: bool, empty: bool = False) -> None:
        """End a step. The loss does not count of a bad one, which changed nothing, nor of an
        `empty` one, whose batch has nothing to predict."""
        self.steps += 1
        self.bad_steps += bad
        self.empty_steps += empty and not bad
        if not bad and not empty:
            self.loss += self.step_loss
            self.source_K2 += self.step_source_K2
        self.begin_step()

    def figures(self, digest: float, seconds: float, peak_tflops: float | None) -> dict[str, Any]:
        """The figures of all ranks over `seconds`; the ranks call it together.

        `digest` is summed up, too. `peak_tflops`: of a device, for the MFU; None: not known.
        """
        digest = once(digest, self.share)
        amounts = [self.bytes, self.rows, self.samples, self.flops, digest]
        sums = torch.cat([
            torch.tensor(amounts, dtype=torch.float64, device=self.device),
            self.loss.view(1),
            self.source_K2.flatten(),
        ])  # fmt: skip
        dist.all_reduce(sums)
        text_bytes, rows, samples, flops, digest, loss, *by_source = sums.tolist()
        good = self.steps - self.bad_steps - self.empty_steps
        mean = loss / good if good else None
        predicts = self.config.objective != "classify"
        found: dict[str, Any] = {"loss": mean}
        if predicts:
            found["bits_per_byte"] = None if mean is None else mean / NATS_PER_BIT
        if len(self.sources) > 1:
            name, unit = ("bits_per_byte", NATS_PER_BIT) if predicts else ("loss", 1.0)
            pairs = zip(self.sources, by_source[::2], by_source[1::2], strict=True)
            found |= {f"{name}/{k}": nats / count / unit for k, nats, count in pairs if count}
        found |= {
            "bytes_per_s": text_bytes / seconds,
            "rows_per_s": rows / seconds,
            "samples_per_s": samples / seconds,
            "samples_digest": int(digest),
            "bad_steps": self.bad_steps,
        }
        if self.empty_steps:
            found["empty_steps"] = self.empty_steps
        if peak_tflops:
            found["mfu"] = flops / seconds / (peak_tflops * 1e12 * dist.get_world_size())
        return found
