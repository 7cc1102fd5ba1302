"""What the end of an attempt's ranks means, out of run folder, exit code and nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from elemdist.attempts import Attempt
from elemdist.errors import (
    EXIT_DIVERGED,
    EXIT_INTERRUPTED,
    EXIT_LOST,
    EXIT_NOT_SAVED,
    EXIT_STALLED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
)
from elemdist.stop import read_end
from launcher.decide import CANCELLED, End
from launcher.history import in_short, last_error
from launcher.progress import newest_step, steps_done

KINDS = {
    EXIT_USER_ERROR: "mistake",
    EXIT_LOST: "lost rank",
    EXIT_STALLED: "hang",
    EXIT_DIVERGED: "diverged",
    EXIT_NOT_SAVED: "not saved",
}


def judge(
    attempt: Attempt,
    code: int,
    before: int,
    forced: bool,
    lost_nodes: Callable[[bool], dict[str, str]],
) -> End:
    """How the attempt ended.

    Args:
        code: exit code of what started the ranks, which may hide theirs. before: step of the
            newest checkpoint at the begin. forced: they were ended at once.
        lost_nodes: node -> its state, of those that are gone; told whether there is reason to wait
            until SLURM notices.
    """
    run_dir, said = attempt.run_dir, read_end(attempt.run_dir)
    ours = said if said is not None and said["attempt"] == attempt.number else None
    asked, after = attempt.asked_to_stop(), newest_step(run_dir)
    logged = steps_done(run_dir, float(attempt.read("begin").get("time_s", 0)))
    step = max(before, after, logged, int(ours["step"]) if ours else 0)
    facts: dict[str, Any] = {"before": before, "after": after, "step": step, "asked": asked}
    if ours is not None and ours["state"] in ("done", "stopped") and not ours["code"]:
        return End(0, "done", "done", **facts)  # or at its stop_step
    if ours is not None and ours["code"] == EXIT_STOPPED:
        return End(EXIT_STOPPED, "stopped", ours["reason"], **facts)
    if forced:
        return End(EXIT_INTERRUPTED, "interrupted", "ended at once, as asked", **facts)
    if asked == CANCELLED:
        return End(EXIT_LOST, "cancelled", f"{CANCELLED}, without a checkpoint", **facts)
    if bad := lost_nodes(ours is None or ours["state"] == "running" or ours["code"] == EXIT_LOST):
        told = ", ".join(f"{node} is {state}" for node, state in bad.items())
        return End(EXIT_LOST, "node", f"a node was lost: {told}", **facts)
    if ours is not None and ours["code"]:
        kind = KINDS.get(ours["code"], "crash")
        return End(ours["code"], kind, in_short(ours["reason"]) or kind, **facts)
    if code == EXIT_USER_ERROR:
        return End(code, "mistake", last_error(attempt) or "a mistake, see the log", **facts)
    reason = last_error(attempt) or f"the ranks ended with code {code} and did not say why"
    return End(code or EXIT_LOST, "lost rank", reason, **facts)
