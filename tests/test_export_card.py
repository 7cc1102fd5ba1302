"""The model card of an export: whatever a label or a folder is called, it stays in its place."""

from __future__ import annotations

import ast
import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from elemdist.checkpoint import Checkpoint
from elemdist.config import TrainSettings
from elemdist.export_card import USE, model_card
from elemdist.model import Model
from tests.exported_models import CLASSIFIERS


def saved(folder: Path) -> Checkpoint:
    """A checkpoint that has no run beside it, and so no figures."""
    settings = dataclasses.asdict(TrainSettings())
    return Checkpoint(folder / "run" / "checkpoints" / "step", {"step": 5, "settings": settings})


HOSTILE = [
    "a`b", "``", "`", "line\nbreak", "\r\n\n# head", 'quote"s', "it's", "</script>", "${HOME}",
    "{name}", "😀👨‍👩‍👧", "x" * 5000, "|pipe|", "\u202eright to left", "\\", "", " ", "\ud800",
    "*a*", "]](b)", "---", "a\x1b[31mb", "'" + '"' + "`\n",
]  # fmt: skip


@pytest.mark.parametrize("objective", ["mlm", "clm", "classify"])
@pytest.mark.parametrize("name", [name for name in HOSTILE if name.strip()])
def test_a_name_stays_in_its_place_on_the_card(name, objective, tmp_path):
    config = replace(CLASSIFIERS["bert"], labels=HOSTILE)
    model = Model(config)
    object.__setattr__(config, "objective", objective)  # whatever the rest is: a label anywhere
    card = model_card(saved(tmp_path), config, model, None, name)
    card.encode()  # no surrogate is left
    head, rest = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    assert "\x1b" not in card
    assert "<script" not in rest.replace("</script>", "")
    title, table, *parts = rest.strip().split("\n\n")
    assert title.startswith("# ")
    assert len(title) < 600
    assert len(table.splitlines()) == 9
    labels = next(part for part in parts if part.startswith("Labels: "))
    assert "\n" not in labels
    assert len(spans(labels)) == len(HOSTILE) - HOSTILE.count("")
    example = card[card.index("```python\n") + 10 :]
    assert example.count("\n```") == 1
    tree = ast.parse(example[: example.rindex("```")])
    literals = [x.value for x in ast.walk(tree) if isinstance(x, ast.Constant)]
    assert literals.count(name) == USE[objective].count("{name}")


def spans(text: str) -> list[str]:
    """The code spans of a line of Markdown, by its rule: they end at as many backticks."""
    found, at = [], 0
    while (start := re.compile("`+").search(text, at)) is not None:
        ends = [x for x in re.finditer("`+", text[start.end() :]) if x[0] == start[0]]
        assert ends, "a span that has no end"
        found.append(text[start.end() : start.end() + ends[0].start()])
        at = start.end() + ends[0].end()
    return found


def test_figures_that_are_none_are_not_on_the_card(tmp_path):
    figures = tmp_path / "figures.json"
    figures.write_text('{"micro_f1": null, "a|b": 1, "macro_f1": 0.5, "intervals": {}}')
    config = CLASSIFIERS["bert"]
    card = model_card(saved(tmp_path), config, Model(config), str(figures), "x")
    assert "| macro_f1 | 0.5000 |" in card
    assert "| a\\|b | 1 |" in card
    assert "None" not in card
    assert "nan" not in card
