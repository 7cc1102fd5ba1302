"""The caches of torch.compile and triton never end a run without a word of what to do."""

from __future__ import annotations

import os

import pytest

from elemdist.compile_check import CACHES, compile_failure, leave_bad_caches

BAD = {
    "file": "remove it",
    "file/x": "part of that path",
    "/proc/x": "/proc/x: ",
    "x" * 300: "name",
}


@pytest.mark.parametrize("variable", CACHES)
@pytest.mark.parametrize("name", BAD)
def test_a_cache_that_cannot_be_written_is_left(tmp_path, monkeypatch, variable, name):
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / name))
    (line,) = leave_bad_caches()
    assert line.startswith(f"compile: {variable} is not used: {tmp_path / name}: ")
    assert BAD[name] in line
    assert variable not in os.environ


def test_a_cache_that_can_be_written_is_kept_as_it_is(tmp_path, monkeypatch):
    for name in CACHES:
        monkeypatch.setenv(name, str(tmp_path / name))
    assert leave_bad_caches() == []
    assert [os.listdir(os.environ[name]) for name in CACHES] == [[], []]
    monkeypatch.setenv(CACHES[0], "")
    assert leave_bad_caches() == []


def test_a_failure_of_the_compiler_is_one_line(monkeypatch):
    from torch._inductor.exc import CppCompileError

    monkeypatch.setenv(CACHES[0], "/some/place")
    line = compile_failure(CppCompileError(["g++", "x.cpp"], "one\ntwo"))
    assert line is not None
    assert line.startswith("compile: C++ compile error; if /some/place is damaged or full")
    assert compile_failure(ValueError("x")) is None
