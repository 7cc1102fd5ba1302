"""The names of the classes that Hugging Face datasets keeps as integers."""

from __future__ import annotations

import json
import os
from typing import Any

from data_prep.documents import Source
from data_prep.readers.folders import contents
from elemdist.errors import UserError
from elemdist.remote import public


def of(source: Source, schema: Any, field: str | None) -> list[str] | None:
    """The names of a data set's ClassLabel column, or list of them; None if it is no such column.

    Args:
        schema: the file's, whose metadata may have the features; else dataset_info.json has.

    Raises:
        UserError: these are there and cannot be read.
    """
    if field is None:
        return None
    path, text = source.path, (schema.metadata or {}).get(b"huggingface")
    if text is None and source.format == "datasets":
        path = f"{os.path.dirname(source.path)}/dataset_info.json"
        text = contents(path)
    try:
        found = json.loads(text) if text is not None else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{public(path)} is damaged ({error}): copy the data set again") from error
    info = found.get("info", found) if isinstance(found, dict) else None
    features = info.get("features") if isinstance(info, dict) else None
    return _names(features.get(field)) if isinstance(features, dict) else None


def _names(feature: Any) -> list[str] | None:
    """The names that a feature tells: a ClassLabel, or a list of it in the forms that were used."""
    if isinstance(feature, list) and len(feature) == 1:
        return _names(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") in ("Sequence", "List", "LargeList"):
        return _names(feature.get("feature"))
    names = feature.get("names")
    if feature.get("_type") != "ClassLabel" or not isinstance(names, list):
        return None
    return [str(name) for name in names]
