"""The demo's text and task, out of what every Python installation has: its standard library.

Text: the library's source files and the language's documentation (pydoc's topics).
Task: which modules does this function use? A function is one document, its import statements
are cut out, and the labels are the modules that its names lead to: ast resolves them, so they are
true by construction. Files are parted by a hash of their path; no file of the test part is in the
training text, with or without labels.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import sysconfig
import textwrap
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from elemdist.errors import UserError

# Tests and generated tables are unlike code that a person writes; the rest is not the library's.
SKIPPED_FOLDERS = frozenset(
    [
        *("__pycache__", "dist-packages", "site-packages", "test", "tests", "idle_test"),
        *("encodings", "idlelib", "lib2to3", "pydoc_data", "turtledemo"),
    ]
)
PARTS = ("train", "val", "test")
MAX_FUNCTION_BYTES = 1000  # longer ones teach less for their time, and the demo has little
MAX_LABELS = 20
MIN_TRAIN_FUNCTIONS = 20  # of a label: fewer teach a model that starts from nothing too little
MIN_FILES = 50

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
IMPORTS = (ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Document:
    """A text with its origin; `modules` are its true labels."""

    id: str
    text: str
    modules: frozenset[str] = frozenset()

    def record(self, labels: list[str]) -> dict[str, object]:
        """The JSON Lines record, with those of its modules that are labels of the task."""
        return {"id": self.id, "text": self.text, "labels": sorted(self.modules & set(labels))}


@dataclass(frozen=True)
class Corpus:
    """What the demo trains on: whole texts, and functions with the modules they use, by part."""

    texts: dict[str, list[Document]]
    functions: dict[str, list[Document]]
    labels: list[str]


def build(root: Path | None = None) -> Corpus:
    """The corpus of the library under `root`, by default the running Python's."""
    root = root or Path(sysconfig.get_path("stdlib"))
    texts: dict[str, list[Document]] = {part: [] for part in PARTS}
    functions: dict[str, list[Document]] = {part: [] for part in PARTS}
    for path, source in source_files(root):
        texts[part_of(path)].append(Document(path, source))
        functions[part_of(path)].extend(function_documents(path, source))
    if sum(map(len, texts.values())) < MIN_FILES:
        raise UserError(f"{root}: this Python comes without its library's source; take another one")
    for topic in documentation():
        # Documentation has no labels to keep apart, so what falls to the test part is not lost.
        part = part_of(topic.id)
        texts["train" if part == "test" else part].append(topic)
    labels = frequent_labels(functions["train"])
    return Corpus(texts, labelled_once(functions, labels), labels)


def source_files(root: Path) -> Iterator[tuple[str, str]]:
    """(path below root, text) of every source file, in the order of the paths."""
    for path in sorted(root.rglob("*.py")):
        below = path.relative_to(root)
        # _sysconfigdata*.py is generated: it tells of the machine that built this Python.
        if SKIPPED_FOLDERS & set(below.parts) or path.name.startswith("_sysconfigdata"):
            continue
        try:
            with tokenize.open(path) as file:
                yield below.as_posix(), file.read()
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue  # the library holds files that are wrong on purpose


def documentation() -> Iterator[Document]:
    """The topics of the language reference; some distributions leave them out."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return
    for name in sorted(topics):
        yield Document(f"topic:{name}", topics[name])


def part_of(path: str) -> str:
    """train (7 in 10), val (1) or test (2): decided by the path alone, so it never changes."""
    digit = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % 10
    return "test" if digit < 2 else "val" if digit == 2 else "train"


def function_documents(path: str, source: str) -> Iterator[Document]:
    """The functions and methods of a file, without imports, each with the modules it uses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes such as "\d", of no concern here
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    own = path.split("/")[0].removesuffix(".py")
    module_names = imported_names(within(tree, (*FUNCTIONS, ast.ClassDef)))
    cut = Cutter(source)
    for function in within(tree, FUNCTIONS):
        if isinstance(function, FUNCTIONS):
            text = cut.without_imports(function)
            if len(text.encode()) <= MAX_FUNCTION_BYTES:
                modules = used_modules(function, module_names) - {own}
                name = f"{path}:{function.lineno}:{function.name}"
                yield Document(name, text, frozenset(modules))


