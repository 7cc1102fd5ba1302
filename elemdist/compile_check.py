"""Whether ``torch.compile`` can work here, asked before it fails in the middle of a first step."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

from elemdist.os_errors import line_of

FIRST_PYTHON_TOO_NEW = (3, 15)
FIRST_FREE_THREADED = (3, 13, 3)
CXX = "g++"  # the one name that torch looks for where $CXX is not set
OTHER_CXX = ("c++", "clang++")
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
CACHE_BYTES = 1 << 22  # that must be free there
CC = ("gcc", "clang", "cc")  # the names that triton looks for where $CC is not set


def compile_obstacle(device: str = "cpu") -> str | None:
    """Why ``torch.compile`` cannot work on this machine; None if nothing speaks against it.

    Args:
        device: ``cpu``, whose kernels a C++ compiler makes, or ``cuda``, for which triton does
            with the help of a C compiler.
    """
    if device == "cuda":
        return python_obstacle() or triton_obstacle()
    return python_obstacle() or cxx_obstacle() or folder_obstacle()


def python_obstacle() -> str | None:
    """Why torch.compile cannot work with this Python; None: it can."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= FIRST_PYTHON_TOO_NEW:
        return f"torch.compile does not know Python {version}; take an older one"
    free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED") == 1
    if free_threaded and sys.version_info < FIRST_FREE_THREADED:
        return f"torch.compile does not know the free-threaded Python {version}; take a usual one"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return (
            f"{header} is missing, which what torch.compile makes includes; install the headers"
            f" of Python {version} (package python3-dev or the like)"
        )
    return None


def cxx_obstacle() -> str | None:
    """Why it finds no C++ compiler; None: it does."""
    named = os.environ.get("CXX")
    if named is not None:
        return None if shutil.which(named) else f"$CXX is {named}, which is no program here"
    if shutil.which(CXX):
        return None
    other = next(filter(shutil.which, OTHER_CXX), None)
    advice = f"set CXX={other}" if other else f"install {CXX}, or set CXX to another one"
    return f"there is no C++ compiler {CXX} here; {advice}"


def folder_obstacle() -> str | None:
    """torch writes its own folder into the compiler's command without quotes."""
    spec = find_spec("torch")
    folder = str(Path(spec.origin).parent) if spec and spec.origin else ""
    if not re.search(r"""[\s'"\\]""", folder):
        return None
    return (
        f"torch lies in '{folder}', and torch.compile cannot take a path with a space or a quote;"
        " set elemdist up in another folder"
    )


def triton_obstacle() -> str | None:
    """Why it can make no GPU kernels; None: it can."""
    if find_spec("triton") is None:
        return "the package triton is not installed, which makes torch.compile's GPU kernels"
    named = os.environ.get("CC")
    if named is not None:
        return None if shutil.which(named) else f"$CC is {named}, which is no program here"
    if any(map(shutil.which, CC)):
        return None
    return f"there is no C compiler here ({', '.join(CC)}); install one, or set CC to it"


def leave_bad_caches() -> list[str]:
    """Take the variables of caches that cannot be written out of the environment, so that torch
    and triton use folders of their own; return a line about each."""
    lines = []
    for name in CACHES:
        if not (place := os.environ.get(name)):
            continue
        try:
            Path(place).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(bytes(CACHE_BYTES))
                file.flush()
        except OSError as error:
            del os.environ[name]
            lines.append(f"compile: {name} is not used: {line_of(error, place)}")
    return lines


def compile_failure(error: BaseException) -> str | None:
    """Return the line about an error that torch.compile ends with; None for any other error."""
    if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return None
    folder = os.environ.get(CACHES[0]) or f"{tempfile.gettempdir()}/torchinductor_*"
    first = str(error).strip().partition("\n")[0][:300]
    return (
        f"compile: {first or type(error).__name__}; if {folder} is damaged or full, remove it, or"
        f" set {CACHES[0]} to another folder; or leave out --compile"
    )
