"""The process that forked ranks of all tests come from: it has imported what they need, once.

There is one for all, and its imports can be said only once, before the first rank; so they are said
here, and nowhere else.
"""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tests.forked_rank", "tests.checkpoint_ranks", "tests.sequence_ranks", "tests.faulty_ranks"]
)
