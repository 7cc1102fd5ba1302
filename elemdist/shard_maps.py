"""Shards in memory: mapped without an open file, a bounded number for all sets of a process.

Python's own maps keep a descriptor each, of which a process may have 1,024 by default, and the sets
of a run thousands of shards. These keep none.

A file that is cut short in place while it is mapped (`rsync --inplace`, `truncate`) has no memory
any more after its new end. A read there gets SIGBUS, which ends a process without a word. Here the
handler of that signal puts zeros in that place, so that the read returns, and refuse_cut() then
says which file it was; a reader that does not call it is ended with that line at once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import signal
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elemdist.errors import EXIT_USER_ERROR, UserError

MOST = 1024  # maps of a process: the tables of 64 GiB in use take 128 MiB
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
FAILED = ctypes.c_void_p(-1).value
# Of Linux on these machines, where the structures below are those of the C library.
HANDLES_BUS_ERRORS = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
MAP_FIXED, MAP_ANONYMOUS, SA_SIGINFO, FAULT_ADDRESS = 0x10, 0x20, 4, 16


@dataclass
class Range:
    """A range of memory that a file, of at least `file_bytes`, is mapped to; `checked`: its reader
    calls refuse_cut()."""

    path: str
    bytes: int
    file_bytes: int
    checked: bool
    cut: bool = False


_ranges: dict[int, Range] = {}  # by their first address


class Map:
    """A part of a file as an array for numpy, read only, until nothing refers to it any more."""

    def __init__(self, path: str, begin: int, size: int, checked: bool) -> None:
        """Map `size` bytes, at least 1, from byte `begin` on.

        Raises:
            OSError: the file cannot be opened or mapped. ValueError: it ends before the part does.
        """
        skipped = begin % mmap.ALLOCATIONGRANULARITY
        self.range = Range(path, size + skipped, begin + size, checked)
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.fstat(handle).st_size
            if there < begin + size:
                raise ValueError(f"it has {there:,} bytes instead of {begin + size:,}")
            how = (mmap.PROT_READ, mmap.MAP_PRIVATE, handle, begin - skipped)
            self.address = LIBC.mmap(None, size + skipped, *how)
            if self.address == FAILED:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
        finally:
            os.close(handle)
        _ranges[self.address] = self.range
        place = (self.address + skipped, True)
        self.__array_interface__ = {"data": place, "shape": (size,), "typestr": "|u1", "version": 3}
        handle_bus_errors()

    def __del__(self, unmap: Callable[..., Any] = LIBC.munmap) -> None:
        if "__array_interface__" in self.__dict__:
            del _ranges[self.address]  # first: the next map may get the same address
            unmap(self.address, self.range.bytes)


def map_file(path: str, begin: int, size: int, checked: bool = False) -> np.ndarray:
    """Return `size` bytes of a file from byte `begin` on, as (size,) uint8, read only.

    Args:
        checked: the caller calls refuse_cut() after each read, before it uses what it has read.

    Raises:
        OSError: the file cannot be opened or mapped. ValueError: it ends before the part does.
    """
    return np.asarray(Map(path, begin, size, checked)) if size else np.frombuffer(b"", np.uint8)


class Views(OrderedDict[int, memoryview]):
    """The open maps of one set by the number of the shard, the one that was used last at the end.

    Another thread, for its own set, may close any of them at any time.
    """

    def __init__(self) -> None:
        super().__init__()
        _all_views.append(weakref.ref(self))

    def open(self, number: int, view: memoryview) -> None:
        """Keep a map open; where this process has too many, close the oldest of the set with most
        of them."""
        self[number] = view
        sets = open_maps()
        with suppress(KeyError):
            while sum(map(len, sets)) > most():
                max(sets, key=len).popitem(last=False)


_all_views: list[weakref.ref[Views]] = []


def open_maps() -> list[Views]:
    """Return the open maps of each set of this process."""
    found = [(one, one()) for one in _all_views]
    for one, views in found:
        if views is None:
            with suppress(ValueError):  # another thread was faster
                _all_views.remove(one)
    return [views for _, views in found if views is not None]


def close_all() -> None:
    """Close the maps of all sets; what is needed is mapped again."""
    for views in open_maps():
        views.clear()


os.register_at_fork(after_in_child=close_all)  # a child has signal handlers of its own


def most() -> int:
    """Return how many maps may be open: few of those that the system allows, MOST at most."""
    global _most
    if _most is None:
        _most = MOST
        with suppress(OSError, ValueError):
            allowed = int(Path("/proc/sys/vm/max_map_count").read_text())
            _most = max(16, min(MOST, allowed // 8))
    return _most


_most: int | None = None


def refuse_cut(views: Iterable[memoryview]) -> None:
    """Raise UserError if one of these maps was read after the end that its file has now."""
    if not _handler.cut:
        return
    for view in views:
        mapped: Any = view.obj
        if isinstance(mapped.base, Map) and mapped.base.range.cut:
            raise UserError(loss_of(mapped.base.range))


def loss_of(found: Range) -> str:
    """Return what the user reads about a file whose memory is gone."""
    with suppress(OSError):
        if os.stat(found.path).st_size >= found.file_bytes:
            return f"{found.path} cannot be read any more: its disk or file server fails, see dmesg"
    return (
        f"{found.path} was cut short while in use: copy it again, and not in place"
        " (rsync --inplace)"
    )


class Action(ctypes.Structure):
    """The C library's struct sigaction."""

    _fields_ = (
        ("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )  # fmt: skip


class BusErrors:
    """The handler of SIGBUS in this process; `before` is the one that was there.

    It runs in the thread whose read of a map failed, at that place, so that no lock of the
    interpreter or of the allocator is held half way. Any other bus error goes to `before`.
    """

    def __init__(self) -> None:
        self.process, self.before, self.cut = 0, Action(), False
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self.called = kind(self.on_bus_error)

    def install(self) -> None:
        """Take the signal, once in a process."""
        if self.process == os.getpid() or not HANDLES_BUS_ERRORS:
            return
        self.process = os.getpid()
        action = Action(ctypes.cast(self.called, ctypes.c_void_p).value, flags=SA_SIGINFO)
        LIBC.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(self.before))

    def on_bus_error(self, number: int, info: int, context: int) -> None:
        """Put zeros where a map has lost its file, from the address of the read on."""
        address = ctypes.c_void_p.from_address(info + FAULT_ADDRESS).value or 0
        for first, found in list(_ranges.items()):
            end = first + found.bytes
            if first <= address < end:
                self.cut = found.cut = True
                if not found.checked:
                    os.write(2, f"elemdist: error: {loss_of(found)}\n".encode())
                    os._exit(EXIT_USER_ERROR)
                page = address - address % mmap.PAGESIZE
                how = (mmap.PROT_READ, mmap.MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
                LIBC.mmap(page, end - page, *how)
                return
        LIBC.sigaction(number, ctypes.byref(self.before), None)  # the read is done again: its turn


_handler = BusErrors()
handle_bus_errors = _handler.install
