"""`elemdist bench`: runs a benchmark of the source checkout, ours and its peers in one run."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

from elemdist.errors import UserError, nearest

ROOT = Path(__file__).resolve().parent.parent


def benchmarks() -> dict[str, str]:
    """The benchmarks by name, each with the first line of what it says of itself.

    Raises:
        UserError: this elemdist was installed without them.
    """
    files = sorted((ROOT / "tests" / "bench").glob("bench_*.py"))
    if not files:
        raise UserError(
            f"the benchmarks come with the source code, in tests/bench, and {ROOT} has none: "
            "run elemdist out of a checkout (pip install -e .)"
        )
    found = {}
    for file in files:
        told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[file.stem.removeprefix("bench_")] = told.partition("\n")[0]
    return found


def usage() -> str:
    """What there is, and the options that all have."""
    lines = [f"  {name:13} {told}" for name, told in benchmarks().items()]
    return "\n".join(
        [
            "usage: elemdist bench NAME [--quick] [--json FILE] [argument ...]",
            "",
            *lines,
            "",
            "  --quick      tiny input, to see that it runs (default: off)",
            "  --json FILE  also write the figures there (default: none); all has --out DIR",
            "",
            "elemdist bench NAME --help lists what else it takes.",
        ]
    )


def run(argv: list[str]) -> int:
    """Runs the benchmark argv[0] with the other arguments; the exit code.

    Raises:
        UserError: no such benchmark, or no source checkout.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    known = benchmarks()
    name = argv[0]
    if name not in known:
        raise UserError(
            f"no benchmark '{name}'{nearest(name, known)}; there are {', '.join(known)}"
        )
    sys.path.insert(0, str(ROOT))
    sys.argv = [f"elemdist bench {name}", *argv[1:]]
    try:
        runpy.run_module(f"tests.bench.bench_{name}", run_name="__main__")
    except ImportError as error:
        raise UserError(f"{name} compares with a package that is missing: {error}") from error
    return 0
