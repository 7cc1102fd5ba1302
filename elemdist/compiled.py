"""Numba's compiler, as all compiled loops use it, and its cache, which must never be in the way.

A cache is shared by processes, versions and machines, may be read-only or full, and a machine that
goes down leaves torn files in it. So each entry is one file: its name says for what it was compiled
and by which versions, its first bytes are the hash of the rest, and whatever fails in reading or
writing it means no more than that the function is compiled again. Numba's own keeps an index that
processes overwrite, and ends in a traceback where that is torn.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from elemdist.atomic import replacing

CONSTANTS = ("rows.py", "../data_prep/classes.py")  # sources whose constants compiled loops hold
DIGEST_BYTES = 32


def import_numba() -> ModuleType:
    """Import numba, whatever its variables in the environment say that it cannot use."""
    # The loops use one thread each, and uncompiled they would take days and count otherwise.
    ignored = {"NUMBA_DISABLE_JIT"} & os.environ.keys()
    threads = os.environ.get("NUMBA_NUM_THREADS")
    if threads is not None and not (threads.isdecimal() and 0 < int(threads) < 4096):
        ignored.add("NUMBA_NUM_THREADS")
    for name in sorted(ignored):
        value = os.environ.pop(name)
        if value not in ("", "0") or name != "NUMBA_DISABLE_JIT":
            print(f"elemdist: {name}={value} is ignored", file=sys.stderr)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        import numba
    for one in caught:  # variables that numba cannot parse, with a traceback each
        if "NUMBA_" in str(one.message):
            text = str(one.message).partition("\n")[0].removesuffix(" could not be parsed.")
            print(f"elemdist: {text} is ignored", file=sys.stderr)
    return numba


numba = import_numba()
from numba.core import caching  # noqa: E402  # once numba is imported
from numba.core.serialize import dumps  # noqa: E402


def versions() -> str:
    """Return what compiled code depends on beside its own function."""
    import llvmlite
    import numpy

    found = [numba.__version__, llvmlite.__version__, numpy.__version__, sys.version]
    for name in CONSTANTS:
        with suppress(OSError):
            found.append((Path(__file__).parent / name).read_text(encoding="utf-8"))
    return repr(found)


class Entries:
    """The files of one function's compiled forms, as numba's own IndexDataCacheFile is called.

    Args:
        place: the first part of their paths. stamp: what all of them depend on.
    """

    def __init__(self, place: str, stamp: str) -> None:
        self.place, self.stamp = place, stamp

    def path(self, key: Any) -> str:
        """Return the path of the form for a signature and a processor."""
        digest = hashlib.sha256(f"{self.stamp}\0{key!r}".encode()).hexdigest()
        return f"{self.place}-{digest[:32]}.nbc"

    def load(self, key: Any) -> Any:
        """Return a compiled form, None where there is no whole one."""
        with open(self.path(key), "rb") as file:
            data = file.read()
        if hashlib.sha256(data[DIGEST_BYTES:]).digest() == data[:DIGEST_BYTES]:
            return pickle.loads(data[DIGEST_BYTES:])
        return None

    def save(self, key: Any, data: Any) -> None:
        """Keep a compiled form."""
        data = dumps(data)
        with replacing(self.path(key), flush=False) as file:
            file.write(hashlib.sha256(data).digest() + data)

    def flush(self) -> None:
        """Forget nothing: an entry for other sources has another name."""


class HomeFolder(caching.UserWideCacheLocator):
    """The user's folder of caches; not where there is no home, when numba takes a relative one."""

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> Any:
        """Return the folder for a function, None where it cannot be."""
        if not os.path.isabs(cls(py_func, py_file).get_cache_path()):
            return None
        return super().from_function(py_func, py_file)


class Places(caching.CompileResultCacheImpl):
    """The folders where compiled forms are kept, the first that can be written."""

    _locator_classes = [  # noqa: RUF012  # as numba has it
        caching.UserProvidedCacheLocator, caching.InTreeCacheLocator, HomeFolder,
    ]  # fmt: skip


class Cache(caching.FunctionCache):
    """Numba's cache of a function, over Entries; whatever fails costs a compilation only."""

    _impl_class = Places

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        place = os.path.join(self._cache_path, self._impl.filename_base)
        self._cache_file = Entries(place, VERSIONS + repr(self._impl.locator.get_source_stamp()))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled form for a signature, None where there is none that can be used."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # by pickle, LLVM or the disk
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled form, if that can be."""
        with suppress(Exception):
            super().save_overload(sig, data)


VERSIONS = versions()
# A call that is not inlined counts references to every array it passes, 5 ns for each of them.
inlined = numba.njit(inline="always")


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function without the interpreter's lock, cached wherever a cache can be written."""
    dispatcher = numba.njit(nogil=True)(function)
    with suppress(RuntimeError, OSError):  # else it is compiled in every process
        dispatcher._cache = Cache(function)
    return dispatcher
