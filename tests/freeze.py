"""The last import of the process that tests fork from.

A collection of garbage in a fork goes over none of the objects that were there before: it would
take 0.2 s for what all imports hold, and copy the memory that the fork shares.
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
