"""Locks between processes: held through an open file, and gone with the process that holds them."""

from __future__ import annotations

import fcntl

from elemdist.errors import UserError


def lock(handle: int, taken: str, shared: bool = False, wait: bool = False) -> str | None:
    """Locks an open file or folder until it is closed.

    Args:
        handle: its descriptor. taken: what to say where another process holds it.
        shared: others may hold it as well, if they say so, too. wait: until it is free.

    Returns:
        None; or why it is not locked, on a file system without locks.

    Raises:
        UserError: another process holds it.
    """
    try:
        fcntl.flock(
            handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        )
    except BlockingIOError:
        raise UserError(taken) from None
    except OSError as error:
        return error.strerror or str(error)
    return None
