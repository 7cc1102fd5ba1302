"""Shard sets that are trained on together: their shares, their order, and one way to read them.

An epoch of a mixture holds a fixed number of samples of each set, its quota, in random order. A
set's own samples come in epochs of their own, one permutation after another, so that over whole
epochs of the mixture its samples differ by at most one in how often they came. Like the order of a
single set, it is a pure function of (seed, place): it needs no memory and no state, and a run that
is resumed at any step, on any number of ranks, sees the very same global batches.
"""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import PurePosixPath

import numpy as np

from elemdist.errors import UserError
from elemdist.remote import public
from elemdist.run_settings import DataSettings, Source
from elemdist.shards import ShardSet
from elemdist.shuffle import sample_ids, stream
from elemdist.units import counted

__all__ = ["Mixture", "as_mixture", "names_of", "open_mixture", "quotas"]


def names_of(sources: list[Source]) -> list[str]:
    """What the sources are called: as told, else the last folder of the path that says more than
    "train".

    Raises:
        UserError: two have the same name.
    """
    names = []
    for source in sources:
        folders = [part for part in PurePosixPath(public(source.path)).parts if part != "/"]
        told = [part for part in folders if part not in ("train", "..")] or folders
        names.append(source.name or (told[-1] if told else source.path))
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"data.mixture: two sources are called '{name}'; give each a name of its own,"
                f' {{"path": ..., "name": ...}}'
            )
    return names


def quotas(sizes: list[int], sources: list[Source]) -> list[int]:
    """Samples of each source in an epoch of the mixture.

    By repeats: so many times the source's size, rounded. By weights: shares of the sum of all
    sizes, rounded so that they add up to it, up where the most is lost otherwise.

    Raises:
        UserError: a source would get none.
    """
    if sources[0].weight is None:
        repeats = [Fraction(1 if one.repeat is None else one.repeat) for one in sources]
        found = [round(size * repeat) for size, repeat in zip(sizes, repeats, strict=True)]
    else:
        weights = [Fraction(one.weight or 0) for one in sources]
        exact = [sum(sizes) * weight / sum(weights) for weight in weights]
        found = [int(share) for share in exact]
        by_loss = sorted(range(len(sizes)), key=lambda place: found[place] - exact[place])
        for place in by_loss[: sum(sizes) - sum(found)]:
            found[place] += 1
    for source, size, quota in zip(sources, sizes, found, strict=True):
        if not quota:
            raise UserError(
                f"data.mixture: {public(source.path)} with its {size:,} samples would not get one"
                " sample in an epoch of the mixture; raise its weight or repeat, or leave it out"
            )
    return found


