"""One optimizer step of a rank: its passes forward and backward, and the update."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from elemdist.guard import Verdict
from elemdist.passes import Pass, loss_of
from elemdist.start_up import Session


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seeds the random numbers of torch on this device alone: torch.manual_seed seeds all kinds of
    device, and where there is no GPU keeps a stack trace each time."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def train_step(
    engine: Any, passes: list[Pass], whole: float, rate: float, session: Session
) -> tuple[float, Verdict]:
    """One optimizer step over this rank's passes: (norm of the whole gradient, the guard's
    verdict)."""
    watch, tally = session.watch, session.tally
    session.watchdog.begin_step()
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_ratio"]
    for one in passes:
        session.watchdog.beat("a pass")
        seed_dropout(one.dropout_seed, engine.device)
        with watch("forward"):
            loss, source_K2 = loss_of(engine, one, whole, session.share, len(tally.sources))
        with watch("backward"):
            # DeepSpeed takes the mean over ranks and passes; ours is a sum.
            engine.backward(loss * (dist.get_world_size() * len(passes)))
        mixed = getattr(engine.module.encoder.embedding, "mixed_rows", None)
        tally.add_pass(one.batch, one.predicted_rows, loss.detach(), source_K2, mixed)
        with watch("optimizer"):
            if not engine.is_gradient_accumulation_boundary():
                engine.step()
    with watch("optimizer"):
        return session.guard.step(engine)
