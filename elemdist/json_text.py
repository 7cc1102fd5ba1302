"""The one writer of JSON: whatever the value holds, the text is valid JSON and valid UTF-8."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from typing import Any

SURROGATE = re.compile("[\ud800-\udfff]")


def json_text(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """Return a value as JSON, without a line end.

    NaN and infinity, which JSON has not, become null. Characters beyond ASCII stay as they are,
    but a surrogate without its partner, which UTF-8 has not, is escaped as \\udXXX: json.loads
    gives it back. Dataclasses become objects, paths text, scalars of numpy and torch numbers.

    Raises:
        TypeError: a part is none of these.
    """

    def dumped(tree: Any) -> str:
        return json.dumps(
            tree,
            ensure_ascii=False,
            allow_nan=False,
            indent=indent,
            sort_keys=sort_keys,
            default=plain,
        )

    try:
        text = dumped(value)
    except ValueError:  # a number that is not finite, somewhere
        text = dumped(finite(value))
    return SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def plain(value: Any) -> Any:
    """Return what JSON can hold in place of a value. Raises TypeError where there is nothing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def finite(value: Any) -> Any:
    """Return the same tree with None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return finite(plain(value))
