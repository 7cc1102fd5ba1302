"""`elemdist VERB` in a fork of a process that has imported all of it, so without seconds of start.

The verb runs as it does for a user, from its arguments to its exit code, in a process, folder and
environment of its own; only the interpreter's start and the imports are shared. What is about those
starts the command itself, by run_command(ELEMDIST, ...).
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.forkserver import rank_process


def run_verb(
    words: list[str], environment: dict[str, str], folder: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Runs `elemdist WORDS` to its end; output as text.

    Raises:
        subprocess.TimeoutExpired: it did not end in `timeout` seconds, and was killed.
    """
    from tests.forked_rank import verb

    with tempfile.TemporaryDirectory(prefix="elemdist-verb-") as place:
        said = [Path(place) / name for name in ("stdout", "stderr")]
        process = rank_process(verb, words, environment, str(folder), *map(str, said))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["elemdist", *words], timeout)
        # As text of a pipe: undecodable bytes are an error, line ends become \n.
        output, errors = (file.read_text() if file.exists() else "" for file in said)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(["elemdist", *words], process.exitcode, output, errors)
