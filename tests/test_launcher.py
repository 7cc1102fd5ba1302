from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.local import start_ranks
from tests.conftest import REPOSITORY


def script(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "a rank.py"
    path.write_text("import os, sys, time\nrank = int(os.environ['RANK'])\n" + body)
    return path


def test_every_rank_knows_its_place_and_gets_the_arguments(tmp_path):
    body = (
        "keys = 'RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS'\n"
        "text = ' '.join([os.environ[key] for key in keys.split()] + sys.argv[2:])\n"
        "open(f'{sys.argv[1]}/{rank}', 'w').write(text)\n"
    )
    assert start_ranks(script(tmp_path, body), [str(tmp_path), "a b", "$c"], 2) == 0
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // 2))
    for rank in range(2):
        expected = f"{rank} {rank} 2 2 127.0.0.1 {threads} a b $c"
        assert (tmp_path / str(rank)).read_text() == expected


def test_one_rank_that_fails_ends_the_others_and_its_code_is_returned(tmp_path, capfd):
    path = script(tmp_path, "time.sleep(60) if rank == 0 else sys.exit(7)\n")
    begin = time.monotonic()
    assert start_ranks(path, [], 2) == 7
    assert time.monotonic() - begin < 30
    assert "rank 1 ended with code 7" in capfd.readouterr().err


def test_a_user_error_of_a_rank_is_not_explained_twice(tmp_path, capfd):
    assert start_ranks(script(tmp_path, "sys.exit(2)\n"), [], 2) == 2
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_rank_outlives_the_launcher(tmp_path, number):
    path = script(
        tmp_path, "open(f'{sys.argv[1]}/pid{rank}', 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    code = (
        "import sys; from pathlib import Path; from launcher.local import start_ranks;"
        "sys.exit(start_ranks(Path(sys.argv[1]), [sys.argv[2]], 2))"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, path, tmp_path], cwd=REPOSITORY)
    pids: list[int] = []
    deadline = time.monotonic() + 30
    while len(pids) < 2 and time.monotonic() < deadline:
        pids = [int(text) for f in tmp_path.glob("pid*") if (text := f.read_text())]
        time.sleep(0.05)
    assert len(pids) == 2
    starter.send_signal(number)
    starter.wait(30)
    assert starter.returncode == (-number if number == signal.SIGKILL else 128 + number)
    while any(runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(runs(pid) for pid in pids)


def runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
