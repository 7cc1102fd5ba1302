"""Shard sets that are trained on together, for the tests of mixtures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from elemdist.mixture import Mixture, open_mixture
from elemdist.run_settings import DataSettings, Source
from tests.shard_sets import make_set

SIZES = {"wiki": 50, "code": 20, "law": 33}
Sets = dict[str, tuple[Path, np.ndarray]]


def make_sets(root: Path) -> Sets:
    """Name -> folder and rows of sets of the sizes above."""
    return {
        name: (root / name, make_set(root / name, samples, seed=seed))
        for seed, (name, samples) in enumerate(SIZES.items())
    }


def opened(sets: Sets, **shares: dict[str, float]) -> Mixture:
    """The mixture of these sets; name -> {"weight": ...} or {"repeat": ...}."""
    sources = [Source(str(sets[name][0]), **share) for name, share in shares.items()]
    return open_mixture(DataSettings(mixture=sources))


def weighted(sets: Sets) -> Mixture:
    return opened(sets, wiki={"weight": 2.0}, code={"weight": 0.7}, law={"weight": 1.3})


def repeated(sets: Sets) -> Mixture:
    return opened(sets, wiki={"repeat": 0.5}, code={"repeat": 2.3}, law={})
