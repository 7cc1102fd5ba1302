from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from elemdist.errors import EXIT_LOST, EXIT_NOT_SAVED, EXIT_STALLED, EXIT_STOPPED
from elemdist.ports import free_port
from launcher.local import start_ranks
from tests.conftest import REPOSITORY, wait_until

FAULTY = REPOSITORY / "tests" / "faulty_ranks.py"


def script(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "a rank.py"
    path.write_text("import os, sys, time\nrank = int(os.environ['RANK'])\n" + body)
    return path


@pytest.mark.parametrize("asked", ["", "3"])
def test_every_rank_knows_its_place_and_gets_the_arguments(asked, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    body = (
        "keys = 'RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS'\n"
        "text = ' '.join([os.environ[key] for key in keys.split()] + sys.argv[2:])\n"
        "open(f'{sys.argv[1]}/{rank}', 'w').write(text)\n"
    )
    assert start_ranks(script(tmp_path, body), [str(tmp_path), "a b", "$c"], 2) == 0
    threads = asked or str(max(1, len(os.sched_getaffinity(0)) // 2))
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


@pytest.mark.parametrize("code", [1, 78, 79, 130])
def test_the_code_that_all_ranks_end_with_is_returned(tmp_path, capfd, code):
    assert start_ranks(script(tmp_path, f"sys.exit({code})\n"), [], 2) == code
    assert ("ended with code" in capfd.readouterr().err) == (code == 1)


def test_what_a_failed_rank_has_started_ends_with_it(tmp_path):
    body = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "open(f'{sys.argv[1]}/pid-{rank}', 'w').write(str(child.pid))\n"
        "time.sleep(60) if rank == 0 else sys.exit(7)\n"
    )
    assert start_ranks(script(tmp_path, body), [str(tmp_path)], 2) == 7
    wait_until(lambda: not any(runs(pid) for pid in pids(tmp_path)), "the ranks", 90)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_rank_outlives_the_launcher(tmp_path, number):
    body = "open(f'{sys.argv[1]}/pid-{rank}', 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    starter = launch(tmp_path, "none", path=script(tmp_path, body))
    starter.send_signal(number)
    starter.wait(30)
    assert starter.returncode == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not any(runs(pid) for pid in pids(tmp_path)), "the ranks", 90)


def test_ports_are_those_that_no_outgoing_connection_gets():
    ports = {free_port() for _ in range(50)}
    assert len(ports) > 40
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports) < low


# From here on the ranks are those of tests/faulty_ranks.py: real ones over gloo, with the handlers
# and the watchdog of training.


def launch(folder: Path, fault: str, constants: str = "", path: Path = FAULTY, **options):
    """A launcher in a process of its own, when its two ranks are at work."""
    code = (
        "import sys; from pathlib import Path; from launcher import local; "
        f"{constants}\nsys.exit(local.start_ranks(Path(sys.argv[1]), sys.argv[2:], 2))"
    )
    words = [sys.executable, "-c", code, path, folder, fault, "1"]
    with open(folder / "log", "w") as log:
        options = {"stdout": log, "stderr": log, **options}
        starter = subprocess.Popen(words, cwd=REPOSITORY, **options)
    wait_until(lambda: len(pids(folder)) == 2 or starter.poll() is not None, "the ranks", 90)
    assert len(pids(folder)) == 2, (folder / "log").read_text()
    return starter


def pids(folder: Path) -> list[int]:
    return [int(text) for file in folder.glob("pid-*") if (text := file.read_text())]


def saved(folder: Path) -> list[str]:
    return [file.read_text() for file in sorted(folder.glob("saved-*"))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_stop_request_lets_the_ranks_save_and_gives_75(tmp_path, number):
    # The tests themselves may run under nohup.
    heeded = f"import signal; signal.signal({int(number)}, signal.SIG_DFL)"
    starter = launch(tmp_path, "none", heeded)
    starter.send_signal(number)
    time.sleep(0.2)
    starter.send_signal(number)  # again, as some senders do: still one request
    assert starter.wait(60) == EXIT_STOPPED
    assert saved(tmp_path) == ["SIGTERM", "SIGTERM"]
    assert f"{number.name}: the ranks are asked" in (tmp_path / "log").read_text()
    assert not any(runs(pid) for pid in pids(tmp_path))


def test_ctrl_c_in_a_terminal_is_one_stop_request(tmp_path):
    """It goes to all processes of the terminal's foreground group."""
    master, slave = pty.openpty()
    own = "import os, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    starter = launch(tmp_path, "none", own, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    os.write(master, b"\x03")
    assert starter.wait(60) == EXIT_STOPPED
    assert b"SIGINT" in os.read(master, 10_000)
    os.close(master)
    assert saved(tmp_path) == ["SIGTERM", "SIGTERM"]


def test_what_nohup_told_to_ignore_is_ignored(tmp_path):
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    starter = launch(tmp_path, "none", ignore)
    starter.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert starter.poll() is None
    starter.terminate()
    assert starter.wait(60) == EXIT_STOPPED
    assert "SIGHUP" not in (tmp_path / "log").read_text()


def test_a_rank_that_stops_on_a_signal_of_its_own_stops_them_all(tmp_path):
    starter = launch(tmp_path, "usr1")
    assert starter.wait(60) == EXIT_STOPPED
    assert sorted(saved(tmp_path)) == ["None", "SIGUSR1"]  # the loop of training passes it on
    assert (tmp_path / "log").read_text() == ""


def test_a_second_request_ends_ranks_that_do_not_save(tmp_path):
    starter = launch(tmp_path, "slow", "local.AGAIN_S = 0.5")
    starter.terminate()
    wait_until(lambda: saved(tmp_path), "the ranks", 90)
    time.sleep(1)
    assert starter.poll() is None
    starter.terminate()
    assert starter.wait(30) == 128 + signal.SIGTERM
    assert not any(runs(pid) for pid in pids(tmp_path))


def test_ranks_that_do_not_save_in_time_are_killed_and_named(tmp_path):
    starter = launch(tmp_path, "slow", "local.STOP_GRACE_S = 4.0")
    starter.terminate()
    assert starter.wait(60) == EXIT_NOT_SAVED
    assert "rank 1 did not save within 4 s and got killed" in (tmp_path / "log").read_text()
    assert not any(runs(pid) for pid in pids(tmp_path))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_not_the_one_that_noticed(tmp_path, capfd, victim):
    assert start_ranks(FAULTY, [str(tmp_path), "kill", str(victim)], 2) == EXIT_LOST
    assert capfd.readouterr().err.splitlines() == [
        f"rank {1 - victim}: lost contact",
        f"elemdist train: rank {victim} was killed by signal 9 (SIGKILL); the others were ended;"
        " run the same command with --resume",
    ]


def test_a_bug_of_one_rank_is_named_and_not_the_one_that_noticed(tmp_path, capfd):
    assert start_ranks(FAULTY, [str(tmp_path), "raise", "1"], 2) == 1
    err = capfd.readouterr().err
    assert "ValueError: a bug of this rank" in err
    assert "elemdist train: rank 1 ended with code 1" in err
    assert "rank 0 ended" not in err


@pytest.mark.parametrize("fault", ["hang", "freeze"])
def test_a_rank_that_hangs_ends_the_run_with_stacks_and_no_rank_is_left(tmp_path, capfd, fault):
    assert start_ranks(FAULTY, [str(tmp_path), fault, "1"], 2) == EXIT_STALLED
    err = capfd.readouterr().err
    assert "rank 0: no progress for" in err
    (zero, *others) = sorted(path.name for path in (tmp_path / "stacks").iterdir())
    assert zero == "rank-00000.txt"
    if fault == "hang":
        assert "do_harm" in (tmp_path / "stacks" / others[0]).read_text()
        assert "elemdist train: ranks 0, 1 made no progress, see above; run the same" in err
    else:
        assert others == []
        expected = "rank 0 made no progress, see above; rank 1 stood still, held by SIGSTOP, and"
        assert expected in err
    end = json.loads((tmp_path / "end.json").read_text())
    assert end["code"] == EXIT_STALLED
    assert not any(runs(pid) for pid in pids(tmp_path))


def test_ranks_whose_launcher_is_killed_save_and_end(tmp_path):
    starter = launch(tmp_path, "none")
    starter.kill()
    starter.wait()
    wait_until(lambda: not any(runs(pid) for pid in pids(tmp_path)), "the ranks", 90)
    assert saved(tmp_path) == ["SIGTERM", "SIGTERM"]


def test_ranks_that_hang_when_their_launcher_is_killed_end_too(tmp_path):
    starter = launch(tmp_path, "hang", "import os; os.environ['STALL_S'] = '600'")
    starter.kill()
    starter.wait()
    wait_until(lambda: not any(runs(pid) for pid in pids(tmp_path)), "the ranks", 90)
    assert saved(tmp_path) == []
    assert "the process that started it is gone" in (tmp_path / "log").read_text()


def runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
