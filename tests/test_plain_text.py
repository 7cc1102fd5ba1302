"""Text of any kind stays in its place: on a terminal, in Markdown, in HTML and in pictures."""

from __future__ import annotations

import json
import re
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from elemdist import compare_noise, compare_table, page
from elemdist.plain_text import markdown_cell, printable, shell_word
from elemdist.report import run
from elemdist.report_settings import ReportSettings
from tests.test_report import Words

HOSTILE = [
    "\x1b[2J\x1b]8;;http://x\x07", "\x9b31m\x90q\x9d0;t\x9c", "a\rb\x08c\x00d\x7fe",
    "one\ntwo\u2028three\x85",
    "abc\u202ecba\u2066\u2069\u200f", "half \ud800 a pair", "</td><script>alert(1)</script>",
    "\"' onload='x' \"", "a | b || c \\| d", "`code` ``` *b* __c__ ~~d~~ <i> [e](f) ![g](h)",
    "$\\frac{1}{0}$ $x", "_leading",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_hidden_is_printed(text):
    shown = printable(text)
    assert not {unicodedata.category(one) for one in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not re.search("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode()
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


def test_text_of_all_languages_stays_as_it_is():
    for text in ("Grüße, 日本, العربية, עברית, हिन्दी", "👩‍👩‍👧 می‌روم", "naïve – “x”", "\xa0"):
        assert printable(text) == text
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def unescaped(cell: str) -> str:
    return re.sub(r"\\([^a-z\s])", r"\1", cell)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_name_stays_in_its_cell_of_a_table_in_markdown(text):
    figures = {
        name: {seed: {"micro_f1": 0.5 + seed / 10, "training": []} for seed in (1, 2)}
        for name in (text, "other")
    }
    found = compare_table.results(figures, ["micro_f1"], Path("nowhere"), 0)
    found |= {"budget": {"steps": 5}, "seeds": [1, 2], "failed": {text: text}}
    lines = compare_table.table(found).splitlines()
    assert [bool(line) for line in lines] == [True] * 4 + [False] + [True] * 3
    points = [{"run": text, "kind": "drop", "rate": 0.0, "micro_f1": None}]
    for row in (lines[2], compare_noise.noise_table(points).splitlines()[2]):
        cells = re.split(r"(?<!\\)(?:\\\\)*\|", row)
        assert len(cells) == (6 if row is lines[2] else 4), row
        assert unescaped(cells[1].strip()).startswith(printable(text).strip()[:3])
        assert not re.search(r"(?<!\\)(?:\\\\)*[`<*]", markdown_cell(text))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_name_is_text_on_a_page(text, tmp_path):
    """Of a model, a label, a metric, a source, a setting, a budget, and in words beside them."""
    figures = {"micro_f1": 0.5, text: 0.25, "data": text, "training": []}
    figures["labels"] = {text: {"documents": 3, "f1": None}}
    figures["by_source"] = {text: {"bits_per_byte": 1.0, text: text}}
    figures["intervals"] = {"micro_f1": None, text: [0.1, 0.2]}
    found = compare_table.results({text: {1: figures}, "b": {1: figures}}, [text], tmp_path, 0)
    found |= {"budget": {text: 5}, "seeds": [1], "failed": {text: text}}
    named = {"run": text, "kind": text, "seed": 1}
    points = [{**named, "rate": 0, "micro_f1": None}, {**named, "rate": 1, "micro_f1": 0.5}]
    if "\ud800" in text:  # such a file is refused
        points = []
    for name, tree in (("results", found), ("noise", {"points": points, "settings": {}})):
        (tmp_path / f"{name}.json").write_text(json.dumps(tree))
    run(ReportSettings([str(tmp_path)], out=str(tmp_path / "r.html")))
    read = Words((tmp_path / "r.html").read_text())
    assert not read.tags & {"script", "i", "img"}
    assert read.has(printable(text))
    assert "\x1b" not in (tmp_path / "r.html").read_text()


def test_what_is_no_number_is_a_dash():
    assert [page.text(value) for value in (None, np.nan, np.inf, 0.5)] == ["–", "–", "–", "0.5000"]


def test_a_path_in_a_command_is_one_word_and_no_option():
    names = [name for name in HOSTILE if "\0" not in name and "\ud800" not in name]
    for name in [*names, "-x", "--out", "a b", "~", "$HOME", "*", "!!", ""]:
        command = f"printf %s {shell_word(name)}"
        shown = subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout
        assert shown.decode().removeprefix("./" if name[:1] == "-" else "") == name
    assert shell_word("runs/a") == "runs/a"
