"""The process ``elemdist``, or ``python -m elemdist``."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from elemdist import cli


def main() -> NoReturn:
    """Runs a verb, and ends the process with its exit code."""
    try:
        try:
            code = cli.main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to flush
        code = 0
    if "elemdist.train" in sys.modules:  # it was a rank
        from elemdist.stop import end_process

        end_process(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
