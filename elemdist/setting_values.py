"""The value of a setting out of what is written on a command line or in YAML, by its type."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from typing import Any

from elemdist.artefacts import once
from elemdist.errors import UserError, nearest
from elemdist.json_types import SURROGATE, kind_name, misfit, parts_of
from elemdist.plain_text import printable
from elemdist.yaml_text import FALSE, TRUE, Scalar, Tree, number_of, resolved


@functools.cache
def leaf_types(settings_class: type, prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> type of every setting of a dataclass of dataclasses, with its bounds."""
    found: dict[str, Any] = {}
    for name, kind in parts_of(settings_class)[1].items():
        if dataclasses.is_dataclass(kind):
            found |= leaf_types(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            found[prefix + name] = kind
    return found


def typed(tree: Tree, kind: Any, place: str) -> Any:
    """Return the value of a type that is written somewhere. Raises UserError that names `place`,
    where it cannot be."""
    try:
        value = converted(tree, kind, place)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
    except RecursionError:
        raise UserError(f"{place}: it nests too deep") from None
    if isinstance(value, (int, float)) and (wrong := misfit(value, kind, place)) is not None:
        raise UserError(wrong)
    return value


def converted(tree: Tree, kind: Any, place: str) -> Any:
    """Return as typed, without looking at bounds. Raises ValueError on what does not fit."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return converted(tree, inner[0], place)
    if origin in (typing.Union, types.UnionType):
        if isinstance(tree, Scalar) and tree.null:
            return None
        return converted(tree, next(one for one in inner if one is not type(None)), place)
    if kind is Any:
        return resolved(tree)
    if dataclasses.is_dataclass(kind):
        return group(tree, typing.cast(type, kind), place)
    if origin in (list, dict):
        if isinstance(tree, Scalar):
            tree = from_json(tree.text, kind)
        if origin is list and isinstance(tree, list):
            return [typed(one, inner[0], f"{place}[{n}]") for n, one in enumerate(tree)]
        if origin is dict and isinstance(tree, dict):
            return {key: typed(one, inner[1], f"{place}.{key}") for key, one in tree.items()}
        raise ValueError(expected(kind))
    if not isinstance(tree, Scalar):
        raise ValueError(f"a {type(tree).__name__} does not fit; {expected(kind)}")
    return scalar(tree.text, kind)


def scalar(text: str, kind: Any) -> Any:
    """Return the value of a single word. Raises ValueError where it does not fit."""
    if kind is str:
        if "\0" in text:
            raise ValueError("a text without the character NUL is expected")
        return text
    if typing.get_origin(kind) is typing.Literal:
        found = [one for one in typing.get_args(kind) if str(one) == text]
    elif kind is bool:
        found = [text.lower() in TRUE] if text.lower() in TRUE + FALSE else []
    else:
        number = number_of(text.strip())
        found = [] if number is None else [number]
        if kind is int and found and int(found[0]) != found[0]:
            found = []
        found = [kind(one) for one in found]
    if not found:
        shown = text if len(text) <= 40 else text[:37] + "..."
        raise ValueError(f"'{printable(shown)}' does not fit; {expected(kind)}")
    return found[0]


def group(tree: Tree, kind: type, place: str) -> Any:
    """Return an item of a list of dataclasses. Raises UserError naming its key."""
    if not isinstance(tree, dict):
        raise UserError(f"{place}: expected keys with values")
    known = leaf_types(kind)
    for key in tree:
        if key not in known:
            raise UserError(f"{place}: unknown key '{printable(key)}'{nearest(key, known)}")
    if missing := [key for key in required(kind) if key not in tree]:
        raise UserError(f"{place}: {missing[0]} is missing")
    return kind(**{key: typed(one, known[key], f"{place}.{key}") for key, one in tree.items()})


def required(settings_class: type) -> list[str]:
    """Return the names of the fields of a dataclass that have no default."""
    none = dataclasses.MISSING
    fields = dataclasses.fields(settings_class)
    return [x.name for x in fields if x.default is none and x.default_factory is none]


def from_json(text: str, kind: Any) -> Tree:
    """Return the tree of a JSON text. Raises ValueError where it is none."""

    def tree(value: Any) -> Tree:
        if isinstance(value, Scalar):
            return value
        if isinstance(value, list):
            return [tree(one) for one in value]
        if isinstance(value, dict):
            return {key: tree(one) for key, one in value.items()}
        if isinstance(value, str):
            if SURROGATE.search(value):
                raise ValueError("half of a surrogate pair is no text")
            return Scalar(value, plain=False)
        return Scalar({True: "true", False: "false", None: "null"}[value])

    try:
        found = json.loads(
            text,
            object_pairs_hook=once,
            parse_constant=Scalar,
            parse_int=Scalar,
            parse_float=Scalar,
        )
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}; {expected(kind)}") from None
    return tree(found)


def item_kind(kind: Any) -> Any:
    """Return the type of a list's items; None for what is no list."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is list else None


def expected(kind: Any) -> str:
    """Return what would fit, for a message."""
    if item := item_kind(kind):
        shown = '{"key": value, ...}' if dataclasses.is_dataclass(item) else '"a"'
        if item is int or item is float or typing.get_origin(item) is typing.Annotated:
            shown = "1"
        return f"expected a list, [{shown}, ...]"
    if typing.get_origin(kind) is dict:
        return 'expected keys with values, {"key": value, ...}'
    if kind is bool:
        return "expected true or false"
    return f"expected {kind_name(kind)}"
