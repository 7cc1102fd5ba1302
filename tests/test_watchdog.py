"""The watchdog in real processes; that all ranks of a job bark is in test_launcher.py."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from elemdist.errors import EXIT_LOST, EXIT_STALLED
from elemdist.watchdog import Watchdog
from tests.conftest import REPOSITORY

SETTINGS = """
import ctypes, os, sys, threading, time
from elemdist import watchdog
from elemdist.watchdog import Watchdog
watchdog.SETTLE_S = 0.3
folder = sys.argv[1]
"""


def run(tmp_path: Path, body: str, **options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SETTINGS + body, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        **options,
    )


def test_a_rank_without_progress_prints_the_stacks_of_all_threads_and_ends(tmp_path):
    done = run(
        tmp_path,
        """
def in_a_helper(): time.sleep(60)
def stuck_in_here(): time.sleep(60)
threading.Thread(target=in_a_helper).start()
told = lambda line, code: print(code, line)
with Watchdog(folder, 3, 1.0, lambda line, code: print(code, line, flush=True)) as dog:
    dog.beat("step 12, pass 1")
    stuck_in_here()
""",
    )
    assert done.returncode == EXIT_STALLED
    (file,) = (tmp_path / "stacks").iterdir()
    assert file.name == "rank-00003.txt"
    assert (
        "elemdist train: rank 3: no progress for 1 s; the last was step 12, pass 1" in done.stderr
    )
    assert str(file) in done.stderr
    for text in (done.stderr, file.read_text()):
        assert "stuck_in_here" in text
        assert "in_a_helper" in text
    assert done.stdout.startswith("77 rank 3: no progress for 1 s; the last was step 12, pass 1")


def test_beats_of_any_thread_and_pauses_hold_it_back(tmp_path):
    done = run(
        tmp_path,
        """
def work():
    for number in range(15):
        dog.beat(f"part {number}")
        time.sleep(0.2)
with Watchdog(folder, 0, 1.5) as dog:
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    with dog.paused("a long evaluation"), dog.paused("one in it"):
        time.sleep(2)
    time.sleep(0.5)
time.sleep(2.5)
print("done")
""",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert not (tmp_path / "stacks").exists()


def test_after_a_pause_it_watches_again(tmp_path):
    done = run(
        tmp_path,
        """
with Watchdog(folder, 0, 1.0) as dog:
    with dog.paused("the checkpoint"): time.sleep(1.5)
    time.sleep(60)
""",
    )
    assert done.returncode == EXIT_STALLED
    assert "the last was the end of the checkpoint" in done.stderr


def test_a_disk_or_an_action_that_hangs_does_not_hold_up_the_end(tmp_path):
    for body in (
        "os.makedirs(folder + '/stacks'); os.mkfifo(folder + '/stacks/rank-00000.txt')",
        "action = lambda line, code: time.sleep(60)",
        "action = lambda line, code: 1 / 0",
    ):
        begin = time.monotonic()
        text = f"action = None\n{body}\nwith Watchdog(folder, 0, 0.5, action): time.sleep(60)"
        done = run(tmp_path, text)
        assert done.returncode == EXIT_STALLED, done.stderr
        assert "no progress" in done.stderr
        assert time.monotonic() - begin < 30


def test_a_library_that_blocks_the_interpreter_is_ended_too(tmp_path):
    done = run(
        tmp_path,
        "with Watchdog(folder, 0, 1.0):\n    time.sleep(0.5)\n    ctypes.PyDLL(None).sleep(50)",
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "Thread" in done.stderr


def test_zero_seconds_watch_nothing(tmp_path):
    done = run(tmp_path, "with Watchdog(folder, 0, 0.0): time.sleep(2.5)")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_rank_whose_launcher_is_gone_does_not_wait_for_the_stall(tmp_path):
    done = run(
        tmp_path,
        """
watchdog.ORPHAN_S = 1.0
os.environ[watchdog.LAUNCHER] = str(os.getpid())
child = os.fork()
if child == 0:
    with Watchdog(folder, 0, 600.0): time.sleep(60)
time.sleep(2.5)
assert os.waitpid(child, os.WNOHANG) == (0, 0), "its launcher is still there"
os._exit(0)
""",
    )  # the pipes stay open until the orphan has ended, too
    assert done.returncode == 0, done.stderr
    assert "the process that started it is gone" in done.stderr


def test_the_code_of_an_orphan_says_that_a_restart_helps(tmp_path):
    done = run(
        tmp_path,
        "watchdog.ORPHAN_S = 0.5\nos.environ[watchdog.LAUNCHER] = '1000000000'\n"
        "with Watchdog(folder, 0, 600.0): time.sleep(60)",
    )
    assert done.returncode == EXIT_LOST


def test_a_rank_of_an_older_attempt_does_not_wait_for_the_stall(tmp_path):
    done = run(
        tmp_path,
        """
from elemdist.attempts import Attempt
watchdog.SUPERSEDED_S, watchdog.ASK_S = 0.5, 0.2
with Watchdog(folder, 0, 600.0) as dog:
    dog.attempt = Attempt.begin(folder)
    time.sleep(2.5)
    print("still here", flush=True)
    Attempt.begin(folder)
    time.sleep(60)
""",
    )
    assert (done.returncode, done.stdout) == (EXIT_LOST, "still here\n"), done.stderr
    assert "; another attempt of its run has begun. The stacks of its threads:" in done.stderr
    assert not (tmp_path / "stacks").exists(), "that is the newer attempt's"


def test_a_beat_costs_next_to_nothing(tmp_path):
    dog = Watchdog(tmp_path, 0, 600.0)
    threads = threading.active_count()
    begin = time.thread_time()
    for _ in range(100_000):
        dog.beat("a step")
    assert (time.thread_time() - begin) / 100_000 < 5e-6  # 1e-6 on a machine at rest
    assert threading.active_count() <= threads
