"""A Slurm cluster of several nodes on this machine: `with Cluster(nodes=3) as cluster: cluster.submit(...)`.

Debian's Slurm allows several slurmd on one host. Each gets a UTS namespace of its own, so that MPI libraries take the nodes for
different hosts. It needs root, and the packages slurmctld, slurmd, slurm-client, munge and libpmix-dev (tests/environment
installs them). All state is in one directory.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "munged", "unshare")

MPI = {
    "mpich": ("pmi2", {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo"}),
    "openmpi": ("pmix", {"OMPI_MCA_btl_tcp_if_include": "lo", "UCX_NET_DEVICES": "lo", "OMPI_MCA_mpi_yield_when_idle": "1"}),
}
"""By family of the library: what `srun --mpi` must say, and what the library needs where all nodes share the loopback device."""

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL"}

# FirstJobId: MPICH names its shared memory after Slurm's number of the job, and would take that of another cluster's job of the
# same number for its own.
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
FirstJobId={first_job}
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


@functools.cache
def why_not() -> str:
    """What this machine lacks for a cluster; "" if nothing."""
    if os.getuid():
        return "a Slurm cluster needs root"
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    if missing:
        return f"a Slurm cluster needs {', '.join(missing)}"
    allowed = subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"a Slurm cluster needs namespaces: {allowed.stderr.strip()}" if allowed.returncode else ""


def _free_ports(count: int) -> int:
    """First of `count` neighbouring ports that nobody uses."""
    candidates = list(range(26800, 32000, count))
    random.shuffle(candidates)  # others may look for some at the same time
    for first in candidates:
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
                nodes=self.nodes, cores=self.cores, first_job=random.randrange(1000, 60_000_000),
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
            self.start_node(name)
        self._await_idle(names)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd, at the beginning or after `kill_node`."""
        inside = f"hostname {name} && mount --bind '{self._top}/hosts' /etc/hosts && exec slurmd -N {name} -c"
        self._call("unshare", "--uts", "--mount", "sh", "-c", inside)

    def _await_idle(self, names: list[str]) -> None:
        until = time.monotonic() + 30
        while any(self.node_state(name) != "idle" for name in names):
            if time.monotonic() > until:
                raise RuntimeError("the cluster did not come up: " + (self._top / "log/slurmctld.log").read_text()[-2000:])
            time.sleep(0.05)

    def node_state(self, name: str) -> str:
        """Slurm's word for it: idle, mixed, allocated, down, ..., with a * if it does not answer."""
        return self._call("sinfo", "-h", "-n", name, "-o", "%T", check=False).strip()

    def _call(self, *argv: str, check: bool = True) -> str:
        return subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=60, check=check).stdout

    def srun(self, family: str, *words: str) -> list[str]:
        """The srun that goes on when a rank or a node is lost, as far as the family's library can."""
        return ["srun", f"--mpi={MPI[family][0]}", "-K0", "--no-kill", *words]

    def variables(self, family: str) -> dict[str, str]:
        """With which a library works here, and commands find the cluster."""
        return {**MPI[family][1], **{name: self.environment[name] for name in ("SLURM_CONF", "PATH")}}

    def submit(self, script: Path, options: list[str], env: dict[str, str]) -> Job:
        """Hand a batch script to sbatch. It runs in its own directory, with this environment."""
        argv = ["sbatch", "--parsable", f"--output={script}.out", f"--chdir={script.parent}", *options, str(script)]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return Job(self, int(done.stdout.split(";")[0]), Path(f"{script}.out"))

    def job_state(self, job: int) -> str:
        """Slurm's word for how a job is."""
        shown = self._call("scontrol", "--oneliner", "show", "job", str(job))
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)["JobState"]

    def cancel(self, *words: str) -> None:
        """Run scancel."""
        self._call("scancel", *words)

    def kill_node(self, name: str) -> None:
        """A node loses its power: its slurmd, and all that it has started, are gone at once."""
        slurmd = int((self._top / f"slurmd-{name}.pid").read_text())
        namespace = os.readlink(f"/proc/{slurmd}/ns/uts")
        if namespace == os.readlink("/proc/self/ns/uts"):
            return  # it was dead already, and this is somebody else's process
        for pid in _processes_in(namespace):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __exit__(self, *_: object) -> None:
        self._call("scancel", "--user=root", check=False)
        for note in self._top.glob("slurmd-*.pid"):
            with contextlib.suppress(OSError, ValueError):
                self.kill_node(note.stem.removeprefix("slurmd-"))
        for note in [self._top / "slurmctld.pid", self._top / "munge/munged.pid"]:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(note.read_text()), signal.SIGTERM)
        shutil.rmtree(self._top, ignore_errors=True)


class Job:
    """A batch job.

    Attributes:
        number: Slurm's.
    """

    def __init__(self, cluster: Cluster, number: int, output: Path) -> None:
        self.number = number
        self._cluster, self._output = cluster, output

    def output(self) -> str:
        """All that it has printed so far."""
        return self._output.read_text() if self._output.exists() else ""

    def until(self, text: str, limit_s: float = 60.0) -> str:
        """Wait until it has printed this; returns all that it has printed."""
        until = time.monotonic() + limit_s
        while text not in (said := self.output()):
            state = self._cluster.job_state(self.number)
            assert time.monotonic() < until and state not in ENDED, f"job {self.number} is {state} and has not said {text!r}: {said}"
            time.sleep(0.05)
        return said

    def wait(self, limit_s: float = 60.0) -> str:
        """Wait for its end; returns Slurm's word for how it ended."""
        until = time.monotonic() + limit_s
        while (state := self._cluster.job_state(self.number)) not in ENDED:
            assert time.monotonic() < until, f"job {self.number} is still {state}: {self.output()}"
            time.sleep(0.05)
        return state


def _processes_in(namespace: str) -> list[int]:
    """Processes of a UTS namespace."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdecimal() and os.readlink(f"/proc/{name}/ns/uts") == namespace:
                found.append(int(name))
    return found
