"""What a run reports: ``metrics.jsonl`` and TensorBoard in its folder, a line on the terminal, and
Weights & Biases where it is asked for.

Metrics never end a run: what a full disk does not take now is kept, and written later.
"""

from __future__ import annotations

import re
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from elemdist.attempts import Attempt
from elemdist.errors import UserError
from elemdist.json_text import json_text
from elemdist.metric_writers import AppendedFile, Board, WandbRun, tell
from elemdist.metrics_file import drop_after
from elemdist.units import amount, counted, duration

if TYPE_CHECKING:
    from elemdist.communication import Traffic


class Reporter:
    """Writes the metrics of a run; only rank 0 has one.

    Every line of metrics.jsonl is one JSON object with ``kind`` (train, eval or event), ``step``
    and ``time_s`` (seconds of training, over all starts of the run) and the figures; null stands
    for what is no finite number. A line of an event says in ``event`` what happened.

    Args:
        run_dir: the run folder, with its settings.yaml. step: the last that is done; lines of
            later ones are dropped. project: of Weights & Biases; None: not used. attempt: once this
            is superseded, nothing is written any more.

    Raises:
        UserError: metrics.jsonl is no file that can be read and written, or see WandbRun.
    """

    def __init__(
        self, run_dir: Path, step: int, project: str | None = None, attempt: Attempt | None = None
    ) -> None:
        self.attempt = attempt
        self.path = run_dir / "metrics.jsonl"
        self.before_s = self.drop_after(step)
        self.lines = AppendedFile(self.path)
        self.board = Board(run_dir / "tensorboard", step)
        self.wandb = WandbRun(project, run_dir) if project else None
        self.start = time.perf_counter()

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """A line of figures; TensorBoard and Weights & Biases get those that are numbers."""
        if self.superseded():
            return
        self.write_line(kind, step, figures)
        numbers = {f"{kind}/{n}": x for n, x in figures.items() if isinstance(x, (int, float))}
        self.board.write(step, numbers)
        if self.wandb is not None:
            self.wandb.write(step, numbers)

    def event(self, step: int, what: str, **figures: Any) -> None:
        """A line that says what happened: a checkpoint was saved, a bad step skipped."""
        if not self.superseded():
            self.write_line("event", step, {"event": what, **figures})

    def superseded(self) -> bool:
        """Whether another attempt has begun, so that this one may write no more."""
        return self.attempt is not None and self.attempt.superseded()

    def write_line(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        time_s = round(self.before_s + time.perf_counter() - self.start, 3)
        line = {"kind": kind, "step": step, "time_s": time_s, **figures}
        self.lines.write((json_text(line) + "\n").encode())

    def rewind(self, step: int) -> None:
        """Drops what was reported of later steps, which training will do again; time goes on."""
        try:
            self.drop_after(step)
            self.lines.whole_bytes = None  # of the file as it was
        except UserError as error:
            tell(f"metrics: {error}; training goes on")
        self.board.drop_after(step)

    def drop_after(self, step: int) -> float:
        """Drop the lines of later steps; the seconds of training so far. Raises UserError."""
        time_s, foreign = drop_after(self.path, step)
        if foreign:
            lines = "a line that is none" if foreign == 1 else f"{foreign} lines that are none"
            tell(f"metrics: {self.path}: {lines} of metrics, torn or foreign, left out")
        return time_s

    def close(self) -> None:
        """Ends what has to be ended."""
        if self.wandb is not None:
            self.wandb.close()


def step_figures(seconds: dict[str, float], traffic: Traffic, steps: int) -> dict[str, float]:
    """What a step took, as the mean over `steps`: data_s, forward_s and whatever parts there are,
    and of these communication_s; and sent_bytes_per_step. See timing.py and communication.py."""
    total = traffic.total
    return {
        **{f"{part}_s": spent / steps for part, spent in seconds.items()},
        "communication_s": total.seconds / steps,
        "sent_bytes_per_step": total.sent_bytes / steps,
    }


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory so far: what tensors had on a CUDA device, else what this process had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # the other figure is never below that of the process that started this one
        (peak,) = re.findall(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        return int(peak) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def progress_line(step: int, steps: int, figures: dict[str, Any], left_s: float) -> str:
    """One line for the terminal: what is learned, how fast, and when it ends. `norm` is that of the
    gradient, `wait` the share of the time for which there was no data."""
    known = {name: value for name, value in figures.items() if value is not None}
    parts = [
        ("loss", "loss {:.4f}"),
        ("bits_per_byte", "{:.3f} bits/byte"),
        ("lr", "lr {:.2e}"),
        ("grad_norm", "norm {:.3f}"),
        ("rows_per_s", "{:,.0f} rows/s"),
        ("mfu", "MFU {:.1%}"),
        ("data_wait_share", "wait {:.1%}"),
    ]
    shown = [form.format(known[name]) for name, form in parts if name in known]
    if known.get("empty_steps"):
        shown.insert(0, f"{counted(known['empty_steps'], 'step')} with nothing to predict")
    for name, form in (("bytes_per_s", "{}/s"), ("peak_memory_bytes", "mem {}")):
        if name in known:
            shown.append(form.format(amount(known[name])))
    return "  ".join([f"step {step}/{steps}", *shown, f"ETA {duration(left_s)}"])


def eval_line(step: int | None, figures: dict[str, Any]) -> str:
    """One line for the terminal: the figures of an evaluation."""
    names = ["loss", "bits_per_byte", "material_accuracy", "micro_f1", "macro_f1", "micro_roc_auc"]
    shown = [f"{name} {figures[name]:.4f}" for name in names if figures.get(name) is not None]
    shown = shown or ["no figures: nothing in the set is predicted"]
    return "  ".join(["eval" if step is None else f"eval at step {step}", *shown])
