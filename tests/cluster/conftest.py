"""A real SLURM of two nodes on this machine, with ports, folders and keys of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ELEMDIST, REPOSITORY

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
NODES = 2
WAIT_S = 60

CONFIGURATION = """
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=bf_interval=1,sched_interval=1
MailProg=/bin/true
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """The cluster as its users see it.

    Args:
        folder: where its state and logs lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Starts all daemons, and waits until the nodes are idle."""
        ports = free_ports(NODES + 1)
        host = "NodeHostname=localhost NodeAddr=127.0.0.1 CPUs=4"
        nodes = "\n".join(
            f"NodeName=n{number} {host} Port={port}" for number, port in enumerate(ports[1:], 1)
        )
        for name in ("state", *(f"spool-n{k + 1}" for k in range(NODES))):
            (self.folder / name).mkdir()
        configuration = self.folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(folder=self.folder, ports=ports, nodes=nodes))
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o400)
        self.folder.chmod(0o755)
        names = ("socket", "key", "pid", "log", "seed")
        socket_, key, pid, log, seed = (str(self.folder / f"munge.{name}") for name in names)
        self._start(
            "munged", "--foreground", "--force", f"--socket={socket_}", f"--key-file={key}",
            f"--pid-file={pid}", f"--log-file={log}", f"--seed-file={seed}",
        )  # fmt: skip
        wait_for(lambda: Path(socket_).exists(), "munged")
        self._start("slurmctld", "-D", "-f", str(configuration))
        for k in range(NODES):
            self._start("slurmd", "-D", "-N", f"n{k + 1}", "-f", str(configuration))
        wait_for(
            lambda: self.command("sinfo", "-h", "-o", "%T").stdout.split() == ["idle"], "nodes"
        )

    def _start(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.out").open("ab")
        self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def command(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command of SLURM on this cluster; `more` is added to the environment."""
        path = f"{Path(ELEMDIST).parent}:{os.environ['PATH']}"
        environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path} | more
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            cwd=REPOSITORY,
            env=os.environ | environment,
        )

    def wait_until_empty(self, timeout_s: float) -> None:
        """Waits until no job is left."""

        def empty() -> bool:
            listed = self.command("squeue", "-h")
            return listed.returncode == 0 and not listed.stdout.strip()

        wait_for(empty, "the jobs to end", timeout_s)

    def stop(self) -> None:
        """Ends what start() started, the nodes first."""
        self.command("scancel", "--user=root")
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(condition: object, what: str, timeout_s: float = WAIT_S) -> None:
    """Waits until condition() holds."""
    end = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"SLURM tests run as root, with {', '.join(missing or NEEDED)} installed")
    found = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        found.start()
        yield found
    finally:
        found.stop()
