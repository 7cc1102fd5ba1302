"""`--profile`: a trace of a few steps in the run folder, for Perfetto or chrome://tracing.

RUN/trace-rank-0.json.gz holds what torch's profiler saw of three steps of training, with the parts
of a step (see elemdist/timing.py) as labels. Loading a trace runs no code: it is JSON.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from elemdist.metric_writers import first_line, tell
from elemdist.timing import Stopwatch
from elemdist.units import counted

PASSED_STEPS = 5  # allocators, kernels and caches settle; the profiler itself starts in the last
TRACED_STEPS = 3


class Trace:
    """Records some steps of one rank and writes them; does nothing where it is off.

    Args:
        folder: of the run. rank: this process. on: whether to record at all.
        watch: of the training loop; its parts become the labels.

    ``step()`` goes behind every optimizer step, ``close()`` behind the last.
    """

    def __init__(self, folder: Path, rank: int, on: bool, watch: Stopwatch) -> None:
        self.path = folder / f"trace-rank-{rank}.json.gz"
        self.watch = watch
        self.steps = 0
        self.profiler: profile | None = None
        if not on:
            return
        activities = [ProfilerActivity.CPU]
        if watch.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.profiler = profile(
            activities=activities,
            schedule=schedule(wait=PASSED_STEPS - 1, warmup=1, active=TRACED_STEPS, repeat=1),
            on_trace_ready=self.write,
        )
        self.profiler.start()

    def step(self) -> None:
        """One step of training is done."""
        if self.profiler is None:
            return
        self.steps += 1
        self.profiler.step()
        self.watch.labelled = PASSED_STEPS <= self.steps < PASSED_STEPS + TRACED_STEPS
        if self.steps == PASSED_STEPS + TRACED_STEPS:
            self.close()

    def write(self, profiler: profile) -> None:
        """Writes the trace under its name once it is complete; a full disk costs the trace, not
        the run."""
        if self.steps <= PASSED_STEPS:
            return  # stopped before the first step of the trace
        try:
            # A folder, as torch leaves a file of its own there where it fails.
            with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".trace-") as folder:
                plain, packed = Path(folder, "trace.json"), Path(folder, "trace.json.gz")
                profiler.export_chrome_trace(str(plain))
                # Torch gives it this name once it is whole, and raises nothing where it is not.
                if not plain.exists():
                    raise OSError(f"{self.path.parent} did not take it whole")
                with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=5) as target:
                    shutil.copyfileobj(source, target)
                packed.replace(self.path)
            tell(f"profile: {self.path}, for Perfetto")
        except (OSError, RuntimeError) as error:  # the second by torch
            tell(f"profile: no trace, {first_line(error)}; training goes on without it")

    def close(self) -> None:
        """Ends the recording. A run that ends within the steps of the trace gives what there is."""
        profiler, self.profiler = self.profiler, None
        if profiler is None:
            return
        self.watch.labelled = False
        profiler.stop()
        if self.steps <= PASSED_STEPS:
            tell(
                f"profile: no trace, as this start had {counted(self.steps, 'step')}; it begins"
                f" behind {PASSED_STEPS}"
            )
