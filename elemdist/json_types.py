"""Whether what was read as JSON has the types of a dataclass: a file may say anything."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any


def misfit(value: Any, kind: Any, name: str = "it") -> str | None:
    """The first part of a JSON value that is not of `kind`, and what it should be; None if all of
    it is. Keys of a dataclass may be missing, and it may have others."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            return f"{name} is {short(value)}, not a group of settings"
        hints = typing.get_type_hints(kind)
        prefix = "" if name == "it" else f"{name}."
        parts = ((part.name, hints[part.name]) for part in dataclasses.fields(kind))
        found = (misfit(value[key], hint, prefix + key) for key, hint in parts if key in value)
        return next((one for one in found if one is not None), None)
    if fits(value, kind):
        return None
    return f"{name} is {short(value)}, not {getattr(kind, '__name__', kind)}"


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a type."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin in (typing.Union, types.UnionType):
        return any(misfit(value, one) is None for one in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(one, inner[0]) for one in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (origin or kind)


def short(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
