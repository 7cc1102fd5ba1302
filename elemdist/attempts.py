"""The attempts of a run: each start is one, and only the newest may write.

A node that was given up for dead may live on, and its ranks with it, while the run goes on
elsewhere. So every start takes the next number, and a rank of an older one that wakes up finds
itself superseded: it publishes no checkpoint any more, and ends.

    RUN/attempts/00003/begin.json   who began it, where and when
                      /alive        locked by its rank 0 as long as that lives
                      /stop         there once its ranks are asked to save and end; says why
                      /nodes.json   those that its ranks run on; the launcher writes it,
                      /end.json     and how it ended
                      /rank-00000.log ...   what a launcher's ranks printed
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from elemdist.artefacts import optional_json, read_text
from elemdist.atomic import write_atomically
from elemdist.errors import Superseded, UserError
from elemdist.json_text import json_text
from elemdist.json_types import Step
from elemdist.os_errors import reason_of

VARIABLE = "ELEMDIST_ATTEMPT"  # in the environment of the ranks: the number their launcher took
STOP_CHECK_S = 0.5  # a shared file system is not asked more often than this
SHORT = 1 << 16  # bytes of a file with a line in it
FOLDER = re.compile(r"\d{5,9}")


def numbers(run_dir: str | Path) -> list[int]:
    """Of all attempts there were, in order."""
    try:
        names = os.listdir(Path(run_dir) / "attempts")
    except OSError:
        return []
    return sorted(int(name) for name in names if FOLDER.fullmatch(name))


@dataclass
class AttemptFacts:
    """What of begin.json and end.json is used; they hold more"""

    open_names: ClassVar[bool] = True
    time_s: float = 0.0
    before: Step = 0
    after: Step = 0
    step: Step = 0
    code: int = 0
    kind: str = ""
    reason: str = ""
    job: str = ""
    asked: str | None = None


class Attempt:
    """One start of a run, by its number. Making one touches nothing; see begin().

    Attributes:
        folder: its own; `number` counts from 1.
    """

    def __init__(self, run_dir: str | Path, number: int) -> None:
        self.run_dir, self.number = Path(run_dir), number
        self.folder = self.run_dir / "attempts" / f"{number:05d}"
        self._asked_s = 0.0

    @classmethod
    def begin(
        cls,
        run_dir: str | Path,
        facts: dict[str, Any] | None = None,
        behind: Attempt | None = None,
    ) -> Attempt:
        """Takes the next number; from then on all older attempts are superseded. `facts` are
        written down as JSON. However many do so at once, each gets another number.

        Args:
            behind: the number must be the one behind this attempt's.

        Raises:
            Superseded: somebody else has begun since `behind`. UserError: the folder cannot be
                written.
        """
        place = Path(run_dir) / "attempts"
        try:
            place.mkdir(parents=True, exist_ok=True)
            while True:
                number = behind.number if behind else max(numbers(run_dir), default=0)
                attempt = cls(run_dir, number + 1)
                try:
                    attempt.folder.mkdir()  # one of all who try succeeds, on NFS, too
                    break
                except FileExistsError:
                    if behind is not None:
                        raise Superseded(behind.told()) from None
            attempt.write(
                "begin", {"host": socket.gethostname(), "pid": os.getpid()} | (facts or {})
            )
        except OSError as error:
            raise UserError(f"run_dir: cannot write into {place}: {reason_of(error)}") from None
        return attempt

    @classmethod
    def newest(cls, run_dir: str | Path) -> Attempt | None:
        """The one that may write; None as long as there was none."""
        found = numbers(run_dir)
        return cls(run_dir, found[-1]) if found else None

    @classmethod
    def of_ranks(cls, run_dir: str | Path) -> Attempt:
        """The one these ranks belong to: the one that their launcher began, else a new one. For
        rank 0, which is seen to live from then on.

        Raises:
            Superseded: another has begun since. UserError: somebody else trains this run; begin().
        """
        stated = os.environ.get(VARIABLE, "")
        # Another run's number is none of this one's.
        if stated.isdigit() and cls(run_dir, int(stated)).folder.is_dir():
            attempt = cls(run_dir, int(stated))
            attempt.check()
        else:
            newest = cls.newest(run_dir)
            if newest is not None and newest.alive():
                begun = newest.read("begin")
                raise UserError(
                    f"run_dir: {run_dir} is being trained by process {begun.get('pid', '?')} on"
                    f" {begun.get('host', '?')}; stop it, or name another folder"
                )
            attempt = cls.begin(run_dir)
        attempt.hold()
        return attempt

    def hold(self) -> None:
        """Shows that this process lives, until it ends; only where the file system has locks."""
        handle = os.open(self.folder / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held, not closed

    def alive(self) -> bool:
        """Whether the process that called hold() is seen to live."""
        try:
            with open(self.folder / "alive", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def superseded(self) -> bool:
        """Whether a later attempt has begun."""
        # Numbers are taken one by one, and a folder goes only with the run.
        return Attempt(self.run_dir, self.number + 1).folder.exists()

    def check(self) -> None:
        """Raises Superseded unless this is the newest attempt."""
        if self.superseded():
            raise Superseded(self.told())

    def told(self) -> str:
        """The line for the user of a superseded attempt."""
        newest = max(numbers(self.run_dir), default=self.number)
        return (
            f"attempt {self.number} of the run in {self.run_dir} is superseded by attempt {newest},"
            " which alone may write now; it ends"
        )

    def ask_to_stop(self, why: str) -> None:
        """Has its ranks save and end; `why` is one line. The first reason stands."""
        try:
            with open(self.folder / "stop", "x", encoding="utf-8") as file:
                file.write(why + "\n")
        except FileExistsError:
            pass

    def asked_to_stop(self) -> str | None:
        """Why its ranks are asked to stop; None as long as they are not."""
        try:
            return read_text(self.folder / "stop", SHORT).strip() or "a stop file"
        except UserError:  # none, or a file system that does not answer just now
            return None

    def looked_at(self) -> tuple[str | None, bool]:
        """(asked_to_stop(), superseded()), looked up now and then: (None, False) in between."""
        now = time.monotonic()
        if now - self._asked_s < STOP_CHECK_S:
            return None, False
        self._asked_s = now
        return self.asked_to_stop(), self.superseded()

    def write(self, name: str, facts: dict[str, Any]) -> None:
        """Writes NAME.json, with the time."""
        write_atomically(
            self.folder / f"{name}.json", json_text({"time_s": time.time()} | facts) + "\n"
        )

    def read(self, name: str) -> dict[str, Any]:
        """What write() wrote; empty where there is nothing to be read."""
        return optional_json(self.folder / f"{name}.json", AttemptFacts) or {}
