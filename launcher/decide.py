"""What follows from the end of an attempt: done, again, back into the queue, or give up.

A restart helps against what has nothing to do with the run: a node, a network, another job's
priority. It does not help against a mistake, and not against what happens again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from elemdist.errors import (
    EXIT_BUG,
    EXIT_DIVERGED,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    EXIT_SUPERSEDED,
    EXIT_USER_ERROR,
)
from elemdist.units import counted
from launcher.settings import RetrySettings

Next = Literal["done", "stopped", "again", "queue", "give up"]
HOPELESS = {EXIT_USER_ERROR, EXIT_DIVERGED, EXIT_SUPERSEDED, EXIT_INTERRUPTED}


@dataclass(frozen=True)
class End:
    """How an attempt ended.

    Attributes:
        code: exit code of the ranks, see elemdist/errors.py; 0 only where the run is done.
        kind: of failure, one word or two: what counts as "the same" when it comes again.
        reason: one line for the user.
        before, after: step of the newest checkpoint at its begin and at its end.
        step: the last step that it is known to have done.
        asked: why it was asked to stop, None where it was not.
    """

    code: int
    kind: str
    reason: str
    before: int
    after: int
    step: int
    asked: str | None = None

    @classmethod
    def of(cls, facts: dict[str, Any]) -> End | None:
        """Out of an attempt's end.json; None where that says none."""
        try:
            return cls(
                int(facts["code"]), str(facts["kind"]), str(facts["reason"]), int(facts["before"]),
                int(facts["after"]), int(facts["step"]), facts.get("asked"),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, OverflowError):
            return None


def is_failure(end: End) -> bool:
    """Whether an attempt ended in another way than done or stopped on request."""
    return end.code not in (0, EXIT_STOPPED)


def decide(ends: Sequence[End], retry: RetrySettings) -> tuple[Next, str]:
    """What to do after the last of `ends`, and why, in one line.

    `ends`: of all attempts of the run, the oldest first.
    """
    last = ends[-1]
    if last.code == 0:
        return "done", "done"
    if last.code == EXIT_STOPPED:
        if last.asked == CANCELLED:
            return "stopped", "cancelled, with a checkpoint"
        if (count := without_progress(ends)) >= retry.without_progress:
            jobs = counted(count, "job")
            return "give up", f"{jobs} in a row had no time for a step (slurm.time)"
        return "queue", last.reason
    if last.asked == CANCELLED:
        return "stopped", f"cancelled, without a checkpoint: {last.reason}"
    if last.code in HOPELESS:
        return "give up", last.reason
    failures = [end for end in ends if is_failure(end)]
    if len(failures) > retry.most:
        most = counted(retry.most, "attempt")
        return "give up", f"more than {most} failed (retry.most): {last.reason}"
    if (count := without_progress(ends)) >= retry.without_progress:
        tries = counted(count, "attempt")
        return "give up", f"{tries} in a row brought no new checkpoint: {last.reason}"
    if len(ends) > 1 and is_same(ends[-2], last):
        return "give up", f"the same failure at step {last.step + 1} twice: {last.reason}"
    if last.asked is not None:
        return "queue", last.reason
    return "again", last.reason


CANCELLED = "elemdist cancel"
TIME_LIMIT = "the time limit of the job"


def without_progress(ends: Sequence[End]) -> int:
    """How many of the last attempts in a row failed, or came to their time limit, and brought no
    new checkpoint. Those that were preempted or requeued do not count."""
    count = 0
    for end in reversed(ends):
        if end.after > end.before:
            break
        count += is_failure(end) or end.asked == TIME_LIMIT
    return count


def is_same(before: End, last: End) -> bool:
    """Whether an attempt failed as the one before it did, and in the same step: what comes of the
    run itself. What comes of a node may strike at any step."""
    if not is_failure(before) or last.kind == "node":
        return False
    same = (before.code, before.kind, before.step) == (last.code, last.kind, last.step)
    return same and (last.code == EXIT_BUG or last.step > 0)
