"""The demo's text and task: labels that are true, imports that are gone, parts that are apart."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from elemdist import demo_corpus
from elemdist.demo_corpus import PARTS, Corpus, Document, part_of
from elemdist.errors import UserError

SOURCE = '''\
"""A module."""
import os.path, sys as _sys
from collections import OrderedDict as Ordered
from . import sibling
from .json import decode
try:
    import re
except ImportError:
    re = None
if _sys.platform == "win32":
    import winreg

@Ordered
def decorated(x):
    """Ünïcode before the cut: 漢字."""
    import time; time.sleep(1)
    from json import (
        dumps,
        loads as read,
    )  # a comment goes with its import
    if x: import struct
    return read(x)

def plain():
    return os.getcwd() + sibling.name + decode(1)

def shadowed(re, *, os=None):
    _sys = 1
    return re.compile, os.name, _sys.path

class Thing:
    import heapq
    async def method(self):
        def inner():
            return re.compile("x")
        return inner
    def attribute(self):
        return self.os.path

def nothing():
    return 1
'''


def modules_of(source: str, path: str = "made.py") -> dict[str, set[str]]:
    documents = demo_corpus.function_documents(path, source)
    return {document.id.split(":")[-1]: set(document.modules) for document in documents}


def test_labels_are_what_the_names_lead_to() -> None:
    assert modules_of(SOURCE) == {
        "decorated": {"collections", "time", "json"},  # struct is imported, but not used
        "plain": {"os"},
        "shadowed": set(),
        "method": {"re"},
        "attribute": set(),
        "nothing": set(),
    }


def test_a_package_is_no_label_of_its_own_files() -> None:
    source = "import os, json\ndef f(): return os, json\n"
    assert modules_of(source, "json/tool.py")["f"] == {"os"}
    assert modules_of(source, "json.py")["f"] == {"os"}


def test_import_statements_are_cut_out_and_nothing_else() -> None:
    texts = {d.id.split(":")[-1]: d.text for d in demo_corpus.function_documents("a.py", SOURCE)}
    assert texts["decorated"] == textwrap.dedent(
        '''\
        @Ordered
        def decorated(x):
            """Ünïcode before the cut: 漢字."""
            ; time.sleep(1)
            if x: 
            return read(x)
        '''  # noqa: W291
    )
    assert texts["method"] == textwrap.dedent(
        """\
        async def method(self):
            def inner():
                return re.compile("x")
            return inner
        """
    )


def test_long_functions_are_left_out() -> None:
    source = "import os\ndef short(): return os\ndef long(): return os, '" + 1000 * "x" + "'\n"
    assert modules_of(source) == {"short": {"os"}}


def test_labels_are_the_frequent_public_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_corpus, "MIN_TRAIN_FUNCTIONS", 2)
    monkeypatch.setattr(demo_corpus, "MAX_LABELS", 2)
    used = ["re os json", "re os json _io", "re os _io", "re sys"]
    documents = [Document(f"{k}", f"{k}", frozenset(names.split())) for k, names in enumerate(used)]
    assert demo_corpus.frequent_labels(documents) == ["os", "re"]
    monkeypatch.setattr(demo_corpus, "MAX_LABELS", 9)
    assert demo_corpus.frequent_labels(documents) == ["json", "os", "re"]


def test_what_is_not_python_gives_no_functions() -> None:
    assert modules_of("def broken(:") == {}
    assert modules_of("x = '\0'") == {}


def make_library(root: Path, files: int = 120) -> Path:
    """A small library: 120 files of one function each that uses `os`, and every third also `re`."""
    for number in range(files):
        folder = root / f"package{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        also = "re.compile" if number % 3 == 0 else "None"
        (folder / f"module{number}.py").write_text(
            f"import os, re\n\ndef f{number}():\n    return os.sep, {also}\n", encoding="utf-8"
        )
    for skipped in ("site-packages", "test", "package0/tests"):
        (root / skipped).mkdir()
        (root / skipped / "x.py").write_text("skipped_text = 1\n")
    (root / "latin.py").write_bytes(b"# coding: latin-1\nname = '\xe9'\n")
    (root / "wrong.py").write_bytes(b"name = '\xe9'\n")
    return root


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr(demo_corpus, "MIN_TRAIN_FUNCTIONS", 5)
    return demo_corpus.build(make_library(tmp_path / "a library"))


def test_the_corpus_of_a_small_library(corpus: Corpus) -> None:
    assert corpus.labels == ["os", "re"]
    sources = [doc for part in PARTS for doc in corpus.texts[part] if doc.id.endswith(".py")]
    assert len(sources) == 121
    assert not any("skipped_text" in doc.text for doc in sources)
    assert next(doc.text for doc in sources if doc.id == "latin.py").endswith("'é'\n")
    functions = [doc for part in PARTS for doc in corpus.functions[part]]
    assert len(functions) == 120
    for doc in functions:
        expected = ["os", "re"] if "re.compile" in doc.text else ["os"]
        assert doc.record(corpus.labels)["labels"] == expected


def test_no_file_is_in_two_parts(corpus: Corpus) -> None:
    files = {
        part: {doc.id.split(":")[0] for doc in [*corpus.texts[part], *corpus.functions[part]]}
        for part in PARTS
    }
    files = {part: {name for name in names if name != "topic"} for part, names in files.items()}
    for part in PARTS:
        assert all(part_of(name) == part for name in files[part])
    assert min(map(len, files.values())) >= 5
    shares = [sum(part_of(f"{k}.py") == part for k in range(3000)) / 3000 for part in PARTS]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.03)


def test_equal_functions_are_in_one_part_only() -> None:
    def same(*names: str) -> list[Document]:
        return [Document(f"{name}.py:1:f", "def f(): os\n", frozenset(["os"])) for name in names]

    kept = demo_corpus.labelled_once(
        {"train": same("a", "b"), "val": same("c"), "test": same("d")}, ["os"]
    )
    assert [len(kept[part]) for part in PARTS] == [1, 0, 0]


def test_the_same_library_gives_the_same_corpus(corpus: Corpus, tmp_path: Path) -> None:
    assert demo_corpus.build(make_library(tmp_path / "elsewhere")) == corpus


def test_a_python_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without its library's source"):
        demo_corpus.build(make_library(tmp_path / "few", files=10))


def test_on_the_real_library() -> None:
    corpus = demo_corpus.build()
    assert len(corpus.labels) >= 10
    assert {"os", "sys", "re"} <= set(corpus.labels)
    assert len(corpus.functions["train"]) > 500
    assert len(corpus.functions["test"]) > 100
    parsed = 0
    for doc in corpus.functions["test"]:
        try:
            nodes = list(ast.walk(ast.parse(doc.text)))
        except SyntaxError:
            continue  # a `try:` whose only statement was an import
        parsed += 1
        assert not any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in nodes), doc.id
    assert parsed > 0.9 * len(corpus.functions["test"])
