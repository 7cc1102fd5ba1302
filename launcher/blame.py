"""Which nodes keep the others from coming together, where each of them says that it is well.

A sum over all nodes that hangs, hangs on all of them. So each adds up by itself, and then with one
other, and another: whoever has never come through is to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Fails = Callable[[list[list[str]]], set[str]]
ROUNDS = 3  # in which a node meets as many others


def to_blame(fails: Fails, nodes: Sequence[str], spares: Sequence[str]) -> set[str]:
    """Those of `nodes` that are to blame; all, where they are but two and both are well alone;
    none, where it does not happen again.

    Args:
        fails: has the nodes of each of these groups come together, all groups at once; the nodes
            of the groups that could not.
        spares: further nodes, to try the others with.
    """
    if broken := fails([[node] for node in nodes]):
        return broken
    suspects = set(nodes)
    for pairs in rounds([*nodes, *spares]):
        suspects -= {node for pair in pairs for node in pair} - fails(pairs)
    return suspects


def rounds(nodes: Sequence[str]) -> Iterator[list[list[str]]]:
    """Pairs, so that nobody meets the same one twice; of an odd number one pauses."""
    ring: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    for _ in range(min(ROUNDS, len(ring) - 1)):
        half = len(ring) // 2
        pairs = zip(ring[:half], reversed(ring[half:]), strict=True)
        yield [[a, b] for a, b in pairs if a is not None and b is not None]
        ring = [ring[0], ring[-1], *ring[1:-1]]
