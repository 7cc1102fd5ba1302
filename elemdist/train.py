"""Training: the whole loop, from settings to checkpoints. Every rank runs this file.

elemdist train RECIPE.yaml --run-dir runs/a              starts the ranks itself
deepspeed --num_gpus 2 elemdist/train.py RECIPE.yaml --run-dir runs/a
torchrun --nproc-per-node 2 elemdist/train.py RECIPE.yaml --run-dir runs/a

Before each step the ranks agree, in one all-reduce, on what is common to them: the bytes of the
global batch, a wish to stop, data that cannot be had. So they all do the same, and end together.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started by path: the folder of the package must not shadow the library
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial

from elemdist.deepspeed_import import no_collection

with no_collection():
    import torch
    import torch.distributed as dist

from elemdist import checkpoint
from elemdist.attempts import VARIABLE
from elemdist.batch import Batch
from elemdist.commandline import parse
from elemdist.communication import Meter
from elemdist.config import TrainSettings, learning_rate
from elemdist.data import Order, training_steps
from elemdist.engine import Ranks, join_ranks, on_every
from elemdist.errors import (
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    AgreedError,
    Diverged,
    NotSaved,
    RankError,
    Stopped,
    Superseded,
    UserError,
)
from elemdist.evaluate import gather_ranks
from elemdist.output import use_utf8
from elemdist.passes import Pass, passes_of
from elemdist.refit import refit
from elemdist.reports import evaluate_now, report
from elemdist.sequence_parallel import once
from elemdist.slurm_ranks import speaks_for_all
from elemdist.start_up import Session
from elemdist.step import train_step
from elemdist.stop import StopRequest, end_process, how_it_ended, write_end
from elemdist.train_arguments import understood
from elemdist.units import counted
from elemdist.watchdog import Watchdog


@dataclass(frozen=True)
class Agreed:
    """Sums over all ranks. `whole` is what the loss of the global batch is divided by: bytes of
    text to predict, or samples; `empty` says that there are none. The others tell whether any rank
    says so."""

    whole: float
    empty: bool
    stop: bool
    failed: bool
    save: bool
    superseded: bool


class Run:
    """One start of a run on this rank: the loop."""

    def __init__(self, settings: TrainSettings, ranks: Ranks, session: Session) -> None:
        self.settings, self.ranks, self.session = settings, ranks, session
        self.config = session.data.config
        self.last = min(settings.stop_step or settings.steps, settings.steps)
        self.norm = 0.0

    def loader(self) -> Iterator[list[Batch]]:
        """The batches of this rank's group from the position on, one list a step."""
        session, position = self.session, self.session.position
        order = Order(session.plan, session.group, self.settings.seed)
        numbers = range(position.batches, position.batches + self.last - position.step)
        return training_steps(session.data.train, order, numbers, reading=session.reading)

    def passes(self, batches: list[Batch], number: int) -> list[Pass]:
        """This rank's passes of the global batch `number` of the order."""
        session, device = self.session, self.ranks.device
        place = (number, session.plan, session.group, session.share)
        return list(passes_of(batches, *place, self.config, self.settings, device))

    def agree(self, passes: list[Pass]) -> Agreed:
        """What all ranks know before the step; `passes`: this rank's, none where it failed."""
        session, minutes = self.session, self.settings.checkpoint_every_minutes
        due = minutes and time.monotonic() - session.saved_at >= 60 * minutes
        session.stop.look()
        said = [
            session.stop.reason is not None,
            not passes,
            self.ranks.first and due,
            session.stop.superseded,
        ]
        sums = torch.tensor([0.0, *said], dtype=torch.float64).to(self.ranks.device)
        if passes:
            sums[0] = once(torch.stack([one.text_bytes for one in passes]).sum(), session.share)
        dist.all_reduce(sums)
        whole, *told = sums.tolist()
        if self.config.objective == "classify":
            whole = session.plan.global_samples
        return Agreed(max(1.0, whole), not whole, *(count > 0 for count in told))

    def steps(self) -> Iterator[Agreed]:
        """Trains, and hands over after each step, until the last one or a rollback.

        Raises:
            EarlyEnd: the ranks were asked to stop, or the guard ends the run. UserError: data that
                cannot be had, on all ranks. What was done is saved before.
        """
        session, settings, position = self.session, self.settings, self.session.position
        with closing(self.loader()) as loader:  # type: ignore[type-var]
            while position.step < self.last:
                passes: list[Pass] = []
                flaw = None
                with session.watch("data"):
                    try:
                        passes = self.passes(next(loader), position.batches)
                    except UserError as error:
                        flaw = error
                with session.watch("agree"):  # and wait for the slowest rank
                    agreed = self.agree(passes)
                if agreed.superseded:
                    raise Superseded(session.attempt.told())
                if agreed.failed:
                    session.save()
                    session.finish_saving()
                    on_every(partial(raise_error, flaw))
                if agreed.stop:
                    self.stop_here()
                rate = learning_rate(settings.optim, settings.steps, position.step)
                self.norm, verdict = train_step(session.engine, passes, agreed.whole, rate, session)
                session.trace.step()
                session.tally.end_step(verdict.action != "go on", agreed.empty)
                if verdict.message:
                    session.tell("bad step", f"step {position.step + 1}: {verdict.message}")
                if verdict.action == "stop":
                    session.save()
                    problem = session.finish_saving()
                    raise Diverged("; ".join(filter(None, [verdict.message, problem])))
                if verdict.action == "rollback":
                    self.roll_back()
                    return
                position.step += 1
                position.batches += 1
                yield agreed

    def stop_here(self) -> None:
        """Saves and ends, as the ranks were asked to."""
        why = next(filter(None, gather_ranks(self.session.stop.reason)))
        told = f"stopped by {why} after step {self.session.position.step}"
        self.session.save()
        if (problem := self.session.finish_saving()) is not None:
            raise NotSaved(f"{told}, but {problem}")
        raise Stopped(f"{told}; the same command with --resume goes on")

    def roll_back(self) -> None:
        """Goes back to the newest checkpoint; the order of the data goes on."""
        session, behind = self.session, self.session.position.batches + 1
        session.finish_saving()
        found = checkpoint.open_for_resume(session.folder, session.facts)
        if found is None:
            raise Diverged("there is no checkpoint to go back to")
        session.go_to(found)
        session.position.batches = behind
        session.begin_interval()
        if self.ranks.first:
            session.reporter.rewind(found.step)

    def after_step(self, agreed: Agreed) -> None:
        """What is due behind a step: metrics, an evaluation, a checkpoint."""
        settings, step = self.settings, self.session.position.step
        evaluates = is_due(step, settings.eval_every, self.last)
        saves = is_due(step, settings.checkpoint_every, self.last) or agreed.save
        if evaluates or saves or step % settings.log_every == 0:
            report(self.session, self.norm)
        if step == settings.steps and settings.classify.refit:
            self.session.tell("refit", refit(self.session))
        if evaluates:
            evaluate_now(self.session)
        if saves:
            self.session.save()
        if evaluates or saves:
            self.session.begin_interval()  # neither counts as training

    def train(self) -> None:
        """From the first step to the last, with metrics, evaluations and checkpoints.

        Raises:
            EarlyEnd, UserError: see steps(); UserError, too, where the last checkpoint could not
                be written.
        """
        session = self.session
        session.introduce()
        if self.settings.guard.bad_step == "rollback" and session.saved_step is None:
            session.save()  # so that there is always one to go back to
        session.begin_interval()
        while session.position.step < self.last:  # a rollback begins it again
            for agreed in self.steps():
                self.after_step(agreed)
        if (problem := session.finish_saving()) is not None:
            raise AgreedError(problem)
        steps = counted(self.settings.steps, "step")
        session.say(f"done: {self.last:,} of {steps}, run folder {session.folder}")


