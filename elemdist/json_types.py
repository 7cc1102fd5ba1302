"""The check of a value that was read as JSON against a type: a file may say anything.

Types are those of the dataclasses of settings and artefacts: bool, int, float, str, lists, dicts,
tuples, Literal, unions, other dataclasses, and numbers with bounds, as ``Share`` below.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from typing import Annotated, Any

from elemdist.errors import UserError, nearest

SURROGATE = re.compile("[\ud800-\udfff]")
WHOLE = 1 << 63  # what a 64-bit integer ends below


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The values that a number may have: from `low` to `high`, those two included, or not."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # than low, which is not included
    below: bool = False  # than high, which is not included

    def flaw(self, value: float) -> str | None:
        """Return what is wrong with a number, or None."""
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        if low and high:
            return None
        if abs(self.high) <= 1000:
            return f"{value} is not in {self}"
        if low:
            return f"{value} is above {self.high:.15g}, its largest value"
        least = f"is not above {self.low:g}" if self.above else f"is below {self.low:g}"
        return f"{value} {least}" + ("" if self.above else ", its smallest value")

    def __str__(self) -> str:
        brackets = "[("[self.above], "])"[self.below]
        return f"{brackets[0]}{self.low:g}, {self.high:g}{brackets[1]}"


FILE_SYSTEM = "bytes of a file system"
FileName = Annotated[str, FILE_SYSTEM]  # which need not be UTF-8
# The most that a count may be: more is a mistake, and would not fit what is computed with it.
MOST = 1 << 40
Count = Annotated[int, Bounds(1, MOST)]
CountOrNone = Annotated[int, Bounds(0, MOST)]  # 0 stands for something of its own
Step = Annotated[int, Bounds(0, 1 << 60)]
Positive = Annotated[float, Bounds(0, 1e15, above=True)]
Amount = Annotated[float, Bounds(0, 1e15)]
Rate = Annotated[float, Bounds(0, 1)]
Share = Annotated[float, Bounds(0, 1, above=True)]
ShareBelowOne = Annotated[float, Bounds(0, 1, below=True)]
Processes = Annotated[int, Bounds(0, 4096)]  # 0: one for each core or GPU
Seed = Annotated[int, Bounds(0, (1 << 32) - 1)]


def misfit(value: Any, kind: Any, name: str = "") -> str | None:
    """Return what is wrong with the first part of a JSON value that is not of a type, with its
    dotted key; None if all of it fits.

    Keys that a dataclass does not know are wrong, unless it has ``open_names = True``.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return None
    if origin is Annotated and inner[1] is FILE_SYSTEM:
        return None if isinstance(value, str) else misfit(value, str, name)
    if origin is Annotated:
        found = misfit(value, inner[0], name)
        if found is None and isinstance(value, (int, float)):
            flaws = (one.flaw(value) for one in inner[1:] if isinstance(one, Bounds))
            found = next((f"{name or 'it'}: {flaw}" for flaw in flaws if flaw), None)
        return found
    if origin in (typing.Union, types.UnionType):
        found_of = [misfit(value, one, name) for one in inner if one is not type(None)]
        if None in found_of or (value is None and type(None) in inner):
            return None
        return found_of[0]
    if dataclasses.is_dataclass(kind):
        return group_misfit(value, kind, name)
    if origin in (list, dict, tuple) and isinstance(value, dict if origin is dict else list):
        return items_misfit(value, origin, inner, name)
    if kind is str and isinstance(value, str) and SURROGATE.search(value):
        return f"{name or 'it'} is {short(value)}, not valid UTF-8"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name or 'it'}: {value} is no number"
    if not fits(value, kind):
        hint = nearest(value, map(str, inner)) if isinstance(value, str) else ""
        return f"{name or 'it'} is {short(value)}, not {kind_name(kind)}{hint}"
    return None


def check_types(settings: Any) -> None:
    """Raise UserError on a value of a dataclass that is not of its type, or beyond its bounds."""
    if (wrong := misfit(settings, type(settings))) is not None:
        raise UserError(wrong)


def group_misfit(value: Any, kind: Any, name: str) -> str | None:
    """Return as misfit, for a dataclass."""
    if isinstance(value, kind):
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(kind)}
    if not isinstance(value, dict):
        return f"{name or 'it'} is {short(value)}, not a group of settings"
    fields, hints = parts_of(kind)
    prefix = f"{name}." if name else ""
    for key in value:
        if key not in fields and not getattr(kind, "open_names", False):
            return f"unknown key {short(prefix + key)}{nearest(key, fields)}"
    for key, item in fields.items():
        optional = (item.default, item.default_factory) != (dataclasses.MISSING,) * 2
        if key not in value and not optional:
            return f"'{prefix}{key}' is missing"
        if key in value and (found := misfit(value[key], hints[key], prefix + key)) is not None:
            return found
    return None


@functools.cache
def parts_of(kind: Any) -> tuple[dict[str, dataclasses.Field[Any]], dict[str, Any]]:
    """Return (name -> field, name -> type) of a dataclass."""
    fields = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind, include_extras=True)
    return fields, {name: hints[name] for name in fields}


def items_misfit(value: Any, origin: Any, inner: tuple[Any, ...], name: str) -> str | None:
    """Return as misfit, for the items of a list, a dict or a tuple."""
    if origin is dict:
        kind = inner[1] if inner else Any
        keyed = (
            (f"{name}.{short(key)}" if name else short(key), one) for key, one in value.items()
        )
        return next((found for key, one in keyed if (found := misfit(one, kind, key))), None)
    if origin is tuple and inner[-1] is not Ellipsis:
        if len(value) != len(inner):
            return f"{name or 'it'} has {len(value)} parts, not {len(inner)}"
        kinds = inner
    else:
        kinds = ((inner or (Any,))[0],) * len(value)
    pairs = enumerate(zip(value, kinds, strict=True))
    return next((x for n, (one, kind) in pairs if (x := misfit(one, kind, f"{name}[{n}]"))), None)


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value of JSON is of a plain type, or one of a Literal's."""
    if typing.get_origin(kind) is typing.Literal:
        return any(type(value) is type(one) and value == one for one in typing.get_args(kind))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and abs(value) < WHOLE
    if kind is str:
        return isinstance(value, str)
    return type(value) is (typing.get_origin(kind) or kind)


def kind_name(kind: Any) -> str:
    """Return a type for a message."""
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return f"one of {', '.join(repr(one) for one in typing.get_args(kind))}"
    if origin is Annotated:
        return kind_name(typing.get_args(kind)[0])
    names = {str: "text", list: "a list", dict: "keys with values", tuple: "a list"}
    return names.get(origin or kind) or str(getattr(kind, "__name__", kind))


def short(value: Any) -> str:
    """Return a value for a message."""
    if isinstance(value, (list, dict)) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    if type(value) is int and abs(value) >= WHOLE:
        return "a number beyond 64 bits"
    text = ascii(value[:60]) if isinstance(value, str) and SURROGATE.search(value) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
