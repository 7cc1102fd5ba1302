"""How a process of `elemdist` begins and ends: signals, streams, and errors of the machine."""

from __future__ import annotations

import errno
import multiprocessing.synchronize
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from data_prep import pool
from data_prep.settings import ShardSettings
from data_prep.store import write_error
from elemdist import os_errors
from elemdist.errors import UserError
from elemdist.os_errors import is_of_the_machine, line_of, reason_of
from tests.conftest import ELEMDIST, REPOSITORY

# A verb that does what a test says, in the process as a user starts it.
VERB = """
import errno, os, signal, sys, time
from elemdist import __main__, cli
def inspect(argv):
    BODY
    return 0
cli.VERBS["inspect"] = inspect
sys.argv = ["elemdist", "inspect"]
__main__.main()
"""


def run_body(*lines: str, **options) -> subprocess.CompletedProcess[str]:
    code = VERB.replace("BODY", "\n    ".join(lines))
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        [sys.executable, "-c", code], text=True, encoding="utf-8", cwd=REPOSITORY, **options
    )


INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(
    "lines",
    [
        [INTERRUPT, "time.sleep(9)"],
        [
            "try:",
            f"    {INTERRUPT}",
            "except BaseException:",
            "    raise ImportError('of C') from None",
        ],
        ["class A:", f"    def __del__(self): {INTERRUPT}", "A()", "time.sleep(9)"],
        ["try:", f"    {INTERRUPT}", "    time.sleep(9)", "finally:", f"    {INTERRUPT}"],
        ["import atexit", f"atexit.register(lambda: {INTERRUPT})"],
        ["import threading", "threading.Thread(target=time.sleep, args=(1,)).start()", INTERRUPT],
    ],
    ids=["plain", "made an ImportError", "in a destructor", "twice", "in atexit", "with a thread"],
)
def test_ctrl_c_is_one_line_and_130_wherever_it_comes(lines):
    done = run_body(*lines)
    assert (done.returncode, done.stderr) == (130, "elemdist inspect: interrupted\n")


def test_sigterm_clears_up_and_ends_as_by_the_signal():
    done = run_body(
        "try:", "    os.kill(os.getpid(), signal.SIGTERM)", "finally:", "    print('cleared up')"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "cleared up\n")
    assert done.stderr == "elemdist inspect: terminated\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_forked_process_ends_by_the_signal_without_a_word(number):
    done = run_body(
        "child = os.fork()",
        "if not child: time.sleep(60)",
        "time.sleep(0.3)",
        f"os.kill(child, {int(number)})",
        "print(-os.WTERMSIG(os.waitpid(child, 0)[1]))",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"-{int(number)}\n", "")


