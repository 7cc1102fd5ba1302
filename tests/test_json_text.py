"""The one writer of JSON: valid, and valid UTF-8, whatever the value holds."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elemdist.json_text import json_text
from tests.conftest import REPOSITORY

# These two run alone, on a node and in a user's own folder, and import nothing of the product.
ALONE = {"elemdist/exported/tokenization_elemdist.py", "launcher/node_check.py"}


@dataclass
class Point:
    """A dataclass"""

    f1: float
    name: str = "a"


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize(
    ("value", "read_back"),
    [
        (
            {"a": math.nan, "b": [1.5, math.inf, (-math.inf,)]},
            {"a": None, "b": [1.5, None, [None]]},
        ),
        ("half \ud83d of a pair", "half \ud83d of a pair"),
        ({"\udcff": "caf\udce9 é 🎉"}, {"\udcff": "caf\udce9 é 🎉"}),
        (Point(math.nan, "x"), {"f1": None, "name": "x"}),
        ([Point(0.5)], [{"f1": 0.5, "name": "a"}]),
        ({"path": Path("a/b")}, {"path": "a/b"}),
        (
            [np.float64(0.5), np.float64("nan"), np.float32("inf"), np.int64(7)],
            [0.5, None, None, 7],
        ),
        ([np.float32(0.5), np.bool_(True), math.nan], [0.5, True, None]),
        ([True, None, 2**70, ""], [True, None, 2**70, ""]),
    ],
)
def test_any_value_becomes_valid_json_and_utf8(value: object, read_back: object) -> None:
    for indent in (None, 2):
        data = json_text(value, indent=indent).encode("utf-8")  # strict: no half of a pair
        assert json.loads(data.decode("utf-8"), parse_constant=refuse) == read_back


def test_normal_content_keeps_its_bytes() -> None:
    value = {"b": [1, 2.5, "é🎉"], "a": {"x": None, "y": True}}
    for indent in (None, 1):
        assert json_text(value, indent=indent) == json.dumps(
            value, indent=indent, ensure_ascii=False
        )
    assert json_text(value, sort_keys=True).startswith('{"a"')


def test_what_has_no_place_in_json_is_an_error_of_the_program() -> None:
    with pytest.raises(TypeError, match="set"):
        json_text({"a": {1}})


def writes_json(text: str) -> bool:
    calls = [one.func for one in ast.walk(ast.parse(text)) if isinstance(one, ast.Call)]
    return any(ast.unparse(call) in ("json.dump", "json.dumps") for call in calls)


def test_no_other_part_of_the_product_writes_json() -> None:
    writers = {
        str(path.relative_to(REPOSITORY))
        for folder in ("elemdist", "launcher", "data_prep")
        for path in (REPOSITORY / folder).rglob("*.py")
        if "json.dump" in (text := path.read_text(encoding="utf-8")) and writes_json(text)
    }
    assert writers == {"elemdist/json_text.py"} | ALONE
