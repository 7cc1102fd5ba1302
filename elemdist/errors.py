"""What a command ends with: one line on standard error, and an exit code that says what to do.

A user's mistake, and an end of training before its last step, never show a traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
EXIT_BUG = 1  # with a traceback
EXIT_USER_ERROR = 2  # the line says what to mend
EXIT_STOPPED = 75  # stopped on request, with a checkpoint: run again with --resume
EXIT_LOST = 76  # another rank, or the connection to it, was lost: run again with --resume
EXIT_STALLED = 77  # no progress for guard.stall_s; the stacks tell where: --resume may help
EXIT_DIVERGED = 78  # the guard ended the run: the same start again would end the same way
EXIT_NOT_SAVED = 79  # asked to stop, but the checkpoint could not be written
EXIT_SUPERSEDED = 80  # another start of the run has begun, and may write alone
EXIT_INTERRUPTED = 130  # a second Ctrl-C, or SIGQUIT: no checkpoint


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where and what to do, in one line.

    Names and values of files stand in it: their line ends, control characters and halves of
    surrogate pairs are escaped.
    """

    def __str__(self) -> str:
        return CONTROL.sub(lambda found: ascii(found.group())[1:-1], super().__str__())


class AgreedError(UserError):
    """One that is raised on all ranks alike, so that one of them speaks for all."""


class RankError(UserError):
    """One that this rank alone may have, and says itself."""


class EarlyEnd(Exception):  # noqa: N818  # not always an error
    """Training ends before its last step; the message is the line for the user.

    Attributes:
        code: the exit code.
    """

    code: int


class Stopped(EarlyEnd):
    """On request, and the checkpoint is written."""

    code = EXIT_STOPPED


class Diverged(EarlyEnd):
    """The guard saw what a restart does not mend."""

    code = EXIT_DIVERGED


class Superseded(EarlyEnd):
    """Another attempt of the run has begun since; this one must write nothing any more."""

    code = EXIT_SUPERSEDED


class NotSaved(EarlyEnd):
    """On request, but the checkpoint could not be written."""

    code = EXIT_NOT_SAVED


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: ``"; did you mean 'layers'?"``, or the empty string."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""
