"""Shard sets that several of the tests here convert."""

from __future__ import annotations

from pathlib import Path

import pytest
from converted_sets import DOCS, labels_of_seed, shards_of, texts_of_seed


@pytest.fixture(scope="session")
def document_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DOCS documents, of which some go on in further samples; several shards and items."""
    path = tmp_path_factory.mktemp("plain") / "set"
    return shards_of(path, texts_of_seed(DOCS), labels_of_seed(DOCS), shard_mb=1, item_mb=1)


@pytest.fixture(scope="session")
def packed_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "set"
    return shards_of(path, texts_of_seed(DOCS), packing="packed", shard_mb=1, item_mb=1)
