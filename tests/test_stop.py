from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from elemdist.errors import EXIT_LOST
from elemdist.ports import free_port
from elemdist.stop import StopRequest, lost_contact, read_end, write_end
from tests import faulty_ranks
from tests.conftest import run_command
from tests.forkserver import rank_process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_sets_the_flag_and_the_old_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert request.reason is None
        os.kill(os.getpid(), number)
        assert request.reason == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.reason == number.name, "the first reason is the reason"
    assert signal.getsignal(number) is before


def test_the_second_ctrl_c_ends_at_once_and_restores_the_handlers():
    before = signal.getsignal(signal.SIGINT)
    reached = []

    def work() -> None:
        with StopRequest() as request:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(request.reason)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("too far")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["SIGTERM"]
    assert signal.getsignal(signal.SIGINT) is before


def test_sigquit_ends_at_once():
    before = signal.getsignal(signal.SIGQUIT)  # ignored, where a script began this with "&"
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGQUIT)
    assert signal.getsignal(signal.SIGQUIT) is before


def test_a_signal_while_another_thread_works_disturbs_neither(tmp_path):
    written = tmp_path / "file"

    def write() -> None:
        with open(written, "w") as file:
            for _ in range(200):
                file.write("x" * 1000)
                time.sleep(0.001)

    with StopRequest() as request:
        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.001)
        writer.join()
    assert request.reason == "SIGTERM"
    assert written.stat().st_size == 200_000


def test_the_end_of_a_run_is_read_as_it_was_written(tmp_path):
    assert read_end(tmp_path) is None
    write_end(tmp_path, "running", 0)
    begun = {"state": "running", "step": 0, "reason": "", "code": 0, "attempt": 0}
    assert read_end(tmp_path) == begun
    write_end(tmp_path, "stopped", 7, "SIGTERM “quoted”", 75, attempt=3)
    assert read_end(str(tmp_path)) == {
        "state": "stopped",
        "step": 7,
        "reason": "SIGTERM “quoted”",
        "code": 75,
        "attempt": 3,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["end.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "done"}', '{"state": 1, "step": "x"}'])
def test_a_damaged_end_is_no_end(text, tmp_path):
    (tmp_path / "end.json").write_text(text)
    assert read_end(tmp_path) is None


def codes(operation: str, victim: int, number: int, timeout_s: float) -> list[int]:
    port = str(free_port())
    words = (port, operation, victim, number, timeout_s)
    processes = [rank_process(faulty_ranks.lose, rank, *words) for rank in range(2)]
    for process in processes:
        process.start()
    processes[1 - victim].join(60)
    for process in processes:
        process.kill()
        process.join()
    return [process.exitcode or 0 for process in processes]


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    "operation", ["all_reduce", "reduce_scatter", "broadcast", "barrier", "objects"]
)
def test_a_killed_peer_is_a_lost_contact_in_every_collective(operation, victim):
    expected = [EXIT_LOST, EXIT_LOST]
    expected[victim] = -signal.SIGKILL
    assert codes(operation, victim, signal.SIGKILL, 60) == expected


@pytest.mark.parametrize(("operation", "victim"), [("all_reduce", 1), ("broadcast", 0)])
def test_a_silent_peer_is_a_lost_contact_when_the_time_is_over(operation, victim):
    expected = [EXIT_LOST, EXIT_LOST]
    expected[victim] = -signal.SIGKILL  # by this test, afterwards
    assert codes(operation, victim, signal.SIGSTOP, 3) == expected


def test_other_errors_are_not_taken_for_a_lost_contact():
    port = free_port()
    store = dist.TCPStore("127.0.0.1", port, is_master=True)
    with pytest.raises(dist.DistNetworkError) as taken:
        dist.TCPStore("127.0.0.1", port, is_master=True)
    del store
    with pytest.raises(RuntimeError) as shape:
        torch.zeros(2) @ torch.zeros(3)
    for error in (
        taken.value,
        shape.value,
        ConnectionResetError("Connection reset by peer"),
        ValueError("Timed out waiting"),
        dist.DistBackendError("NCCL error: ncclInvalidUsage: Duplicate GPU detected"),
        dist.DistBackendError("NCCL error: ncclUnhandledCudaError: out of memory"),
    ):
        assert not lost_contact(error), error
    remote = dist.DistBackendError("ncclRemoteError: a remote process exited or a network error")
    wrapped = ValueError("while gathering")
    wrapped.__cause__ = remote
    assert lost_contact(remote)
    assert lost_contact(wrapped)


def test_the_store_of_a_rank_that_is_gone_is_a_lost_contact(tmp_path: Path):
    port = free_port()
    server = dist.TCPStore("127.0.0.1", port, is_master=True)
    client = dist.TCPStore("127.0.0.1", port)
    client.set("key", "value")
    del server
    with pytest.raises(RuntimeError) as lost:
        client.get("key")
    assert lost_contact(lost.value), repr(lost.value)


def test_a_rank_ends_without_the_interpreters_end_and_loses_no_output():
    """gloo's threads can abort a process whose interpreter is being taken down."""
    program = (
        "import atexit, sys; from elemdist.stop import end_process; atexit.register(print, 'down');"
        "print('done'); print('a warning', file=sys.stderr); end_process(7)"
    )
    done = run_command(sys.executable, "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (7, "done\n", "a warning\n")
