"""What a verb gives as its result on standard output: UTF-8, whatever the locale is."""

from __future__ import annotations

import io
import os
import sys

from elemdist.errors import UserError
from elemdist.os_errors import reason_of


def use_utf8() -> None:
    """Make standard output and standard error take every character, whatever the locale is."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def write_out(text: str) -> None:
    """Write to standard output, and return when it is on its way.

    A surrogate without its partner, as in the name of a file that is no UTF-8, is escaped.

    Raises:
        UserError: it cannot be written, as on a full disk. BrokenPipeError: nobody reads it.
    """
    data = text.encode("utf-8", "backslashreplace")
    if sys.stdout is None or getattr(sys.stdout, "was_closed", False):
        raise UserError("standard output: it is closed; give a file or a pipe")
    try:
        sys.stdout.flush()
        out = getattr(sys.stdout, "buffer", None)
        if out is None:  # what a notebook or a test has in its place takes all characters
            sys.stdout.write(data.decode())
        else:
            out.write(data)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is held back cannot be written either, and must not end in a second error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise UserError(f"standard output: cannot be written: {reason_of(error)}") from None