def raise_error(error: UserError | None) -> None:
    """Raises it, if there is one."""
    if error is not None:
        raise error


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something is due that comes every so many steps (0: never), and behind the last."""
    return step == last or bool(every and step % every == 0)


def run(settings: TrainSettings) -> int:
    """Trains on this rank; the exit code. The run folder says how it ended."""
    settings.check()
    ranks, session = join_ranks(settings), None
    code, line, together = 0, "", True

    def note(reason: str, code: int) -> None:
        step, steps = (session.position.step, settings.steps) if session else (0, 1)
        states = {0: "done" if step == steps else "stopped", EXIT_STOPPED: "stopped"}
        # The newest attempt alone says how the run stands.
        if ranks.first and session is not None and not session.attempt.superseded():
            with suppress(OSError):
                state, number = states.get(code, "failed"), session.attempt.number
                write_end(session.folder, state, step, reason, code, number)

    guard = settings.guard
    watchdog = Watchdog(settings.run_dir or "", ranks.rank, guard.stall_s, note, guard.stall_steps)
    try:
        with StopRequest() as stop, watchdog, Meter(ranks.device) as meter:
            with watchdog.paused("the start"):
                session = Session(settings, ranks, stop, watchdog, meter)
            Run(settings, ranks, session).train()
    except BaseException as error:
        code, line, together = how_it_ended(error)
    note(line, code)
    if session is not None and together:
        session.close()
    if line and (ranks.first or not together):
        rank = "" if together else f"rank {ranks.rank}: "
        with suppress(OSError):  # a log file on a full disk
            print(f"elemdist train: {rank}{line}", file=sys.stderr, flush=True)
    if together:
        dist.destroy_process_group()
        return code
    end_process(code)  # the others may never answer again, whatever an orderly end asks of them


def say_once(line: str, own: bool = False) -> None:
    """Print a line before the ranks have met, by one of them, unless it is this rank's `own`."""
    if own or speaks_for_all():
        print(f"elemdist train: {line}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """A rank's entry: the same arguments as ``elemdist train``; the exit code."""
    use_utf8()
    try:
        code = run(parse(TrainSettings, understood(argv, say_once), "elemdist train"))
        # srun would end the others at the first that fails; its launcher reads RUN/end.json.
        launched = VARIABLE in os.environ and "SLURM_STEP_ID" in os.environ
        return 0 if launched and code == EXIT_STOPPED else code
    except UserError as error:  # before the ranks have met, on each of them
        say_once(f"error: {error}", isinstance(error, RankError))
        return EXIT_USER_ERROR


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
