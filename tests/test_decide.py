"""What follows from how the attempts of a run ended."""

from __future__ import annotations

import pytest

from elemdist.errors import (
    EXIT_BUG,
    EXIT_DIVERGED,
    EXIT_LOST,
    EXIT_NOT_SAVED,
    EXIT_STALLED,
    EXIT_STOPPED,
    EXIT_SUPERSEDED,
    EXIT_USER_ERROR,
)
from launcher.decide import CANCELLED, TIME_LIMIT, End, decide
from launcher.settings import RetrySettings

KINDS = {0: "done", EXIT_LOST: "lost rank", EXIT_STALLED: "hang", EXIT_BUG: "crash"}


def end(code: int, before: int = 0, after: int = 0, step: int | None = None, **more) -> End:
    step = after if step is None else step
    facts = {"kind": KINDS.get(code, "other"), "reason": f"ended with {code}"} | more
    return End(code=code, before=before, after=after, step=step, **facts)


def action(*ends: End, **retry: float) -> str:
    return decide(ends, RetrySettings(**retry))[0]


def test_done_is_done():
    assert action(end(EXIT_LOST), end(0, 0, 60)) == "done"


@pytest.mark.parametrize(
    "code", [EXIT_USER_ERROR, EXIT_DIVERGED, EXIT_SUPERSEDED], ids=["mistake", "diverged", "fenced"]
)
def test_what_a_restart_does_not_mend_is_given_up_at_once(code):
    assert action(end(code, 0, 20)) == "give up"


@pytest.mark.parametrize("code", [EXIT_LOST, EXIT_STALLED, EXIT_NOT_SAVED, EXIT_BUG])
def test_a_failure_is_begun_again(code):
    assert action(end(code, 0, 20, 23)) == "again"


def test_asked_to_stop():
    limit = TIME_LIMIT
    assert action(end(EXIT_STOPPED, 0, 20, asked=limit)) == "queue"
    assert action(end(EXIT_STOPPED, 0, 20)) == "queue", "SLURM asked the ranks itself"
    assert action(end(EXIT_STOPPED, 0, 20, asked=CANCELLED)) == "stopped"
    assert action(end(EXIT_LOST, 0, 20, asked=CANCELLED)) == "stopped"
    assert action(end(EXIT_LOST, 0, 20, asked=limit)) == "queue", "no time for another attempt"


def test_three_attempts_without_a_new_checkpoint_are_enough():
    lost = [end(EXIT_LOST, 20, 20, step) for step in (21, 25, 23)]
    assert action(*lost[:2]) == "again"
    assert action(*lost) == "give up"
    assert action(*lost[:2], end(EXIT_LOST, 20, 40, 44)) == "again", "there was progress"
    assert action(end(EXIT_STOPPED, 20, 20), *lost[:2]) == "again", "a stop is no failure"
    assert action(*lost, without_progress=4) == "again"


def test_a_time_limit_that_leaves_no_time_for_a_step_is_not_waited_for_forever():
    limit = end(EXIT_STOPPED, 20, 20, asked=TIME_LIMIT)
    preempted = end(EXIT_STOPPED, 20, 20, asked="SIGTERM")
    assert action(limit, limit) == "queue"
    assert action(limit, preempted, limit) == "queue", "preemption does not count"
    assert action(limit, preempted, limit, limit) == "give up"
    assert action(*[preempted] * 9) == "queue"
    assert action(limit, end(EXIT_STOPPED, 20, 21, asked=TIME_LIMIT), limit, limit) == "queue"
    assert "slurm.time" in decide([limit] * 3, RetrySettings())[1]


def test_the_same_failure_at_the_same_step_twice_is_enough():
    assert action(end(EXIT_BUG, 0, 20, 23), end(EXIT_BUG, 20, 20, 23)) == "give up"
    assert action(end(EXIT_BUG, 0, 20, 23), end(EXIT_BUG, 20, 20, 24)) == "again"
    assert action(end(EXIT_BUG, 0, 20, 23), end(EXIT_STALLED, 20, 20, 23)) == "again"
    node = {"kind": "node"}
    lost = end(EXIT_LOST, 20, 20, 23, **node)
    assert action(lost, lost) == "again", "nodes may die at any step"


def test_the_number_of_failures_has_a_cap():
    ends = [end(EXIT_LOST, 10 * k, 10 * k + 10, 10 * k + 11 + k % 3) for k in range(6)]
    assert action(*ends, most=6) == "again"
    assert action(*ends, most=5) == "give up"
    assert "retry.most" in decide(ends, RetrySettings(most=5))[1]


def test_an_end_that_is_none_is_told_from_one_that_is():
    one = end(EXIT_LOST, 0, 20, 23, asked="why")
    assert End.of(vars(one) | {"time_s": 1.0}) == one
    assert End.of({}) is None
    assert End.of(vars(one) | {"step": None}) is None
