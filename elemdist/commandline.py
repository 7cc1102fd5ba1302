"""Settings from a dataclass, YAML recipes and the command line: ``parse(TrainSettings, argv)``.

What is written takes the type of its setting (setting_values.py). jsonargparse writes the help.
Positional arguments, dashes in option names and flags without a value are taken; errors are one
line that names the file, the key and the nearest right key.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from typing import Any, NoReturn, TypeVar

import jsonargparse

from elemdist.artefacts import MissingError
from elemdist.errors import UserError, nearest
from elemdist.json_text import json_text
from elemdist.json_types import parts_of
from elemdist.other_words import option_here, recipe_here
from elemdist.plain_text import printable, shell_word
from elemdist.setting_values import item_kind, leaf_types, required, typed
from elemdist.yaml_text import FALSE, TRUE, Scalar, Tree, read_yaml, resolved

__all__ = ["as_word", "build", "flatten", "leaf_types", "parse", "read_recipe", "split_arguments"]
Settings = TypeVar("Settings")


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse whose errors are UserErrors and whose help shows names with dashes."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises UserError."""
        raise UserError(" ".join(message.split()))

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """As argparse's, with dashes and without what is no setting."""
        text = super().format_help(*args, **kwargs)
        text = re.sub(r"\n +--\S+ CONFIG\s+Path to a configuration file\.", "", text)
        text = re.sub(r"\n +--\S+\.help\s+Show the help for \w+ and exit\.", "", text)
        return re.sub(r"--[a-z][a-z_.0-9]*", lambda m: m.group().replace("_", "-"), text)


def read_recipe(path: str, known: dict[str, Any]) -> dict[str, Tree]:
    """Return a YAML recipe as dotted key -> value. Raises UserError naming file and line."""
    try:
        tree = read_yaml(path)
    except MissingError:
        told = f"{path}: cannot read the recipe: there is no such file"
        raise UserError(told + recipe_here(path)) from None
    except UserError as error:
        raise UserError(f"{error}{recipe_here(path)}") from None
    return {} if tree is None else flatten(tree, known, path)


def flatten(tree: Tree, known: dict[str, Any], place: str) -> dict[str, Tree]:
    """Return a tree of settings as dotted key -> value. Raises UserError naming `place`."""
    values: dict[str, Tree] = {}

    def walk(node: Tree, prefix: str) -> None:
        if not isinstance(node, dict):
            told = f"{place}: {prefix[:-1] or 'the recipe'}: expected keys with values"
            raise UserError(told + recipe_here(place))
        for name, value in node.items():
            key = f"{prefix}{name}".replace("-", "_")
            if key in values:
                raise UserError(f"{place}: key '{key}' stands twice")
            if key in known:
                values[key] = value
            elif any(other.startswith(key + ".") for other in known):
                walk(value, key + ".")
            else:
                hint = nearest(key, known)
                raise UserError(f"{place}: unknown key '{printable(key)}'{hint}")

    walk(tree, "")
    return values


def as_word(tree: Tree) -> str:
    """Return a value as a word of a command line."""
    return tree.text if isinstance(tree, Scalar) else json_text(resolved(tree))


def key_of(token: str) -> str:
    """Return the key of an option: of ``--a-b.c=1`` a_b.c."""
    return token.lstrip("-").partition("=")[0].replace("-", "_")


def split_arguments(argv: list[str], known: dict[str, Any]) -> tuple[list[str], dict[str, Tree]]:
    """Return (positional arguments, dotted key -> value). Raises UserError on an unknown option."""
    positional: list[str] = []
    values: dict[str, Tree] = {}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if token == "--":
            return positional + rest, values
        if not re.match("--|-[A-Za-z]", token):
            positional.append(token)
            continue
        option, equals, value = token.partition("=")
        name, key = option.lstrip("-"), key_of(token)
        if key not in known or not token.startswith("--"):
            hint = f"; the file: {shell_word(token)}" if os.path.lexists(token) else ""
            hint = hint or option_here(name, known)
            raise UserError(f"unknown option {printable(option)}{hint}; --help lists all")
        if not equals:
            flag = known[key] is bool and (not rest or rest[0].lower() not in TRUE + FALSE)
            # A text may begin with dashes, but not be another option.
            if not flag and (not rest or (rest[0][:2] == "--" and key_of(rest[0]) in known)):
                raise UserError(f"option --{name} needs a value")
            value = "true" if flag else rest.pop(0)
        values[key] = Scalar(value)
    return positional, values


