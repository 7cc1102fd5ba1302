"""Text out of files and names, put where some of its characters would be instructions."""

from __future__ import annotations

import re
import shlex
import unicodedata
from pathlib import Path

# Marks that turn the direction of what follows them (Unicode TR #9), so that it reads as another.
TURNS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
UNUSUAL = re.compile(rf"[^\x20-\x7e\xa0-\u0600]|[{TURNS}]")
HIDDEN = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of pairs, line ends


def printable(text: str, keep: str = "") -> str:
    """Return a text for a terminal or a page: control characters, marks of direction, line ends
    and halves of surrogate pairs are escaped, as \\x1b, except those in `keep`."""

    def escaped(found: re.Match[str]) -> str:
        one = found.group()
        hidden = unicodedata.category(one) in HIDDEN or re.match(f"[{TURNS}]", one)
        return ascii(one)[1:-1] if hidden and one not in keep else one

    return UNUSUAL.sub(escaped, text)


def shell_word(path: str | Path) -> str:
    """Return a path as it stands in a command that is printed for the user: quoted, and never read
    as an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def markdown_cell(text: str) -> str:
    """Return a text for a cell of a table in Markdown, shown there as it is."""
    return re.sub(r"[\\`*<>\[\]|~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", printable(text))
