"""Progress in bytes of input: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time

INTERVAL_S = 30.0


class Progress:
    """Shows how much of the input is done, how fast, and how long the rest takes.

    Args:
        title: what is going on. total: bytes of all input. quiet: show nothing.
    """

    def __init__(self, title: str, total: int, quiet: bool) -> None:
        self._title, self._total, self._quiet = title, total, quiet
        self._done = 0
        self._start = self._shown = time.monotonic()
        self._bar = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=title, unit="B", unit_scale=True, dynamic_ncols=True)

    def at(self, done: int) -> None:
        """Shows that `done` bytes in all are done."""
        if self._bar is not None:
            self._bar.update(done - self._done)
        self._done = done
        now = time.monotonic()
        if self._bar is None and not self._quiet and now - self._shown > INTERVAL_S:
            self._shown = now
            print(self._line(now - self._start), file=sys.stderr, flush=True)

    def add(self, more: int) -> None:
        """Shows that `more` bytes are done."""
        self.at(self._done + more)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, seconds: float) -> str:
        speed = self._done / seconds
        left = int((self._total - self._done) / max(speed, 1))
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        return (
            f"{self._title}: {self._done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB, "
            f"{speed / 1e6:,.0f} MB/s, {clock} left"
        )
