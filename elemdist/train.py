"""Training: the whole loop, from settings to checkpoints. Every rank runs this file.

elemdist train RECIPE.yaml --run-dir runs/a              starts the ranks itself
deepspeed --num_gpus 2 elemdist/train.py RECIPE.yaml --run-dir runs/a
torchrun --nproc-per-node 2 elemdist/train.py RECIPE.yaml --run-dir runs/a
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started by path: the folder of the package must not shadow the library
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from elemdist import attention, checkpoint, run_folder
from elemdist.batch_plan import BatchPlan, plan_batch
from elemdist.commandline import parse
from elemdist.config import TrainSettings, learning_rate
from elemdist.data import Batch, Order, training_steps
from elemdist.engine import (
    Ranks,
    build_engine,
    check_compile,
    join_ranks,
    on_every,
    on_first,
    optimizer_step,
    seed_everything,
    use_bf16,
)
from elemdist.errors import EXIT_USER_ERROR, UserError
from elemdist.evaluate import evaluate
from elemdist.geometry import check_geometry, config_for, label_columns
from elemdist.inputs import open_reading, some_rows
from elemdist.metrics import Reporter, eval_line, progress_line
from elemdist.model import Model
from elemdist.objectives import NATS_PER_BIT, label_loss, targets_of
from elemdist.shards import ShardSet


@dataclass
class Tally:
    """What has happened since the last line of metrics."""

    start: float
    steps: int = 0
    loss: float | Tensor = 0.0
    wait_s: float = 0.0
    bytes: int = 0
    rows: int = 0


def losses(
    engine: Any,
    batches: list[Batch],
    settings: TrainSettings,
    global_samples: int,
    dropout_seeds: list[int],
) -> Iterator[Tensor]:
    """The loss of each micro-batch, scaled so that their gradients add up to that of the global
    batch: the sum over all its bytes (or samples) divided by their number on all ranks."""
    config = engine.module.config
    classify = config.objective == "classify"
    rate = settings.classify.mask_rate if classify else settings.mlm.mask_rate
    # All targets come first: they are cheap, and must be counted before the first backward pass.
    targets = [targets_of(batch, config, rate, settings.seed) for batch in batches]
    if classify:
        for batch, target, seed in zip(batches, targets, dropout_seeds, strict=True):
            torch.manual_seed(seed)
            logits_SL = engine(target.rows_TV, batch.position_T, batch.segments)
            assert batch.labels_BL is not None
            loss = label_loss(logits_SL, batch.labels_BL[batch.sample_S])
            yield loss / global_samples
        return
    # An all-reduce of one number a step keeps the result independent of how the global batch is
    # cut into ranks and micro-batches.
    text_bytes = (
        torch.stack([target.text_bytes for target in targets])
        .sum()
        .to(engine.device, torch.float64)
    )
    dist.all_reduce(text_bytes)
    for batch, target, seed in zip(batches, targets, dropout_seeds, strict=True):
        torch.manual_seed(seed)
        place = (batch.position_T, batch.segments)
        nats_M, _ = engine(target.rows_TV, *place, target.select_M, target.target_MV)
        yield nats_M.sum() / text_bytes.clamp(min=1).float()


def train_step(
    engine: Any, batches: list[Batch], settings: TrainSettings, plan: BatchPlan, step: int
) -> tuple[Tensor, Any]:
    """One optimizer step over the micro-batches of this rank: (its share of the global loss, the
    norm of the whole gradient)."""
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate(settings.optim, settings.steps, step)
    world_size, group = dist.get_world_size(), dist.get_rank() // plan.sequence_parallel
    # Dropout hangs on the step and the samples, so that the number of ranks, and a resume, change
    # nothing as long as the passes hold the same samples.
    seeds = [
        settings.seed * 1_000_003 + step * plan.micro_batches + plan.micro_batch(group, number)
        for number in range(plan.passes)
    ]
    total = torch.zeros((), device=engine.device)
    norm = None
    for loss in losses(engine, batches, settings, plan.global_samples, seeds):
        # DeepSpeed takes the mean over ranks and micro-batches; ours is a sum.
        engine.backward(loss * (world_size * len(batches)))
        norm = optimizer_step(engine)
        total += loss.detach()
    return total, norm


class Run:
    """One start of a run on this rank."""

    def __init__(self, settings: TrainSettings, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        on_every(self.open_shards)
        sample_bytes = self.shards.n * self.shards.v
        self.plan = plan_batch(settings.batch, sample_bytes, ranks.world_size)
        self.reading = open_reading(self.config)
        self.bf16 = use_bf16(settings, ranks.device)
        shape = self.config.to_json()
        del shape["model"]["tokenizer"]  # the shards say which one it is, wherever it lies
        self.facts = {
            **shape,
            "data": self.shards.fingerprint,
            "ranks": ranks.world_size,
            "zero_stage": settings.zero.stage,
            "bf16": self.bf16,
            "global_samples": self.plan.global_samples,
            "seed": settings.seed,
        }
        seed_everything(settings.seed, settings.deterministic)
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self.attention = attention.choose(settings.attention, ranks.device, dtype)
        self.model = Model(self.config, settings.memory)
        if settings.compile:
            check_compile(settings.zero.stage, ranks.device)
            self.model.compile_blocks()
        if self.config.labels:
            self.model.expect_labels(torch.tensor(self.shards.label_shares()))
        else:
            self.model.expect_elements(some_rows(self.shards, self.reading))
        self.parameters = sum(p.numel() for p in self.model.parameters())
        if settings.init_from:
            self.say(checkpoint.initialise_from(self.model, settings.init_from))
        self.folder = on_first(lambda: run_folder.prepare(settings))
        self.engine = build_engine(self.model, settings, self.plan, ranks)
        self.first_step = 0
        if settings.resume:
            self.first_step = checkpoint.resume(self.engine, ranks, self.folder, self.facts)
            self.say(f"resumed after step {self.first_step}")
        if ranks.first:
            run_folder.describe(self.folder, settings, self.facts)
            self.reporter = Reporter(self.folder, self.first_step)

    def open_shards(self) -> None:
        """Opens the shards of both sets and checks that the model can be trained on them."""
        data = self.settings.data
        self.shards = ShardSet(data.train or "")
        self.eval_shards = ShardSet(data.eval) if data.eval else None
        self.config = config_for(self.settings, self.shards)
        if self.eval_shards is not None:
            check_geometry(self.config, self.eval_shards)
            if self.config.labels is not None:
                label_columns(self.config.labels, self.eval_shards)
        for shards in (self.shards, self.eval_shards):
            if shards is not None and data.verify:
                shards.verify(self.ranks.rank, self.ranks.world_size)

    def say(self, line: str) -> None:
        if self.ranks.first:
            print(line, flush=True)

    def introduce(self) -> None:
        """Says what is trained, on what, and how the global batch comes about."""
        model, shards = self.config.model, self.shards
        epochs = self.settings.steps * self.plan.global_samples / shards.samples
        embedding = sum(p.numel() for p in self.model.encoder.embedding.parameters())
        for line in (
            f"{model.backbone}, {model.input} input, {self.config.objective}:"
            f" {self.parameters:,} parameters ({embedding:,} of the embedding),"
            f" {shards.samples:,} samples of {shards.n} rows of {shards.v} bytes",
            f"{self.plan.chain(shards.n * shards.v)};"
            f" {self.settings.steps} steps = {epochs:.2f} epochs",
            f"ZeRO {self.settings.zero.stage}, {'bf16' if self.bf16 else 'fp32'},"
            f" {self.ranks.device.type}, attention: {self.attention}",
        ):
            self.say(line)

    def evaluate(self, step: int) -> None:
        if self.eval_shards is None:
            return
        self.engine.eval()
        figures = evaluate(
            self.engine,
            self.config,
            self.eval_shards,
            self.settings,
            self.ranks.device,
            self.plan.micro_samples,
            self.settings.data.eval_samples,
            self.ranks.rank,
            self.ranks.world_size,
        )
        self.engine.train()
        self.say(eval_line(step, figures))
        if self.ranks.first:
            self.reporter.write("eval", step, {k: x for k, x in figures.items() if k != "labels"})

    def report(self, step: int, norm: Any, tally: Tally) -> None:
        """A line of metrics over the steps since the last one. All ranks call it together."""
        amounts = torch.tensor(
            [float(tally.bytes), float(tally.rows), float(tally.loss) / tally.steps],
            dtype=torch.float64,
            device=self.ranks.device,
        )
        dist.all_reduce(amounts)
        text_bytes, rows, loss = amounts.tolist()
        seconds = time.perf_counter() - tally.start
        figures = {"loss": loss}
        if self.settings.objective != "classify":
            figures["bits_per_byte"] = loss / NATS_PER_BIT
        figures |= {
            "lr": learning_rate(self.settings.optim, self.settings.steps, step - 1),
            "grad_norm": None if norm is None else float(norm),
            "bytes_per_s": text_bytes / seconds,
            "rows_per_s": rows / seconds,
            "data_wait_share": tally.wait_s / seconds,
            "samples": step * self.plan.global_samples,
        }
        if self.ranks.first:
            left_s = (self.settings.steps - step) * seconds / tally.steps
            print(progress_line(step, self.settings.steps, figures, left_s), flush=True)
            self.reporter.write("train", step, figures)

    def train(self) -> None:
        """From the first step to the last, with metrics, evaluations and checkpoints."""
        settings = self.settings
        last = min(settings.stop_step or settings.steps, settings.steps)
        self.introduce()
        order = Order(self.plan, self.ranks.rank, settings.seed)
        numbers = range(self.first_step, last)
        steps = iter(training_steps(self.shards, order, numbers, reading=self.reading))
        tally = Tally(time.perf_counter())
        for step in range(self.first_step + 1, last + 1):
            before = time.perf_counter()
            batches = [batch.to(self.ranks.device) for batch in next(steps)]
            tally.wait_s += time.perf_counter() - before
            loss, norm = train_step(self.engine, batches, settings, self.plan, step - 1)
            tally.steps += 1
            tally.loss += loss
            tally.bytes += sum(batch.text_bytes for batch in batches)
            tally.rows += sum(len(batch.rows_TV) for batch in batches)
            if step % settings.log_every == 0 or step == last:
                self.report(step, norm, tally)
                tally = Tally(time.perf_counter())
            before = time.perf_counter()
            if is_due(step, settings.eval_every, last):
                self.evaluate(step)
            if is_due(step, settings.checkpoint_every, last):
                checkpoint.save(self.engine, self.ranks, settings, step, self.facts)
            tally.start += time.perf_counter() - before
        if self.ranks.first:
            self.reporter.close()
        self.say(f"done: {last} of {settings.steps} steps, run folder {self.folder}")


def is_due(step: int, every: int, last: int) -> bool:
    return step == last or bool(every and step % every == 0)


def run(settings: TrainSettings) -> int:
    """Trains on this rank; the exit code."""
    settings.check()
    ranks = join_ranks(settings)
    try:
        Run(settings, ranks).train()
    finally:
        dist.destroy_process_group()
    return 0


def main(argv: list[str]) -> int:
    """A rank's entry: the same arguments as ``elemdist train``. A user's mistake gives 2."""
    # deepspeed's launcher adds --local_rank; the environment says it too.
    argv = [word for word in argv if not word.startswith("--local_rank=")]
    try:
        return run(parse(TrainSettings, argv, "elemdist train"))
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"elemdist train: error: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
