"""The guard: the update of a bad step is never applied, and a run of bad steps ends.

All it looks at is equal on every rank, the norm of the whole gradient and the loss of the global
batch, so every rank comes to the same verdict without asking the others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from inspect import unwrap
from statistics import median
from typing import Any, Literal

import torch
from torch.optim import AdamW

from elemdist.errors import UserError
from elemdist.run_settings import GuardSettings

WINDOW = 100  # good steps whose norms a spike is compared with
FEWEST = 20  # below so many nothing is called a spike: the first steps have large gradients


class GuardedAdamW(AdamW):
    """AdamW whose step can be refused: then weights, moments and step count stay as they are.

    DeepSpeed calls step() when it knows the norm of the whole gradient, in ZeRO 3 once for every
    part of the weights, so `refuse` has to answer the same each time.

    Its methods are AdamW's without their wrappers, which import torch's compiler to tell it that
    it is not to compile them: nearly a second of every rank's start.
    """

    refuse: Callable[[], bool] | None = None

    add_param_group = unwrap(AdamW.add_param_group)
    load_state_dict = unwrap(AdamW.load_state_dict)
    state_dict = unwrap(AdamW.state_dict)
    zero_grad = unwrap(AdamW.zero_grad)
    _unguarded_step = unwrap(AdamW.step)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """As AdamW's, unless `refuse` says no."""
        if self.refuse is not None and self.refuse():
            return None
        return self._unguarded_step(closure)


def keeps_norm(engine: Any) -> bool:
    """Whether DeepSpeed measures the gradient: in every case but fp32 without ZeRO."""
    return bool(engine.zero_optimization_stage() or engine.bfloat16_enabled())


def gradient_norm(engine: Any) -> float:
    """Norm of the whole gradient before clipping, equal on all ranks; infinite where the gradient
    is not finite.

    Where DeepSpeed keeps it, that of the newest step, known from the optimizer's step on; else that
    of the gradients now there, before ``engine.step()``. Raises UserError where it was turned off.
    """
    if keeps_norm(engine):
        norm = engine.optimizer._global_grad_norm
        if norm is None:
            raise UserError(
                "deepspeed: zero_optimization.compute_grad_norm is false, but the guard needs the"
                " norm; leave that key out"
            )
    else:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    number = float(norm)
    # Some parts of DeepSpeed write -1 for what was inf or nan, and comparing nan gives False.
    return number if 0 <= number < math.inf else math.inf


@dataclass(frozen=True)
class Verdict:
    """What the loop has to do after a step.

    Attributes:
        action: "go on" after a good step. The update of a bad one has not been applied: "skip" to
            the next batch, "rollback" to the newest checkpoint, or "stop", save and end.
        message: what was wrong and what follows, for a line; empty after a good step.
    """

    action: Literal["go on", "skip", "rollback", "stop"]
    message: str = ""


class Guard:
    """Judges every step.

    Attributes:
        norms: of the last good steps, at most WINDOW.
        bad_steps: in a row, up to now.
        rollbacks: to the newest checkpoint; a new one begins at 0.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        self.norms: deque[float] = deque(maxlen=WINDOW)
        self.bad_steps = 0
        self.rollbacks = 0

    def step(self, engine: Any, loss: float | None = None) -> tuple[float, Verdict]:
        """``engine.step()`` at the end of a global batch, whose update is applied only if it is
        good: (norm of the whole gradient before clipping, verdict). All ranks call it together.

        The engine's base optimizer is a GuardedAdamW. `loss` is that of the global batch, equal on
        all ranks, or None where it is not known: a loss that is not finite shows in the norm, too.
        """
        norm = None if keeps_norm(engine) else gradient_norm(engine)

        def refuse() -> bool:
            return self.judge(loss, gradient_norm(engine) if norm is None else norm) is not None

        engine.basic_optimizer.refuse = refuse
        try:
            engine.step()
        finally:
            engine.basic_optimizer.refuse = None
        known = gradient_norm(engine) if norm is None else norm
        return known, self.verdict(loss, known)

    def judge(self, loss: float | None, norm: float) -> str | None:
        """Why a step is bad; None: it is good. Changes nothing."""
        if loss is not None and not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return "the gradient is not finite"
        if self.settings.spike and len(self.norms) >= FEWEST:
            usual = median(self.norms)
            if norm > self.settings.spike * usual > 0:
                return (
                    f"gradient norm {norm:.4g} is {norm / usual:.1f} times the median of the last"
                    f" {len(self.norms)} good steps"
                )
        return None

    def verdict(self, loss: float | None, norm: float) -> Verdict:
        """Judges a step and counts it."""
        reason = self.judge(loss, norm)
        if reason is None:
            self.norms.append(norm)
            self.bad_steps = 0
            return Verdict("go on")
        self.bad_steps += 1
        most = self.settings.most_bad_steps
        policy = self.settings.bad_step
        if policy == "stop":
            return Verdict("stop", f"{reason}; its update was not applied, the run ends")
        if policy == "rollback":
            if self.rollbacks >= most:
                return Verdict("stop", f"{reason}, after {most} rollbacks to one checkpoint")
            self.rollbacks += 1
            return Verdict(
                "rollback",
                f"{reason}; back to the newest checkpoint, rollback {self.rollbacks} of at most"
                f" {most}",
            )
        if self.bad_steps >= most:
            return Verdict("stop", f"{reason}; that makes {most} bad steps in a row")
        return Verdict(
            "skip",
            f"{reason}; its update was not applied, bad step {self.bad_steps} in a row, the run"
            f" ends at {most}",
        )

    def checkpoint_saved(self) -> None:
        """There is a new checkpoint to go back to."""
        self.rollbacks = 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {"norms": list(self.norms), "bad_steps": self.bad_steps}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes back to a checkpoint's state; the rollbacks to it stay counted. Raises UserError
        where it is none."""
        try:
            self.norms = deque(map(float, state["norms"]), maxlen=WINDOW)
            self.bad_steps = int(state["bad_steps"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                "the checkpoint's manifest has no state of the guard that can be read; remove that"
                " checkpoint, and --resume takes the one before"
            ) from error
