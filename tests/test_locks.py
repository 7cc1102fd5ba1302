from __future__ import annotations

import errno
import fcntl
import os

import pytest

from elemdist.errors import UserError
from elemdist.locks import lock


@pytest.fixture
def handles(tmp_path):
    """Three times the same file, opened as by three processes."""
    (tmp_path / "lock").touch()
    found = [os.open(tmp_path / "lock", os.O_RDWR) for _ in range(3)]
    yield found
    for handle in found[1:]:
        os.close(handle)


def test_one_holds_it_until_it_is_closed(handles):
    first, second, _ = handles
    assert lock(first, "taken") is None
    for shared in (False, True):
        with pytest.raises(UserError, match=r"^taken$"):
            lock(second, "taken", shared=shared)
    os.close(first)
    assert lock(second, "taken") is None


def test_those_that_share_it_keep_others_out(handles):
    first, second, third = handles
    assert lock(first, "taken", shared=True) is None
    assert lock(second, "taken", shared=True) is None
    with pytest.raises(UserError, match=r"^taken$"):
        lock(third, "taken")
    os.close(first)


def test_a_file_system_without_locks_is_told(handles, monkeypatch):
    def refuse(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert lock(handles[0], "taken") == os.strerror(errno.ENOLCK)
    os.close(handles[0])