def test_what_a_shell_ignores_stays_ignored():
    done = run_body(
        "os.kill(os.getpid(), signal.SIGINT)",
        "print('goes on')",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (done.returncode, done.stdout) == (0, "goes on\n")


@pytest.mark.parametrize("after_s", [1.0, 1.6])
def test_ctrl_c_in_the_first_seconds_of_shard_reaches_no_process_of_the_pool(after_s, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("Some text. " * 400_000)
    words = ["shard", text, "--out", tmp_path / "out", "--processes", "2", "--item-mb", "1"]
    process = subprocess.Popen(
        [ELEMDIST, *map(str, words)], stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors in ("", "elemdist shard: interrupted\n")
    assert process.returncode == (130 if errors else 0)


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_streams_that_the_shell_has_closed_are_no_error_and_no_file_takes_their_place(closed):
    done = run_body(
        "print(sys.stdin.read(), os.open(os.devnull, 0) > 2)",
        "print('to the user', file=sys.stderr)",
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: [os.close(handle) for handle in closed],
    )
    assert done.returncode == 0
    assert done.stdout == ("" if 1 in closed else " True\n")
    assert done.stderr == ("" if 2 in closed else "to the user\n")


def test_a_result_for_a_closed_standard_output_is_one_line():
    done = run_body(
        "from elemdist.output import write_out",
        "write_out('result')",
        preexec_fn=lambda: os.close(1),
    )
    assert done.returncode == 2
    assert done.stderr.startswith("elemdist inspect: error: standard output: it is closed")


@pytest.mark.parametrize("locale", ["C", "xx"])
def test_text_is_printed_as_utf_8_whatever_the_locale_is(locale):
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run_body(r"print('\u00fc\u6f22\ud800')", env=environment | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, "ü漢\\ud800\n")


def test_nothing_is_taken_down_at_the_end_but_what_is_registered_runs():
    done = run_body(
        "import atexit, threading",
        "atexit.register(lambda: print('atexit'))",
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()",
        "class A:",
        "    def __del__(self): print('taken down')",
        "sys.kept = A()",
        "sys.stdout.write('unflushed ')",
    )
    assert (done.returncode, done.stdout) == (0, "unflushed thread\natexit\n")


@pytest.mark.parametrize(("code", "text"), [("3", ""), ("None", ""), ("'no'", "no\n")])
def test_sys_exit_keeps_its_code(code, text):
    done = run_body(f"sys.exit({code})")
    assert done.returncode == {"3": 3, "None": 0, "'no'": 1}[code]
    assert done.stderr == text


def test_a_full_disk_under_the_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        for lines in (["print('x')"], ["print('x' * 100_000)"], ["print('x', flush=True)"]):
            done = run_body(*lines, stdout=full)
            assert done.returncode == 2
            assert done.stderr == (
                "elemdist inspect: error: the standard output: No space left on device: make room"
                " there, or name a folder on another disk\n"
            )


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["status", "."], ["shard", "--help"]])
def test_no_verb_prints_to_a_full_disk_without_a_word(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run([ELEMDIST, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "error: the standard output: No space left on device" in done.stderr


MACHINE = [
    "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOENT", "ENOTDIR", "EISDIR",
    "EEXIST", "ENOTEMPTY", "ENAMETOOLONG", "ELOOP", "EXDEV", "ETXTBSY", "EBUSY", "EIO", "ESTALE",
    "ETIMEDOUT", "ENOTCONN", "ENXIO", "ENOTSUP", "ENOSYS", "ENOLCK", "ENOMEM", "EMFILE", "ENFILE",
]  # fmt: skip


@pytest.mark.parametrize("name", MACHINE)
def test_an_error_of_the_machine_says_where_what_and_what_to_do(name):
    error = OSError(getattr(errno, name), os.strerror(getattr(errno, name)), "/a/file")
    assert is_of_the_machine(error)
    line = line_of(error)
    assert "\n" not in line
    where, what = line.split(": ", 1)
    assert where == "/a/file"
    assert os.strerror(error.errno).split(" (")[0][:20] in what
    assert len(what) > len(os.strerror(error.errno)) + 10


def test_the_verb_ends_with_that_line_and_bugs_with_their_traceback():
    done = run_body("raise OSError(errno.ESTALE, 'Stale', '/mnt/a\\x1b[31m')")
    assert done.returncode == 2
    assert done.stderr.startswith("elemdist inspect: error: /mnt/a")
    assert "\x1b" not in done.stderr
    assert done.stderr.count("\n") == 1
    for bug in ("OSError(errno.EINVAL, 'Invalid')", "OSError('no number')", "KeyError(1)",
                "OSError(errno.ENOENT, 'without a name')"):  # fmt: skip
        done = run_body(f"raise {bug}")
        assert done.returncode == 1
        assert "Traceback" in done.stderr


def test_what_a_store_cannot_write_is_one_true_line(tmp_path, monkeypatch):
    place, full = str(tmp_path / "file"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    usage = SimpleNamespace(free=5_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert "the file needs 9,000 bytes and the disk has 5,000" in str(
        write_error(place, 9000, full)
    )
    usage.free = 1 << 40
    assert "its inodes may be used up (see `df -i`)" in str(write_error(place, 9000, full))
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    line = str(write_error(place, 9000, quota))
    assert "Disk quota exceeded: your quota there is used up" in line
    assert "bytes free" not in line


def test_the_limit_on_open_files_is_named_as_it_is():
    text = reason_of(OSError(errno.EMFILE, ""))
    limit = os_errors.resource.getrlimit(os_errors.resource.RLIMIT_NOFILE)[0]
    assert f"{limit:,}" in text
    assert "`ulimit -n 4096`" in text
    assert "fs.file-max" in reason_of(OSError(errno.ENFILE, ""))


def double(task: int, settings: object, report: Callable[[int], None]) -> int:
    report(1)
    if task == 99:
        raise UserError("no 99")
    if task == 98:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * task


def test_a_pool_has_no_semaphores_which_would_stay_where_all_are_killed(monkeypatch):
    def refuse(*words: object, **options: object) -> None:
        raise AssertionError("a semaphore")

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    settings, seen = ShardSettings([], "out", processes=2), []
    progress = SimpleNamespace(at=seen.append)
    tasks = list(range(9))
    assert pool.run_all(double, tasks, settings, progress) == [2 * task for task in tasks]
    assert seen[-1] <= 9
    assert seen == sorted(seen)
    for bad, line in ((99, "no 99"), (98, "a process was killed at its work")):
        with pytest.raises(UserError, match=line):
            pool.run_all(double, [1, bad, 2, 3], settings, progress)
    assert multiprocessing.active_children() == []


def test_little_is_loaded_before_the_signals_are_taken():
    code = "import sys, elemdist.__main__; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", code]
    there = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    shown = subprocess.run(command, env=there, capture_output=True, text=True, check=True).stdout
    ours = {name for name in shown.split() if name.startswith("elemdist")}
    assert ours == {"elemdist", "elemdist.__main__", "elemdist.cpu_primitives"}
    assert not {"typing", "re", "pathlib", "numpy"} & set(shown.split())