class Mixture:
    """Shard sets, trained on together, with what training needs of a ShardSet.

    The samples of all sets are numbered through, set after set.

    Attributes:
        sets, names, quotas: each source's shard set, name, and samples in an epoch of the mixture.
        epoch_samples: samples of an epoch of the mixture.
        path: what it is called in messages.
        n, v: materials of a sample, elements of a material.
        labels: label names, or None where the sets have none or do not agree.
        samples: how many samples all sets have together.
        fingerprint: hexadecimal hash of the sets and the quotas; of a single set, its own.
    """

    def __init__(self, sets: list[ShardSet], names: list[str], quotas: list[int]) -> None:
        """A mixture of open sets.

        Raises:
            UserError: a set differs from the first one in n or v.
        """
        self.sets, self.names, self.quotas = sets, names, quotas
        first = sets[0]
        for other in sets[1:]:
            if (other.n, other.v) != (first.n, first.v):
                raise UserError(
                    f"data.mixture: {public(other.path)} has n={other.n}, v={other.v}, but"
                    f" {public(first.path)} n={first.n}, v={first.v}; make it alike: elemdist"
                    f" convert {public(other.path)} --n {first.n} --v {first.v} --out DIR"
                )
        self.path = ", ".join(public(one.path) for one in sets)
        self.n, self.v = first.n, first.v
        alike = all(one.labels == first.labels for one in sets)
        self.labels = first.labels if alike else None
        self._ends = np.cumsum([one.samples for one in sets])
        self._quota_ends = np.cumsum(quotas)
        self.samples = int(self._ends[-1])
        self.epoch_samples = int(self._quota_ends[-1])
        self.fingerprint = first.fingerprint
        if len(sets) > 1:
            parts = [f"{one.fingerprint} {quota}" for one, quota in zip(sets, quotas, strict=True)]
            self.fingerprint = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def sample_ids(self, places: np.ndarray, seed: int) -> np.ndarray:
        """Sample numbers of the training order at `places`, int64, counted from the run's start.

        Of a single set this is :func:`elemdist.shuffle.sample_ids`.
        """
        if len(self.sets) == 1:
            return sample_ids(places, self.samples, seed)
        # A place among the quotas, laid end to end, says which source and which of its quota.
        slots = sample_ids(places, self.epoch_samples, stream(seed, 0))
        sources = np.searchsorted(self._quota_ends, slots, side="right")
        ids = np.empty_like(places)
        for source in np.unique(sources).tolist():
            here = np.flatnonzero(sources == source)
            quota, samples = self.quotas[source], self.sets[source].samples
            within = slots[here] - (self._quota_ends[source] - quota)
            # How many samples of this source the run has had before, were each epoch in order.
            running = places[here] // self.epoch_samples * quota + within
            own = sample_ids(running, samples, stream(seed, source + 1))
            ids[here] = self._ends[source] - samples + own
        return ids

    def source_of(self, ids: np.ndarray) -> np.ndarray:
        """The source of each of these samples, its place in `sets`: (B,) int64.

        Raises:
            IndexError: a number out of range.
        """
        if len(ids) and (ids.min() < 0 or ids.max() >= self.samples):
            raise IndexError(f"sample numbers must be from 0 to {self.samples - 1}")
        return np.searchsorted(self._ends, ids, side="right")

    def _by_set(self, ids: np.ndarray) -> list[tuple[ShardSet, np.ndarray, np.ndarray]]:
        """Each set with the places in `ids` that are its, and their numbers in it."""
        sources = self.source_of(ids)
        found = []
        for source in np.unique(sources).tolist():
            here, shards = np.flatnonzero(sources == source), self.sets[source]
            found.append((shards, here, ids[here] - (self._ends[source] - shards.samples)))
        return found

    def gather(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The samples with these numbers, in this order.

        A shard that is removed while it is mapped stays readable on a local file system. In one
        that is cut short in place the rest of the page with its new end reads as zeros; what lies
        after that page is an error.

        Args:
            ids: (B,) int64, each from 0 to samples - 1, in any order, repeats allowed.

        Returns:
            rows_BNV: (B, n, v) uint8. labels_BL: (B, L) uint8 of 0 and 1, or None.

        Raises:
            IndexError: a number out of range.
            UserError: a shard cannot be had, or is not what the index says.
        """
        parts = []
        for shards, here, numbers in self._by_set(ids):
            parts.append((here, *shards.gather(numbers)))
        if len(parts) == 1:
            return parts[0][1], parts[0][2] if self.labels is not None else None
        rows_BNV = np.empty((len(ids), self.n, self.v), np.uint8)
        labels_BL = None
        if self.labels is not None:
            labels_BL = np.empty((len(ids), len(self.labels)), np.uint8)
        for here, rows, labels in parts:
            rows_BNV[here] = rows
            if labels_BL is not None:
                labels_BL[here] = labels
        return rows_BNV, labels_BL

    def prefetch(self, ids: np.ndarray) -> None:
        """Starts to fetch or unpack the shards of these samples; see ShardSet.prefetch."""
        for shards, _, numbers in self._by_set(ids):
            shards.prefetch(numbers)

    def label_shares(self) -> list[float]:
        """For each label the share of the documents that have it, from 0 to 1, each set counted
        by its share of the mixture."""
        if self.labels is None:
            return []
        each = np.array([one.label_shares() for one in self.sets])
        return (np.array(self.quotas) / self.epoch_samples @ each).tolist()

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Compares hashes, as ShardSet.verify; several processes can share the work.

        Raises:
            UserError: a shard that cannot be read or whose content changed.
        """
        for number, shards in enumerate(self.sets):
            shards.verify((part + number) % parts, parts)

    def describe(self) -> str:
        """One line: each source's share, its samples, and how often they come in an epoch."""
        return ", ".join(
            f"{name} {quota / self.epoch_samples:.1%} ({counted(shards.samples, 'sample')},"
            f" {quota / shards.samples:.2f} x an epoch)"
            for name, shards, quota in zip(self.names, self.sets, self.quotas, strict=True)
        )


def check_filled(setting: str, shards: ShardSet) -> None:
    """Raise UserError where a set holds no sample or no text; `setting` names it."""
    if not shards.samples or not shards.text_bytes:
        what = "documents without text only" if shards.samples else "no documents"
        raise UserError(
            f"{setting}: {public(shards.path)} is empty, it holds {what}; name another set, or"
            " split the text with a larger share for it"
        )


def as_mixture(shards: ShardSet | Mixture) -> Mixture:
    """A single set as a mixture of one."""
    return shards if isinstance(shards, Mixture) else Mixture([shards], ["train"], [shards.samples])


def open_mixture(data: DataSettings, cache: str | None = None) -> Mixture:
    """Opens what these settings train on, data.train or data.mixture.

    Args:
        data: checked by :meth:`DataSettings.check`. cache: as of ShardSet.

    Raises:
        UserError: a path is no shard set, or a set is empty or not whole; the sets do not go
            together.
    """
    sources = data.sources()
    names = names_of(sources)
    sets = [ShardSet(source.path, cache) for source in sources]
    for one in sets:
        check_filled("data.mixture" if data.mixture else "data.train", one)
    return Mixture(sets, names, quotas([one.samples for one in sets], sources))
