"""Ranks of real training, started in half a second: forks of a process that has imported all of it.

Each rank is a process of its own that runs what `elemdist train` runs in a rank. A fault, for the
tests of what must not go wrong, is a function of tests/faults.py that is called in the rank before.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from elemdist.ports import free_port
from tests.forkserver import rank_process


class Training:
    """Some ranks that train together; `log` is what they print."""

    def __init__(
        self, log: Path, ranks: int, *words: str | Path, fault: str = "", **facts: object
    ) -> None:
        """Starts the ranks with the arguments of `elemdist train`; `facts` go to the fault."""
        from tests.forked_rank import train

        self.log = log
        self.port = free_port()
        arguments = [str(word) for word in words]
        self.processes = [
            rank_process(train, arguments, rank, ranks, str(self.port), str(log), fault, facts)
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def codes(self, timeout_s: float = 240) -> list[int]:
        """Waits for all ranks; their exit codes, -9 for a SIGKILL."""
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [process for process in self.processes if process.is_alive()]
        for process in late:
            process.kill()
        assert not late, f"{len(late)} rank(s) did not end:\n{self.output()}"
        return [process.exitcode or 0 for process in self.processes]

    def kill(self, rank: int, number: int) -> None:
        """Sends a signal to a rank, if it still runs."""
        process = self.processes[rank]
        if process.is_alive() and process.pid:
            os.kill(process.pid, number)

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def train(log: Path, ranks: int, *words: str | Path, code: int = 0, **options: object) -> str:
    """Trains to the end; what the ranks printed. All of them must end with `code`."""
    training = Training(log, ranks, *words, **options)  # type: ignore[arg-type]
    codes = training.codes()
    assert codes == [code] * ranks, f"{codes}\n{training.output()}"
    return training.output()
