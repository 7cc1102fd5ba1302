"""Numba's compiler, as all compiled loops use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function without the interpreter's lock, cached wherever a cache can be written."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # a read-only installation and a read-only home: compile in every process
        return numba.njit(nogil=True)(function)
