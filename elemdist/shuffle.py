"""A random order of any number of samples that is computed, never stored.

It is a pure function of (seed, epoch, place), so it needs neither memory nor a plan at the start.
"""

from __future__ import annotations

import numpy as np

MASK_64 = (1 << 64) - 1


def mix(x: np.ndarray, key: int) -> np.ndarray:
    """A keyed 64-bit hash of uint64 numbers (splitmix64's finaliser)."""
    x = x + np.uint64(key & MASK_64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shuffled(places: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Where a random permutation of range(size) sends `places`, without ever building it.

    A Feistel network permutes the next power of four; numbers beyond `size` walk on until they
    fall inside. Each place costs a few hashes, whether `size` is ten or ten billion.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)

    def rounds(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & low
        for number in range(6):
            key = seed * 0x9E3779B97F4A7C15 + number * 0xD1342543DE82EF95
            left, right = right, left ^ (mix(right, key) & low)
        return (left << half) | right

    x = rounds(places.astype(np.uint64))
    outside = np.flatnonzero(x >= size)
    while len(outside):
        walked = rounds(x[outside])
        x[outside] = walked
        outside = outside[walked >= size]
    return x.astype(np.int64)


def sample_ids(places: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Sample numbers of the training order at `places` (int64, counted from the run's start).

    Every epoch is a permutation of all `size` samples, another one each time.
    """
    epochs = places // size
    ids = np.empty_like(places)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        ids[now] = shuffled(places[now] % size, size, seed * 1_000_003 + int(epoch))
    return ids


def stream(seed: int, number: int) -> int:
    """The seed of the order number `number` among several of one run, unrelated to the others."""
    return int(mix(np.array([number], np.uint64), (seed + 1) * 0x9E3779B97F4A7C15)[0])


def digest(ids: np.ndarray) -> int:
    """A number that tells sets of samples apart, in whatever order: a sum of hashes of 24 bits, so
    that those of the parts of a batch add up, in a float64 too."""
    return int((mix(ids.astype(np.uint64), 0) >> np.uint64(40)).sum())
