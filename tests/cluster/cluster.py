"""A real SLURM of three nodes on this machine, with ports, folders and keys of its own.

Each node has a /dev/shm and a TMPDIR of its own, as nodes have, in a mount namespace that all its
processes share and no other has: by it they are known.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from elemdist.ports import free_ports
from tests.conftest import ELEMDIST, REPOSITORY, run_command, wait_until

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "unshare", "nsenter")
NODES = ("n1", "n2", "n3")
GPUS = 2  # of a node
WAIT_S = 60
HOLD_S = 15  # for which SLURM holds what was requeued, and one second more; 120 unless told
SMALL_BYTES = 6_000_000  # of a disk that fills up

CONFIGURATION = """
ClusterName=tests
FirstJobId={first_job}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={hold_s}
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
SlurmdTimeout=20
KillWait=20
InactiveLimit=0
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=1,sched_interval=1
MailProg=/bin/true
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP PriorityTier=1 GraceTime=15
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

Process = subprocess.Popen[bytes]


class Cluster:
    """The cluster as its users, and its admin, see it.

    Args:
        folder: where its state and logs lie.
        number: of those that run at once on this machine. The ports of ranks follow from the
            numbers of their jobs, so that each cluster has jobs of its own.
    """

    def __init__(self, folder: Path, number: int = 0) -> None:
        self.folder, self.first_job = folder, 1000 * number + 1
        self.configuration = folder / "slurm.conf"
        self.small = folder / "small"
        self._daemons: list[Process] = []
        self._nodes: dict[str, Process] = {}

    def start(self) -> None:
        """Starts all daemons, and waits until the nodes are idle."""
        ports = free_ports(len(NODES) + 1)
        host = f"NodeHostname=localhost NodeAddr=127.0.0.1 CPUs=8 Gres=gpu:{GPUS}"
        pairs = zip(NODES, ports[1:], strict=True)
        nodes = "\n".join(f"NodeName={name} {host} Port={port}" for name, port in pairs)
        for name in ("state", *(f"{kind}-{node}" for kind in ("spool", "tmp") for node in NODES)):
            (self.folder / name).mkdir()
        text = CONFIGURATION.format(
            folder=self.folder, first_job=self.first_job, ports=ports, nodes=nodes, hold_s=HOLD_S
        )
        self.configuration.write_text(text)
        for number in range(GPUS):  # devices that nobody drives: SLURM only counts them
            os.mknod(self.folder / f"nvidia{number}", stat.S_IFCHR | 0o600, os.makedev(195, number))
        (self.folder / "gres.conf").write_text(
            f"NodeName={','.join(NODES)} Name=gpu File={self.folder}/nvidia[0-{GPUS - 1}]\n"
        )
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o400)
        self.folder.chmod(0o755)
        # Before the nodes: what is mounted later they do not see.
        self.small.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "tmpfs", self.small], check=True
        )
        names = ("socket", "key", "pid", "log", "seed")
        socket_, key, pid, log, seed = (str(self.folder / f"munge.{name}") for name in names)
        self._daemons.append(
            self._start(
                "munged", "--foreground", "--force", f"--socket={socket_}", f"--key-file={key}",
                f"--pid-file={pid}", f"--log-file={log}", f"--seed-file={seed}",
            )
        )  # fmt: skip
        wait_until(lambda: Path(socket_).exists(), "munged", WAIT_S)
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_for_idle_nodes()

    def start_controller(self) -> None:
        self.controller = self._start("slurmctld", "-D", "-f", str(self.configuration))
        self._daemons.append(self.controller)

    def kill_controller(self) -> None:
        self.controller.kill()
        self.controller.wait()

    def start_node(self, node: str) -> None:
        """Starts a node's daemon, in a place of its own."""
        script = 'mount -t tmpfs tmpfs /dev/shm && exec slurmd -D -N "$0" -f "$1"'
        self._nodes[node] = self._start(
            "unshare", "--mount", "sh", "-c", script, node, str(self.configuration),
            TMPDIR=str(self.folder / f"tmp-{node}"),
        )  # fmt: skip

    def kill_node(self, node: str, but: Sequence[int] = ()) -> None:
        """The node dies: its daemon, and all it has started, at once; these processes live on."""
        for number in [self._nodes[node].pid, *self.processes(node)]:
            if number not in but:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
        self._nodes[node].wait()

    def processes(self, node: str) -> list[int]:
        """The processes of a node's jobs."""
        daemon = self._nodes[node].pid
        with suppress(OSError):
            place = os.readlink(f"/proc/{daemon}/ns/mnt")
            self._places = getattr(self, "_places", {}) | {node: place}
        place = self._places[node]
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != daemon:
                with suppress(OSError):
                    if os.readlink(f"/proc/{entry}/ns/mnt") == place:
                        found.append(int(entry))
        return found

    def on_node(self, node: str, *words: str | Path) -> None:
        """A command that sees the file systems as the node does."""
        subprocess.run(["nsenter", "--mount", "-t", str(self._nodes[node].pid), *words], check=True)

    def shared_memory(self, node: str) -> list[str]:
        """What lies in a node's /dev/shm."""
        return os.listdir(f"/proc/{self._nodes[node].pid}/root/dev/shm")

    def _start(self, *command: str, **more: str) -> Process:
        with (self.folder / f"{command[0]}.out").open("ab") as log:
            environment = {name: x for name, x in os.environ.items() if "SLURM" not in name}
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment | more)

    def environment(self, **more: str) -> dict[str, str]:
        """Of a user's shell on this cluster."""
        path = f"{Path(ELEMDIST).parent}:{os.environ['PATH']}"
        return os.environ | {"SLURM_CONF": str(self.configuration), "PATH": path} | more

    def command(
        self, *words: str | Path, timeout: float = WAIT_S, cwd: Path = REPOSITORY, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """A command on this cluster; `more` is added to the environment."""
        return run_command(*words, timeout=timeout, cwd=cwd, **self.environment(**more))

    def ask(self, *words: str | Path) -> str:
        """The same for one that must succeed; what it printed."""
        done = self.command(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def wait_for_idle_nodes(self) -> None:
        wait_until(
            lambda: set(self.command("sinfo", "-h", "-o", "%T").stdout.split()) == {"idle"},
            "idle nodes",
            WAIT_S,
        )

    def wait_until_empty(self, timeout_s: float) -> None:
        """Waits until no job is left."""

        def empty() -> bool:
            listed = self.command("squeue", "-h")
            return listed.returncode == 0 and not listed.stdout.strip()

        wait_until(empty, "the jobs to end", timeout_s)

    def stop(self) -> None:
        """Ends what start() started, the nodes first."""
        self.command("scancel", "--user=root")
        daemons = [*self._daemons, *self._nodes.values()]
        for process in reversed(daemons):
            process.terminate()
        for process in reversed(daemons):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        subprocess.run(["umount", "--lazy", self.small], check=False)