def within(tree: ast.AST, closed: tuple[type[ast.AST], ...]) -> list[ast.AST]:
    """The nodes below `tree` in the order of the source; those of a closed type stay closed."""
    found: list[ast.AST] = []
    waiting = [tree]  # not recursive: a chain of elif nests deeper than Python's stack
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            found.append(child)
            if not isinstance(child, closed):
                waiting.append(child)
    return sorted(
        found, key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0))
    )


def imported_names(nodes: Iterable[ast.AST]) -> dict[str, str]:
    """Name in the code -> top-level module that it leads to, for absolute imports."""
    names: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = top
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                names[alias.asname or alias.name] = node.module.split(".")[0]
    return names


def used_modules(function: ast.AST, module_names: dict[str, str]) -> set[str]:
    """Top-level modules that names in the function lead to, own variables not mistaken for one."""
    inside = list(ast.walk(function))
    names = [node for node in inside if isinstance(node, ast.Name)]
    own = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    own |= {node.arg for node in inside if isinstance(node, ast.arg)}
    own |= {node.name for node in inside[1:] if isinstance(node, (*FUNCTIONS, ast.ClassDef))}
    leads_to = {name: module for name, module in module_names.items() if name not in own}
    leads_to |= imported_names(inside)
    return {leads_to[node.id] for node in names if node.id in leads_to} - {"__future__"}


class Cutter:
    """Takes functions out of a source text. Works on UTF-8, as ast counts columns in its bytes."""

    def __init__(self, source: str) -> None:
        self.source = source.encode()
        self.line_starts = [0]
        for line in self.source.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))

    def without_imports(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
        """The function from its first decorator on, import statements cut out, indents removed."""
        first_line = min(node.lineno for node in [function, *function.decorator_list])
        done, end = self.line_starts[first_line - 1], self.span(function)[1]
        kept = []
        for node in within(function, ()):
            if isinstance(node, IMPORTS):
                first, last = self.whole_lines(*self.span(node))
                kept.append(self.source[done : max(first, done)])
                done = last
        kept.append(self.source[done:end])
        return textwrap.dedent(b"".join(kept).decode()).rstrip() + "\n"

    def span(self, node: ast.stmt) -> tuple[int, int]:
        """First byte and end of a statement."""
        last_line, last_column = node.end_lineno, node.end_col_offset
        assert last_line is not None
        assert last_column is not None
        first = self.line_starts[node.lineno - 1] + node.col_offset
        return first, self.line_starts[last_line - 1] + last_column

    def whole_lines(self, first: int, last: int) -> tuple[int, int]:
        """The span widened to its lines, where only blanks or a comment share them with it."""
        line = self.source.rfind(b"\n", 0, first) + 1
        after = self.source.find(b"\n", last) + 1 or len(self.source)
        rest = self.source[last:after].strip()
        if self.source[line:first].strip() or (rest and not rest.startswith(b"#")):
            return first, last
        return line, after


def frequent_labels(documents: Iterable[Document]) -> list[str]:
    """The labels of the task, in order: the public modules that enough training functions use."""
    used = (module for document in documents for module in document.modules)
    counts = Counter(module for module in used if not module.startswith("_"))
    ranked = sorted(counts, key=lambda module: (-counts[module], module))
    return sorted(name for name in ranked[:MAX_LABELS] if counts[name] >= MIN_TRAIN_FUNCTIONS)


def labelled_once(
    functions: dict[str, list[Document]], labels: list[str]
) -> dict[str, list[Document]]:
    """Functions with at least one label; of equal ones the first, so that none is in two parts."""
    seen: set[str] = set()
    kept: dict[str, list[Document]] = {part: [] for part in PARTS}
    for part in PARTS:
        for document in functions[part]:
            if document.modules & set(labels) and document.text not in seen:
                seen.add(document.text)
                kept[part].append(document)
    return kept
