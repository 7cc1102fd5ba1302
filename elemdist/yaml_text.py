"""YAML for settings, without its surprises: a scalar is the text as it is written.

The type of its setting says what a scalar stands for: 2024-01-05, 1e5, 007 and on are texts where
a text is expected. Aliases and merge keys work, but not without end; tags do not.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from elemdist.artefacts import read_text
from elemdist.errors import UserError

MOST_BYTES = 1 << 20  # of a file of settings
MOST_VALUES = 100_000  # of a file, each counted wherever an alias repeats it
DEEPEST = 50  # levels within one another
NULLS = ("", "~", "null", "Null", "NULL")
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
WHOLE_NUMBER = re.compile(r"[-+]?[0-9][0-9_]*")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
NO_NUMBER = re.compile(r"[-+]?\.?(inf|nan|infinity)", re.IGNORECASE)
BREAKS = re.compile("[\r\x85\u2028\u2029\ufeff]")
TAGS = [
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")
]
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # its events alone


@dataclass(frozen=True)
class Scalar:
    """A single value as it is written; `plain`: without quotes, so that it may be null."""

    text: str
    plain: bool = True

    @property
    def null(self) -> bool:
        """Whether it stands for nothing, where nothing is possible."""
        return self.plain and self.text in NULLS


Tree = Scalar | list[Any] | dict[str, Any]


def read_yaml(path: str | Path) -> Tree | None:
    """Return what a YAML file of settings holds; None for an empty one.

    Raises:
        UserError: it cannot be read, is no YAML, or more than settings need.
    """
    text = read_text(path, MOST_BYTES)
    try:
        return Composer(text).document()
    except RecursionError:
        raise UserError(f"{path}: it nests deeper than {DEEPEST} levels; no settings do") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def read_tree(path: str | Path) -> Any:
    """Return what a YAML file without types holds, as Python has it. Raises as read_yaml."""
    tree = read_yaml(path)
    try:
        return None if tree is None else resolved(tree)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


class Composer:
    """Trees out of the events of a parser. Raises ValueError and RecursionError on bad ones."""

    def __init__(self, text: str) -> None:
        self.events = yaml.parse(text, Loader)
        self.anchors: dict[str, tuple[Tree, int]] = {}
        self.values = 0
        self.depth = 0

    def document(self) -> Tree | None:
        """Return the only document; None where there is none."""
        next(self.events)
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        tree = self.tree(next(self.events))
        next(self.events)
        if not isinstance(after := next(self.events), yaml.StreamEndEvent):
            raise ValueError(f"a second document begins{at(after)}; keep one")
        return None if isinstance(tree, Scalar) and tree.null else tree

    def tree(self, event: Any) -> Tree:
        """Return the value that begins with an event."""
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise ValueError(f"*{event.anchor} has no anchor before it{at(event)}")
            tree, size = self.anchors[event.anchor]
            self.count(size, event)
            return tree
        first = self.values
        self.count(1, event)
        if event.tag not in (None, "!", *TAGS):
            raise ValueError(f"the tag {event.tag} has no meaning here{at(event)}; leave it out")
        self.depth += 1
        if self.depth > DEEPEST:
            raise RecursionError
        found: Tree
        if isinstance(event, yaml.ScalarEvent):
            texts = event.tag in ("!", "tag:yaml.org,2002:str")
            plain = event.style in (None, "") or (event.tag is not None and not texts)
            found = Scalar(whole(event.value, event), plain and not texts)
        elif isinstance(event, yaml.SequenceStartEvent):
            found = list(self.items(yaml.SequenceEndEvent))
        else:
            found = self.mapping()
        self.depth -= 1
        if event.anchor:
            self.anchors[event.anchor] = found, self.values - first
        return found

    def count(self, size: int, event: Any) -> None:
        """Count values. Raises ValueError where there are too many."""
        self.values += size
        if self.values > MOST_VALUES:
            raise ValueError(f"over {MOST_VALUES:,} values, aliases written out{at(event)}")

    def items(self, end: type) -> Any:
        """Yield the values up to an end."""
        while not isinstance(event := next(self.events), end):
            yield self.tree(event)

    def mapping(self) -> dict[str, Tree]:
        """Return keys and values; those of merge keys below its own."""
        own: dict[str, Tree] = {}
        merged: dict[str, Tree] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.tree(event)
            value = self.tree(next(self.events))
            if not isinstance(key, Scalar):
                raise ValueError(f"a key is no single word{at(event)}")
            if key == Scalar("<<"):
                for part in value if isinstance(value, list) else [value]:
                    if not isinstance(part, dict):
                        raise ValueError(f"<< needs keys with values{at(event)}")
                    merged = part | merged
            elif key.text in own:
                raise ValueError(f"key '{key.text}' stands twice{at(event)}")
            else:
                own[key.text] = value
        return {**merged, **own}


def at(event: Any) -> str:
    """Return where an event stands, for a message."""
    return f", line {event.start_mark.line + 1}" if event.start_mark else ""


def whole(text: str, event: Any) -> str:
    """Return a text with the halves of surrogate pairs, as \\ud83d\\ude00, put together."""
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise ValueError(f"half of a surrogate pair{at(event)}; it is no text") from None


def resolved(tree: Tree) -> Any:
    """Return a tree that has no types as Python has it: true, yes and on are True, 1e5 is a number.

    Raises:
        ValueError: infinity, or no number, which no setting can be.
    """
    if isinstance(tree, list):
        return [resolved(one) for one in tree]
    if isinstance(tree, dict):
        return {key: resolved(one) for key, one in tree.items()}
    if tree.null:
        return None
    text = tree.text
    if not tree.plain:
        return text
    if text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    if NO_NUMBER.fullmatch(text):
        raise ValueError(f"{text} is no number; quote it where it is a text")
    number = number_of(text)
    return text if number is None else number


def number_of(text: str) -> int | float | None:
    """Return the number that a text is, as YAML 1.2 writes it, also with _ between digits."""
    if len(text) > 400 or not NUMBER.fullmatch(text):
        return None
    plain = text.replace("_", "")
    if WHOLE_NUMBER.fullmatch(text) and len(text) < 80:
        return int(plain)
    return number if math.isfinite(number := float(plain)) else None


class Dumper(yaml.SafeDumper):
    """Writes texts with quotes that any reader of YAML, 1.1 or 1.2, could take for something."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: everything is written out."""
        return True


def quoted(dumper: Dumper, text: str) -> yaml.ScalarNode:
    """Return a text as YAML has it, with escapes for what a reader could take for a line end."""
    style = '"' if BREAKS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, quoted)
Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(rf"^(?:{NUMBER.pattern}|0o[0-7]+|{NO_NUMBER.pattern})$", re.IGNORECASE),
    list("-+.0123456789iInN"),
)


def yaml_text(tree: Any) -> str:
    """Return a tree as YAML that read_yaml, and any other reader, gives back."""
    text: str = yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    return text