def take_positional(
    positional: list[str], target: str | None, known: dict[str, Any]
) -> tuple[list[str], dict[str, Tree]]:
    """Return (recipes, values) from the positional arguments, which fill the setting `target`."""
    if target is None:
        return positional, {}
    if not positional:
        return [], {}
    if typing.get_origin(known[target]) is list:
        return [], {target: [Scalar(one, plain=False) for one in positional]}
    if len(positional) > 1:
        raise UserError(f"one {target} expected, got {' '.join(positional)}")
    return [], {target: Scalar(positional[0], plain=False)}


def help_text(settings_class: type, **options: Any) -> str:
    """Return the help of a dataclass of settings."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(parser_mode="json", default_env=False, exit_on_error=False, **options)
    parser.add_class_arguments(settings_class)
    for action in parser._actions:
        action.required = False
    return parser.format_help()


def parse(
    settings_class: type[Settings],
    argv: list[str],
    prog: str,
    positional: str | None = None,
    description: str | None = None,
) -> Settings:
    """An instance of `settings_class` from `argv`.

    `positional` is the setting that arguments without a name fill; None: such arguments are YAML
    recipes, each above the one before it and all beneath the command line. Raises UserError; exits
    after ``--help``.
    """
    known = leaf_types(settings_class)  # type: ignore[arg-type]
    if any(token in ("-h", "--help") for token in argv):
        shown = f"[{positional.upper()} ...]" if positional else "[RECIPE.yaml ...]"
        usage = f"{prog} {shown} [--key value ...]"
        print(help_text(settings_class, prog=prog, usage=usage, description=description))
        raise SystemExit(0)
    unnamed, values = split_arguments(argv, known)
    recipes, named = take_positional(unnamed, positional, known)
    given: dict[str, tuple[Tree, str]] = {}
    for recipe in recipes:
        given |= {key: (tree, recipe) for key, tree in read_recipe(recipe, known).items()}
    given |= {key: (tree, "command line") for key, tree in {**values, **named}.items()}
    for key in required(settings_class):
        if key not in given:
            shown = positional.upper() if key == positional else f"--{key.replace('_', '-')} VALUE"
            raise UserError(f"{shown} is missing; {prog} --help lists all settings")
    found = {key: typed(tree, known[key], f"{at}: {key}") for key, (tree, at) in given.items()}
    return assemble(settings_class, found)


def assemble(settings_class: type[Settings], values: dict[str, Any], prefix: str = "") -> Settings:
    """Return the dataclass of dotted key -> value; what is absent keeps its default."""
    arguments: dict[str, Any] = {}
    for name, kind in parts_of(settings_class)[1].items():  # type: ignore[arg-type]
        key = prefix + name
        if dataclasses.is_dataclass(kind):
            arguments[name] = assemble(typing.cast(type, kind), values, f"{key}.")
        elif key in values:
            arguments[name] = values[key]
    return settings_class(**arguments)


def build(settings_class: type[Settings], tree: dict[str, Any]) -> Settings:
    """Return the dataclass of a tree of JSON that fits it; what is absent keeps its default."""
    hints = typing.get_type_hints(settings_class)
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(settings_class):  # type: ignore[arg-type]
        if item.name in tree:
            kind, value = hints[item.name], tree[item.name]
            items = item_kind(kind)
            if dataclasses.is_dataclass(kind):
                value = build(typing.cast(type, kind), value)
            elif dataclasses.is_dataclass(items):
                value = [build(typing.cast(type, items), one) for one in value]
            arguments[item.name] = value
    return settings_class(**arguments)
