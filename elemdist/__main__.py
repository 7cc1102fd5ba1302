"""The process ``elemdist``, or ``python -m elemdist``."""

from __future__ import annotations

import gc
import os
import select
import sys
from typing import NoReturn

from elemdist import cli
from elemdist.output import use_utf8


def main() -> NoReturn:
    """Runs a verb, and ends the process with its exit code."""
    use_utf8()
    try:
        try:
            code = cli.main()
        finally:
            gc.freeze()  # else the interpreter's end goes over all of torch, 0.3 s, for garbage
            sys.stdout.flush()
    except BrokenPipeError:
        if not reader_is_gone():  # it was another pipe, or a connection
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to flush
        code = 0
    if "elemdist.train" in sys.modules:  # it was a rank
        from elemdist.stop import end_process

        end_process(code)
    sys.exit(code)


def reader_is_gone() -> bool:
    """Whether the standard output is a pipe whose reader has seen enough."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(what & select.POLLERR for _, what in poll.poll(0))


if __name__ == "__main__":
    main()
