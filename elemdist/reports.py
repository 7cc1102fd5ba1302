"""What a run says of itself while it trains: lines of metrics, and evaluations."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from elemdist.config import learning_rate
from elemdist.data import Order
from elemdist.evaluate import NotFiniteError, evaluate
from elemdist.metric_writers import tell
from elemdist.metrics import eval_line, peak_memory_bytes, progress_line, step_figures
from elemdist.shuffle import digest
from elemdist.start_up import Session


def report(session: Session, norm: float) -> None:
    """A line of metrics over the steps since the last one. All ranks call it together."""
    settings, position, tally = session.settings, session.position, session.tally
    order = Order(session.plan, session.group, settings.seed)
    places = np.concatenate(order.places(position.batches - 1))
    ids = session.data.train.sample_ids(places, settings.seed)
    seconds = time.perf_counter() - tally.start
    parts = session.watch.take()
    figures = {
        **tally.figures(digest(ids), seconds, session.peak_tflops),
        "lr": learning_rate(settings.optim, settings.steps, position.step - 1),
        "grad_norm": norm,
        **step_figures(parts, session.meter.take(), tally.steps),
        "data_wait_share": parts["data"] / seconds,
        "peak_memory_bytes": peak_memory_bytes(session.ranks.device),
        "samples": position.batches * session.plan.global_samples,
    }
    if session.ranks.first:
        left_s = (settings.steps - position.step) * seconds / tally.steps
        tell(progress_line(position.step, settings.steps, figures, left_s))
        session.reporter.write("train", position.step, figures)
    tally.reset()


def evaluate_now(session: Session) -> None:
    """Figures on the held-out set, if there is one. All ranks call it together."""
    settings, data, step = session.settings, session.data, session.position.step
    if data.held_out is None:
        return

    def forward(*inputs: Any) -> Any:
        session.watchdog.beat("a batch of an evaluation")
        return session.engine(*inputs)

    session.engine.eval()
    try:
        figures = evaluate(
            forward,
            data.config,
            data.held_out,
            settings,
            session.ranks.device,
            session.plan.micro_samples,
            settings.data.eval_samples,
            session.group,
            session.plan.groups,
            session.share,
        )
        session.say(eval_line(step, figures))
    except NotFiniteError as error:  # the guard decides what becomes of the run
        figures = {"loss": None}
        session.tell("evaluation failed", f"eval at step {step}  no figures: {error}")
    session.engine.train()
    if session.ranks.first:
        shown = {name: figure for name, figure in figures.items() if name != "labels"}
        session.reporter.write("eval", step, shown)
