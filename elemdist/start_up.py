"""From settings to a run that is ready to train: its data, model, engine and checkpoints, and its
place in the run folder."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elemdist import attention, checkpoint, run_folder
from elemdist.attempts import Attempt
from elemdist.auto_micro_batch import find_micro_samples
from elemdist.batch import Reading
from elemdist.batch_plan import BatchPlan, plan_batch
from elemdist.checkpoint import Checkpoint
from elemdist.checkpoint_writer import Writer
from elemdist.communication import Meter
from elemdist.config import TrainSettings
from elemdist.deepspeed_config import deepspeed_config
from elemdist.engine import (
    Ranks,
    build_engine,
    check_compile,
    on_every,
    on_first,
    seed_everything,
    use_bf16,
)
from elemdist.errors import Superseded, UserError
from elemdist.flops import stated_tflops
from elemdist.guard import Guard
from elemdist.inputs import MORE, open_reading, some_documents, some_rows
from elemdist.metric_writers import tell
from elemdist.metrics import Reporter
from elemdist.model import Model
from elemdist.run_data import Data, facts_of, open_data
from elemdist.run_folder import public_settings
from elemdist.sequence_parallel import open_groups
from elemdist.stop import StopRequest
from elemdist.tally import Tally
from elemdist.timing import Stopwatch
from elemdist.trace import Trace
from elemdist.units import counted
from elemdist.watchdog import Watchdog


@dataclass
class Position:
    """How far a run is: steps done, and global batches of the order taken or passed over; a
    rollback goes back in the first only."""

    step: int = 0
    batches: int = 0


def build_model(
    settings: TrainSettings, data: Data, reading: Reading | None, start: Checkpoint | None
) -> tuple[Model, str | None]:
    """The model with its first weights, on the CPU: those of the checkpoint `start`, else of
    init_from, else random ones; and a line that says whose they are."""
    model = Model(data.config, settings.memory)
    if start is not None:
        start.load_weights(model)
        return model, None
    if data.config.labels:
        model.expect_labels(torch.tensor(data.train.label_shares()))
    else:
        model.expect_elements(some_rows(data.train, reading))
    if settings.model.ablation.mixing and not settings.init_from:
        model.expect_materials(some_rows(data.train, reading, MORE))
    line = checkpoint.initialise_from(model, settings.init_from) if settings.init_from else None
    if data.config.wide:
        model.expect_documents(some_documents(data.train, reading))
    return model, line


class Session:
    """All that the loop of a run works with, on this rank. All ranks make one together.

    Attributes:
        group: number of this rank's group among those that share sequences. share: its part in it.
        position: how far the run is. saved_step: of the newest checkpoint, None without one;
            saved_at: when it was written, or the run began (monotonic seconds).
        problem: why the newest checkpoint could not be written, None where it could.
        peak_tflops: of a device, None where it is not known.

    Raises:
        UserError: the settings, the data, the machine or the run folder do not allow the run.
    """

    def __init__(
        self,
        settings: TrainSettings,
        ranks: Ranks,
        stop: StopRequest,
        watchdog: Watchdog,
        meter: Meter,
    ) -> None:
        # No collection of garbage goes over modules, the model and the engine, which stay: it would
        # halt a step for 0.2 s.
        gc.freeze()
        self.settings, self.ranks = settings, ranks
        self.stop, self.watchdog, self.meter = stop, watchdog, meter
        self.data = open_data(settings, ranks)
        self.reading = on_every(lambda: open_reading(self.data.config))
        self.bf16 = use_bf16(settings, ranks.device)
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self.attention = on_every(lambda: attention.choose(settings.attention, ranks.device, dtype))
        if settings.compile:
            on_every(lambda: check_compile(settings.zero.stage, ranks.device))
        self.plan = on_every(self.plan_batch)
        self.group = ranks.rank // settings.sequence_parallel
        self.share = open_groups(settings.sequence_parallel)
        if settings.auto_micro_batch:
            settings.batch.micro_samples = find_micro_samples(
                settings, self.data.config, ranks, self.share
            )
            self.plan = self.plan_batch()
        self.facts = facts_of(settings, self.data, self.plan, self.bf16)
        self.folder: Path = on_first(lambda: run_folder.prepare(settings))
        self.attempt = self.begin_attempt()
        self.writer = Writer(
            self.folder,
            ranks,
            settings.keep_last,
            settings.keep_every,
            settings.checkpoint_in_background,
            self.attempt,
        )
        # After the writer, which sees to it that no older attempt publishes another.
        resumes = settings.resume
        found = checkpoint.open_for_resume(self.folder, self.facts) if resumes else None
        self.build(found)
        self.watch = Stopwatch(ranks.device)
        self.trace = Trace(self.folder, ranks.rank, settings.profile and ranks.first, self.watch)
        self.tally = Tally(self.data.config, self.data.train.names, self.share, ranks.device)
        name = torch.cuda.get_device_name() if ranks.device.type == "cuda" else ""
        stated = stated_tflops(name, "bf16" if self.bf16 else "fp32")
        self.peak_tflops = settings.peak_tflops or stated
        self.open_folder()
        gc.collect()
        gc.freeze()
        self.saved_at = time.monotonic()

    def begin_attempt(self) -> Attempt:
        """Takes the run for this start; see attempts.py. Raises Superseded, on all ranks."""

        def work() -> tuple[int, str | None]:
            try:
                return Attempt.of_ranks(self.folder).number, None
            except Superseded as error:
                return 0, str(error)

        number, superseded = on_first(work)
        if superseded is not None:
            raise Superseded(superseded)
        attempt = Attempt(self.folder, number)
        self.watchdog.attempt = attempt
        if self.ranks.first:
            self.stop.attempt = attempt
        return attempt

    def plan_batch(self) -> BatchPlan:
        """How the ranks share a step. Raises UserError where they cannot."""
        settings = self.settings
        return plan_batch(
            settings.batch,
            self.data.sample_bytes,
            self.ranks.world_size,
            settings.sequence_parallel,
        )

    def build(self, found: Checkpoint | None) -> None:
        """Model, engine and guard, as `found` has them or as a run begins."""
        settings = self.settings
        seed_everything(settings.seed, settings.deterministic)
        model, line = on_every(lambda: build_model(settings, self.data, self.reading, found))
        if line is not None:
            self.say(line)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.embedding_parameters = sum(p.numel() for p in model.encoder.embedding.parameters())
        if settings.compile:
            model.compile_blocks()
        self.engine = build_engine(model, settings, self.plan, self.ranks)
        self.guard = Guard(settings.guard)
        self.position = Position()
        self.saved_step: int | None = None
        self.problem: str | None = None
        if found is not None:
            self.go_to(found)

    def go_to(self, found: Checkpoint) -> None:
        """Puts engine, guard and position where a checkpoint has them."""
        batches, guard = found.state.get("batches"), found.state.get("guard")
        if type(batches) is not int or batches < found.step or not isinstance(guard, dict):
            raise UserError(f"checkpoint {found.path}: its state is not that of a run")
        checkpoint.restore(self.engine, found)
        self.guard.load_state(guard)
        self.position = Position(found.step, batches)
        self.saved_step = found.step

    def save(self) -> None:
        """Writes a checkpoint, or begins to, unless there is one of this very step."""
        position = self.position
        if position.step == self.saved_step:
            return
        start = time.perf_counter()
        state = {"batches": position.batches, "guard": self.guard.state()}
        with self.watchdog.paused("saving a checkpoint"):
            self.note(self.writer.finish())
            settings = public_settings(self.settings)
            problem = self.writer.save(self.engine, position.step, state, self.facts, settings)
        self.saved_at = time.monotonic()
        self.saved_step, self.problem = position.step, None
        self.note(problem)
        if problem is None:
            self.guard.checkpoint_saved()
            self.event("checkpoint", stall_s=time.perf_counter() - start)

    def note(self, problem: str | None) -> None:
        """Says why the newest checkpoint could not be written, if so; then it does not count."""
        if problem is not None:
            self.saved_step, self.problem = None, problem
            self.tell("not saved", problem)

    def finish_saving(self) -> str | None:
        """Waits for a checkpoint on its way; why the newest could not be written, or None."""
        with self.watchdog.paused("the end of a checkpoint's writing"):
            self.note(self.writer.finish())
        return self.problem

    def open_folder(self) -> None:
        """Rank 0 writes down what the run is, and opens its metrics."""

        def work() -> str:
            differing = run_folder.changes(self.folder, self.settings)
            config = deepspeed_config(self.settings, self.plan, self.ranks)
            place = (self.position.step, self.attempt.number)
            run_folder.describe(self.folder, self.settings, self.facts, config, *place)
            step, project = self.position.step, self.settings.wandb
            self.reporter = Reporter(self.folder, step, project, self.attempt)
            return ", ".join(differing)

        differing = on_first(work)
        if self.settings.resume:
            other = f"; settings that differ from before: {differing}" if differing else ""
            self.tell("resumed", f"resumed after step {self.position.step}{other}")

    def say(self, line: str) -> None:
        """A line on the terminal, by rank 0."""
        if self.ranks.first:
            tell(line)

    def tell(self, event: str, line: str) -> None:
        """An event, on the terminal and in the metrics."""
        self.say(line)
        self.event(event, line=line)

    def event(self, event: str, **figures: Any) -> None:
        """An event, in the metrics."""
        if self.ranks.first:
            self.reporter.event(self.position.step, event, **figures)

    def begin_interval(self) -> None:
        """What the next line of metrics is about begins here."""
        self.watch.take()
        self.meter.take()
        self.tally.reset()

    def close(self) -> None:
        """Writes out what is still held back."""
        self.trace.close()
        if self.ranks.first:
            self.reporter.close()

    def introduce(self) -> None:
        """Says what is trained, on what, and how the global batch comes about."""
        model, train, settings = self.data.config.model, self.data.train, self.settings
        epochs = settings.steps * self.plan.global_samples / train.epoch_samples
        peak = f"MFU of {self.peak_tflops:g} TFLOPS a device" if self.peak_tflops else "no MFU"
        self.say(
            f"{model.backbone}, {model.input} input, {self.data.config.objective}:"
            f" {self.parameters:,} parameters ({self.embedding_parameters:,} of the embedding),"
            f" {counted(train.samples, 'sample')} of {counted(train.n, 'row')} of"
            f" {counted(train.v, 'byte')}"
        )
        if len(train.sets) > 1:
            self.say(train.describe())
        self.say(
            f"{self.plan.chain(self.data.sample_bytes)};"
            f" {counted(settings.steps, 'step')} = {epochs:.2f} epochs"
        )
        if settings.optim.warmup > settings.steps:  # by default, or in a trial
            self.say(
                f"the warm-up of {settings.optim.warmup} steps is longer than the run, so the"
                f" learning rate only rises; --optim.warmup-steps {settings.steps // 10} would do"
            )
        self.say(
            f"ZeRO {settings.zero.stage}, {'bf16' if self.bf16 else 'fp32'},"
            f" {self.ranks.device.type}, attention: {self.attention}, {peak}"
        )
