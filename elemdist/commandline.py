"""Settings from a dataclass, a YAML recipe and the command line: ``parse(TrainSettings, argv)``.

jsonargparse checks the types and writes the help. In front of it stands what it lacks: positional
arguments, dashes in option names, flags without a value, and errors of one line that name the
file, the key and the nearest right key.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml

from elemdist.errors import UserError, nearest
from elemdist.json_text import json_text

Settings = TypeVar("Settings")


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 without its surprises: 24:00:00 stays text, 3e-4 is a number, a key comes once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As yaml's, but a key that stands twice is an error."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key}' stands twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


RecipeLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789")
)
RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


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


def leaf_types(settings_class: type, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> type of every setting of a dataclass of dataclasses."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(settings_class)
    for item in dataclasses.fields(settings_class):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            found |= leaf_types(typing.cast(type, kind), f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = kind
    return found


def item_class(kind: Any) -> type | None:
    """The dataclass that a setting of this type is a list of, or None."""
    items = typing.get_args(kind) if typing.get_origin(kind) is list else ()
    return typing.cast(type, items[0]) if items and dataclasses.is_dataclass(items[0]) else None


def read_yaml(path: str) -> Any:
    """What a YAML file holds. Raises UserError naming file and line."""
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), RecipeLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def read_recipe(path: str, known: dict[str, Any]) -> dict[str, str]:
    """A YAML recipe as dotted key -> text of its value. Raises UserError naming file and line."""
    tree = read_yaml(path)
    return {} if tree is None else flatten(tree, known, path)


def flatten(tree: Any, known: dict[str, Any], place: str) -> dict[str, str]:
    """A tree of settings as dotted key -> text of its value. Raises UserError naming `place`."""
    values: dict[str, str] = {}

    def walk(node: Any, prefix: str) -> None:
        if not isinstance(node, dict):
            raise UserError(f"{place}: {prefix[:-1] or 'the recipe'}: expected keys with values")
        for name, value in node.items():
            key = f"{prefix}{name}".replace("-", "_")
            if key in known:
                values[key] = value if isinstance(value, str) else json_text(value)
            elif any(other.startswith(key + ".") for other in known):
                walk(value, key + ".")
            else:
                raise UserError(f"{place}: unknown key '{key}'{nearest(key, known)}")

    walk(tree, "")
    return values


def split_arguments(argv: list[str], known: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """(positional arguments, dotted key -> text). Raises UserError on an unknown option."""
    positional: list[str] = []
    values: dict[str, str] = {}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if token == "--":
            return positional + rest, values
        if not token.startswith("--"):
            positional.append(token)
            continue
        name, equals, value = token[2:].partition("=")
        key = name.replace("-", "_")
        if key not in known:
            hint = nearest(key, known).replace("_", "-")
            raise UserError(f"unknown option --{name}{hint}; --help lists all")
        if not equals:
            flag = known[key] is bool and (not rest or rest[0].lower() not in ("true", "false"))
            if not flag and not rest:
                raise UserError(f"option --{name} needs a value")
            value = "true" if flag else rest.pop(0)
        values[key] = value.lower() if known[key] is bool else value
    return positional, values


def take_positional(
    positional: list[str], target: str | None, known: dict[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """(recipes, values) from the positional arguments; `target` names the setting they fill."""
    if target is None:
        return positional, {}
    if not positional:
        return [], {}
    if typing.get_origin(known[target]) is list:
        return [], {target: json_text(positional)}
    if len(positional) > 1:
        raise UserError(f"one {target} expected, got {' '.join(positional)}")
    return [], {target: positional[0]}


def parser_of(settings_class: type, **options: Any) -> tuple[Parser, list[str]]:
    """A parser for a dataclass, without required options, and the keys that have no default."""
    # parser_mode json: YAML would read 24:00:00 as 86400.
    parser = Parser(parser_mode="json", default_env=False, exit_on_error=False, **options)
    parser.add_class_arguments(settings_class)
    required = [action for action in parser._actions if action.required]
    for action in required:  # checked after the values that were given
        action.required = False
    return parser, [action.dest for action in required]


def with_values(parser: Parser, texts: dict[str, str], places: dict[str, str]) -> Any:
    """The defaults, and other values by their keys. Raises UserError where one does not fit;
    `places` says which it is."""
    try:
        words = [f"--{key}={text}" for key, text in texts.items()]
        return parser.parse_args(words, namespace=parser.get_defaults())
    except (UserError, jsonargparse.ArgumentError):
        pass  # one by one, to find it: each call takes as long as that one
    values = parser.get_defaults()
    for key, text in texts.items():
        try:
            values = parser.parse_args([f"--{key}={text}"], namespace=values)
        except (UserError, jsonargparse.ArgumentError) as error:
            raise UserError(f"{places[key]}: {plain(error, text)}") from None
    return values


def read_items(kind: type, text: str, place: str) -> list[Any]:
    """The values of a list of dataclasses, from JSON. Raises UserError naming item and key."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(items, list):
        raise UserError(f'{place}: expected a list, [{{"key": value, ...}}, ...]')
    known, read = leaf_types(kind), []
    parser, required = parser_of(kind)
    for number, item in enumerate(items):
        here = f"{place}[{number}]"
        if not isinstance(item, dict):
            raise UserError(f"{here}: expected keys with values")
        for key in item:
            if key not in known:
                raise UserError(f"{here}: unknown key '{key}'{nearest(key, known)}")
        if missing := [key for key in required if key not in item]:
            raise UserError(f"{here}: {missing[0]} is missing")
        texts = {
            key: value if isinstance(value, str) else json_text(value)
            for key, value in item.items()
        }
        read.append(with_values(parser, texts, {key: f"{here}.{key}" for key in item}))
    return read


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
    known = leaf_types(settings_class)
    unnamed_shown = f"[{positional.upper()} ...]" if positional else "[RECIPE.yaml ...]"
    usage = f"{prog} {unnamed_shown} [--key value ...]"
    asks_for_help = any(token in ("-h", "--help") for token in argv)
    # What a setting is for stands in docstrings, and reading them takes half of a parser's time.
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=asks_for_help)
    parser, required = parser_of(settings_class, prog=prog, usage=usage, description=description)
    if asks_for_help:
        print(parser.format_help())
        raise SystemExit(0)
    unnamed, values = split_arguments(argv, known)
    recipes, named = take_positional(unnamed, positional, known)
    values = {**values, **named}
    source = dict.fromkeys(values, "command line")
    for recipe in reversed(recipes):
        from_file = read_recipe(recipe, known)
        source = dict.fromkeys(from_file, recipe) | source
        values = {**from_file, **values}
    places = {key: f"{source[key]}: {key}" for key in values}
    lists = {
        key: read_items(items, values[key], places[key])
        for key in values
        if (items := item_class(known[key])) is not None
    }
    single = {key: value for key, value in values.items() if key not in lists}
    result = with_values(parser, single, places)
    for key, read in lists.items():
        result[key] = read
    for key in required:
        if key not in values:
            shown = positional.upper() if key == positional else f"--{key.replace('_', '-')} VALUE"
            raise UserError(f"{shown} is missing; {prog} --help lists all settings")
    return build(settings_class, result)


def plain(error: Exception, value: str) -> str:
    """The part of jsonargparse's message that tells a user what is expected."""
    text = " ".join(str(error).split())
    match = re.search(r"Expected (.*?)(?:\. Got value| - Expected a |$)", text)
    expected = match.group(1) if match else text
    expected = re.sub(r"<class '(\w+)'>", r"\1", expected).removeprefix("a ")
    expected = re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", expected).replace("typing.", "")
    return f"'{value}' does not fit; expected {expected}"


def build(settings_class: type[Settings], values: Any) -> Settings:
    """The dataclass from a namespace or dict of dicts; what is absent keeps its default."""
    hints = typing.get_type_hints(settings_class)
    arguments = {}
    for item in dataclasses.fields(settings_class):  # type: ignore[arg-type]
        if item.name in values:
            kind, value = hints[item.name], values[item.name]
            if dataclasses.is_dataclass(kind):
                value = build(typing.cast(type, kind), value)
            elif (items := item_class(kind)) is not None:
                value = [build(items, one) for one in value]
            arguments[item.name] = value
    return settings_class(**arguments)
