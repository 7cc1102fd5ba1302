"""What the attempts of a run came to, out of its folder."""

from __future__ import annotations

from pathlib import Path

from elemdist.artefacts import read_text
from elemdist.atomic import write_atomically
from elemdist.attempts import SHORT, Attempt, numbers
from elemdist.errors import EXIT_LOST, EXIT_STOPPED, UserError
from elemdist.stop import read_end
from launcher.decide import End
from launcher.progress import newest_step, tail


def done_at(run_dir: Path, steps: int) -> int | None:
    """The last step of a run that has done so many; None as long as it has not."""
    end = read_end(run_dir)
    return end["step"] if end and end["state"] == "done" and end["step"] >= steps else None


def ends_of(run_dir: Path) -> list[End]:
    """How the attempts since the run was last launched ended, the oldest first."""
    first = launched_before(run_dir) + 1
    found = [End.of(Attempt(run_dir, n).read("end")) for n in numbers(run_dir) if n >= first]
    return [end for end in found if end is not None]


def note_lost(run_dir: Path) -> None:
    """Writes down the end of a launcher's attempts that could not: it took their whole job with
    it, as the loss of a node does. For who is about to begin another one."""
    attempts = [Attempt(run_dir, number) for number in numbers(run_dir)]
    begins = [attempt.read("begin") for attempt in attempts]
    # The newest checkpoint at the end of each was that at the begin of the next.
    afters = [int(begin.get("before", 0)) for begin in begins] + [newest_step(run_dir)]
    for attempt, begin, after in zip(attempts, begins, afters[1:], strict=True):
        if "before" not in begin or End.of(attempt.read("end")) is not None:
            continue
        asked, before = attempt.asked_to_stop(), int(begin["before"])
        saved = asked is not None and after > before
        code, kind = (EXIT_STOPPED, "stopped") if saved else (EXIT_LOST, "node")
        end = End(code, kind, "its job ended at once", before, after, after, asked)
        attempt.write("end", vars(end) | {"job": begin.get("job", "")})


def launched_before(run_dir: Path) -> int:
    """The number of the newest attempt when somebody launched the run last."""
    try:
        return int(read_text(run_dir / "launch" / "attempts-before", SHORT))
    except (UserError, ValueError):
        return 0


def note_launch(run_dir: Path) -> None:
    """From here on failures are counted anew."""
    newest = max(numbers(run_dir), default=0)
    write_atomically(run_dir / "launch" / "attempts-before", f"{newest}\n")


def last_error(attempt: Attempt) -> str:
    """The last message of a rank in the logs of an attempt."""
    for path in sorted(attempt.folder.glob("rank-*.log")):
        for line in reversed(tail(path)):
            if line.startswith("elemdist train: "):
                return in_short(line.removeprefix("elemdist train: ").removeprefix("error: "))
    return ""


def in_short(reason: str) -> str:
    """Without the advice to resume, which is what the supervisor does."""
    return reason.partition("; the same command with --resume")[0].removeprefix("error: ")
