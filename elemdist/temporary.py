"""The folder for temporary files, which processes also meet in, over sockets."""

from __future__ import annotations

import os
import tempfile

# A path of a socket has at most 107 bytes (man 7 unix), of which Python's multiprocessing takes 32
# for its own /pymp-12345678/listener-12345678.
LONGEST_BYTES = 107 - 32


def tmpdir_problem() -> str | None:
    """Why processes that share data through multiprocessing cannot meet here, as those of
    `elemdist shard` and the workers of a DataLoader do; None where they can."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= LONGEST_BYTES:
        return None
    return f"$TMPDIR, {folder}, is longer than the {LONGEST_BYTES} bytes that sockets in it allow"
