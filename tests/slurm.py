"""A Slurm cluster of several nodes on this machine: `with Cluster(nodes=3) as cluster: cluster.run(...)`.

Debian's Slurm allows several slurmd on one host. Each gets a UTS namespace of its own, so that MPI libraries take the nodes for
different hosts. It needs root, and the packages slurmctld, slurmd, slurm-client and munge. All state is in one directory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "unshare")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={top}/munge/socket
CredType=cred/munge
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool/%n
TmpFS={top}/tmp/%n
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/slurmd-%n.pid
SlurmctldLogFile={top}/log/slurmctld.log
SlurmdLogFile={top}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=15
MessageTimeout=10
KillWait=5
MpiDefault=none
PropagateResourceLimitsExcept=MEMLOCK
NodeName=node[1-{nodes}] NodeHostname=node[1-{nodes}] NodeAddr=127.0.0.1 Port={first}-{last} CPUs={cores} Boards=1 \
SocketsPerBoard=1 CoresPerSocket={cores} ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def why_not() -> str:
    """What this machine lacks for a cluster; "" if nothing."""
    if os.getuid():
        return "a Slurm cluster needs root"
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    return f"a Slurm cluster needs {', '.join(missing)}" if missing else ""


def _free_ports(count: int) -> int:
    """First of `count` neighbouring ports that nobody uses."""
    for first in range(26800, 32000, count):
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + count):
                    sock = held.enter_context(socket.socket())
                    sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports")


class Cluster:
    """See the module docstring.

    Attributes:
        environment: variables with which srun finds the cluster.
    """

    def __init__(self, nodes: int, cores: int = 4) -> None:
        self.nodes, self.cores = nodes, cores
        self._top = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.environment = {**os.environ, "SLURM_CONF": str(self._top / "slurm.conf")}
        self.environment["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        top = self._top
        top.chmod(0o755)
        names = [f"node{number}" for number in range(1, self.nodes + 1)]
        for folder in ("state", "log", "munge", *(f"spool/{name}" for name in names), *(f"tmp/{name}" for name in names)):
            (top / folder).mkdir(parents=True)
        first = _free_ports(self.nodes + 1)
        (top / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().split(".")[0], top=top, port=first, first=first + 1, last=first + self.nodes,
                nodes=self.nodes, cores=self.cores,
            )
        )  # fmt: skip
        hosts = Path("/etc/hosts").read_text() + "".join(f"127.0.0.1 {name}\n" for name in names)
        (top / "hosts").write_text(hosts)
        key = top / "munge/key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._call(
            "munged", "--force", f"--key-file={key}", f"--socket={top}/munge/socket", f"--pid-file={top}/munge/munged.pid",
            f"--log-file={top}/munge/log", f"--seed-file={top}/munge/seed",
        )  # fmt: skip
        self._call("slurmctld", "-c")
        for name in names:
            inside = f"hostname {name} && mount --bind '{top}/hosts' /etc/hosts && exec slurmd -N {name} -c"
            self._call("unshare", "--uts", "--mount", "sh", "-c", inside)
        until = time.monotonic() + 30
        while self._call("sinfo", "-h", "-N", "-o", "%t", check=False).split().count("idle") < self.nodes:
            if time.monotonic() > until:
                raise RuntimeError("the cluster did not come up: " + (top / "log/slurmctld.log").read_text()[-2000:])
            time.sleep(0.05)

    def _call(self, *argv: str, check: bool = True) -> str:
        return subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=60, check=check).stdout

    def srun(self, *words: str) -> list[str]:
        """The srun that goes on when a rank or a node is lost."""
        return ["srun", "--mpi=pmi2", "-K0", "--no-kill", *words]

    def kill_node(self, name: str) -> None:
        """A node loses its power: its slurmd, and all that it has started, are gone at once."""
        slurmd = int((self._top / f"slurmd-{name}.pid").read_text())
        for pid in _processes_in(os.readlink(f"/proc/{slurmd}/ns/uts")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __exit__(self, *_: object) -> None:
        self._call("scancel", "--user=root", check=False)
        for note in [*self._top.glob("slurmd-*.pid"), self._top / "slurmctld.pid", self._top / "munge/munged.pid"]:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(note.read_text()), signal.SIGKILL if note.name.startswith("slurmd") else signal.SIGTERM)
        shutil.rmtree(self._top, ignore_errors=True)


def _processes_in(namespace: str) -> list[int]:
    """Processes of a UTS namespace."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdecimal() and os.readlink(f"/proc/{name}/ns/uts") == namespace:
                found.append(int(name))
    return found
