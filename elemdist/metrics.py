"""What a run reports: ``metrics.jsonl`` and TensorBoard in its folder, a line on the terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO, Any


class Reporter:
    """Writes the metrics of a run; only rank 0 has one.

    Every line of metrics.jsonl is one JSON object with ``kind`` (train or eval), ``step`` and
    ``time_s`` (seconds of training, over all starts of the run) and the figures.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = run_dir / "metrics.jsonl"
        self.before_s = drop_after(self.path, step)
        self.file: IO[str] = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step or None)
        self.start = time.perf_counter()

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        time_s = round(self.before_s + time.perf_counter() - self.start, 3)
        line = {"kind": kind, "step": step, "time_s": time_s, **figures}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        for name, value in figures.items():
            if isinstance(value, (int, float)):
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def drop_after(path: Path, step: int) -> float:
    """Drops the lines of steps that a resumed run does again; the seconds of training so far."""
    if not path.exists():
        return 0.0
    kept, time_s = [], 0.0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the torn last line of a killed run
        if record["step"] <= step:
            kept.append(line + "\n")
            time_s = record["time_s"]
    temporary = path.with_name(".metrics.jsonl.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
    return time_s


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def amount(number: float) -> str:
    """1.23 MB, 45.6 kB."""
    return f"{number / 1e6:.2f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"


def progress_line(step: int, steps: int, figures: dict[str, Any], left_s: float) -> str:
    """One line for the terminal: what is learned, how fast, and when it ends."""
    bits, norm = figures.get("bits_per_byte"), figures["grad_norm"]
    parts = [
        f"step {step}/{steps}",
        f"loss {figures['loss']:.4f}",
        f"{bits:.3f} bits/byte" if bits is not None else None,
        f"lr {figures['lr']:.2e}",
        f"grad norm {norm:.3f}" if norm is not None else None,
        f"{amount(figures['bytes_per_s'])}/s",
        f"{figures['rows_per_s']:,.0f} rows/s",
        f"waiting for data {figures['data_wait_share']:.1%}",
        f"ETA {duration(left_s)}",
    ]
    return "  ".join(part for part in parts if part)


def eval_line(step: int | None, figures: dict[str, Any]) -> str:
    """One line for the terminal: the figures of an evaluation."""
    names = ["loss", "bits_per_byte", "material_accuracy", "micro_f1", "macro_f1", "micro_roc_auc"]
    shown = [f"{name} {figures[name]:.4f}" for name in names if figures.get(name) is not None]
    return "  ".join(["eval" if step is None else f"eval at step {step}", *shown])
