"""The bound on oneDNN's cache of compiled primitives, torch's kernels on a CPU. Loads nothing.

oneDNN keeps a primitive for each shape that it has seen, 1,024 of them. Unpadded batches have new
shapes in every step, and these small, long-lived entries lie between the activations on the heap,
whose memory can then not be given back: a rank grew by gigabytes within a thousand steps.
"""

from __future__ import annotations

import os

VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
FORMER = "DNNL_PRIMITIVE_CACHE_CAPACITY"  # which oneDNN reads, too
CAPACITY = "32"


def bound_primitives() -> None:
    """Bound the cache of this process and of those that it starts, unless the user has set it.

    oneDNN reads the variable at its first operation, so after `import torch` is early enough.
    """
    if FORMER not in os.environ:
        os.environ.setdefault(VARIABLE, CAPACITY)
