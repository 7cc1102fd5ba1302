"""TCP ports of this machine that nobody has."""

from __future__ import annotations

import contextlib
import random
import socket

# Below those that the system gives to outgoing connections, one of which could take a port before
# whoever asked for it listens.
PORTS = range(20_000, 32_000)
TRIES = 100


def free_port() -> int:
    """One of :func:`free_ports`."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different ports of the loopback interface that are free now.

    Raises:
        OSError: of a hundred ports there were not so many.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, TRIES):
        if len(found) == count:
            break
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    if len(found) < count:
        raise OSError(f"of {TRIES} ports of the loopback interface {len(found)} are free")
    return found
