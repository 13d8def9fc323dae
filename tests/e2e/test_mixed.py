"""One workflow with everything that a job can run, in a real Slurm of four nodes and through each stand-in of a launcher."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from exex.launch.launchers import Layout, load_launcher
from tests.e2e.test_launchers import REAL, Job, fake, in_slurm, launch_helper
from tests.launch import ROOT, Launch
from tests.slurm import MPI, Cluster, why_not
from tests.standins.allocation import LAUNCHERS

WORKFLOWS = ROOT / "tests/workflows"
NOT_HERE = {"ibrun": "it counts nodes, and its sub-tasks must have neighbours: see docs/launchers.md"}


@pytest.fixture
def ring(launch: Launch) -> str:
    """The MPI program, compiled; the workflow lies beside it."""
    if not shutil.which("cc"):
        pytest.skip("an MPI program is built by cc, which is not here")
    shutil.copy(WORKFLOWS / "mixed.py", launch.cwd)
    program = str(launch.cwd / "ring")
    compiler = Path(launch.mpiexec).with_name("mpicc")
    subprocess.run([str(compiler), str(WORKFLOWS / "ring.c"), "-o", program], check=True, capture_output=True)
    return program


def check(cwd: Path, hosts: Counter[str]) -> dict[str, Any]:
    """What the tasks have found. `hosts`: names on which programs may run, if they are known."""
    found: dict[str, Any] = json.loads((cwd / "mixed.json").read_text())
    assert len(found["python"]) == 20 and len(found["bash"]) == 4
    assert found["together"] == [2 * x + 1 for x in range(10)]
    assert [rank for rank, _ in found["each"]] == [0, 1, 2]
    for kind, nodes in (("one", 1), ("two", 2)):
        for number, lines in enumerate(found[kind]):
            ranks = [re.fullmatch(rf"{kind}-{number} rank (\d) of (\d) on (\S+) sum (\d)", line) for line in lines]
            assert all(ranks), lines
            size = 2 * nodes
            assert sorted((rank[1], rank[2], rank[4]) for rank in ranks if rank) == [
                (str(number), str(size), str(sum(range(size)))) for number in range(size)
            ]
            where = Counter(rank[3] for rank in ranks if rank)
            assert not hosts or (set(where) <= set(hosts) and list(where.values()) == [2] * nodes), (kind, where)
    assert len(found["hand"]) == int(found["environment"]["EXEX_NUM_RANKS"])
    return found


# ---- Slurm ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    if why_not():
        pytest.skip(why_not())
    with Cluster(nodes=4) as cluster:
        yield cluster


class Login:
    """A login node of the cluster."""

    def __init__(self, cluster: Cluster, launch: Launch) -> None:
        self.cluster, self.launch = cluster, launch
        mpi, network = MPI[launch.family]
        self.set = [f"--set-env={name}={value}" for name, value in {**network, "SLURM_MPI_TYPE": mpi, "PYTHONPATH": str(ROOT)}.items()]

    def call(self, *argv: str) -> str:
        done = self.launch.finish(self.launch.start(list(argv), **{**self.cluster.environment, "PYTHONPATH": str(ROOT)}))
        assert done.status == 0, (argv, done.out, done.err)
        return done.out

    def submit(self, *words: str) -> str:
        asked = ["--machine", "slurm", "--nodes", "4", "--walltime", "10:00"]
        return self.call(sys.executable, "-m", "exex", "submit", *asked, *self.set, *words).strip()

    def steps(self) -> set[str]:
        """Steps of jobs beside the batch script."""
        return {step for step in self.call("squeue", "--steps", "--noheader", "--format=%i").split() if not step.endswith("batch")}

    def ended(self, job: str, name: str) -> str:
        """Wait for a job's end; what it has printed."""
        until = time.monotonic() + 90
        while "JobState=RUNNING" in (shown := self.call("scontrol", "show", "job", job)) or "JobState=PENDING" in shown:
            assert time.monotonic() < until, shown
            time.sleep(0.3)
        out = (self.launch.cwd / f"{name}-{job}.out").read_text()
        assert "JobState=COMPLETED" in shown or "JobState=COMPLETING" in shown, (shown, out)
        return out


@pytest.fixture
def login(cluster: Cluster, launch: Launch) -> Login:
    return Login(cluster, launch)


@pytest.mark.parametrize(
    "shape", [("--ranks-per-node", "3", "--slots", "1"), ("--slots", "3")], ids=["rank-per-core", "rank-per-node"]
)
def test_everything_in_one_job_of_slurm(login: Login, ring: str, shape: tuple[str, ...]) -> None:
    if login.launch.family == "openmpi" and "1" not in shape:
        pytest.skip("of both libraries, one shape is enough")
    job = login.submit(*shape, "mixed.py", ring)
    assert "mixed: 20 Python, 4 bash, 2 + 2 + 1 MPI programs, 11 functions\n" in login.ended(job, "mixed")
    names = Counter(f"node{number}" for number in range(1, 5))
    found = check(login.launch.cwd, names)
    told = found["environment"]
    assert told["EXEX_MPI_PREFIX"].startswith("srun ") and f"--nodelist={told['EXEX_NODES']}" in told["EXEX_MPI_PREFIX"]
    assert not [name for name in told if name.startswith(("PMI_", "PMI2_", "PMIX_", "SLURM_STEP", "SLURM_PROCID", "SLURM_OVERLAP"))]


def test_everything_under_mpiexec(cluster: Cluster, launch: Launch, ring: str) -> None:
    """The mpiexec of the MPI library, on the four nodes of an allocation: it starts the world, and sub-tasks in it."""
    job = in_slurm(launch, cluster, REAL[launch.family])
    hosts = ("node1", "node2", "node3", "node4")
    file = load_launcher(REAL[launch.family], {})
    world = file.world_argv(Layout(4, 3, hosts=hosts, bind=False))
    argv = ["salloc", "--quiet", "--nodes=4", "--exclusive", *world, sys.executable]
    environment = file.nested_environment({**launch.environment(), **job.environment})
    ended = launch.finish(launch.start([*argv, "-m", "exex.run", "--slots", "1", "mixed.py", ring], **environment))
    assert ended.status == 0, (ended.out, ended.err)
    found = check(launch.cwd, Counter(hosts))
    assert "mpiexec" in found["environment"]["EXEX_MPI_PREFIX"].split()[0]


KILLED = """
import os, subprocess, sys, time
from exex import mpi_app

@mpi_app(nodes=2, ranks_per_node=1)
def sleeps():
    return "sleep 600"

@mpi_app(nodes=2, ranks_per_node=1)
def is_stubborn():
    return "bash -c 'trap : TERM INT; while true; do sleep 1; done'"

def launchers():
    found = []
    for name in os.listdir("/proc"):
        try:
            words = open(f"/proc/{name}/cmdline").read().split("\\0")
            if words[0] == "srun" and words[-2] == "600":  # not the stubborn one before it, which may still be ending
                found.append(int(name))
        except (OSError, IndexError):
            pass
    return found

def steps():
    shown = subprocess.run(["squeue", "--steps", "--noheader", "--format=%i"], capture_output=True, text=True).stdout.split()
    return [step for step in shown if not step.endswith(("batch", ".0"))]

def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, (steps(), launchers())
        time.sleep(0.1)

for how in ("cancel", "walltime", "stubborn", "killed"):
    future = (is_stubborn if how == "stubborn" else sleeps)(walltime=2 if how == "walltime" else 300)
    wait_for(steps)
    if how == "killed":  # the task's own process, above the launcher and its shell
        wait_for(launchers)
        parent = launchers()[0]
        while b"exex.run" not in open(f"/proc/{parent}/cmdline", "rb").read():
            parent = int(open(f"/proc/{parent}/stat").read().rsplit(")", 1)[1].split()[1])
        os.kill(parent, 9)
    elif how != "walltime":
        future.cancel()
    wait_for(lambda: not steps())
    print(how, "left nothing", flush=True)
"""


def test_a_sub_task_that_is_killed_leaves_no_step(login: Login) -> None:
    if login.launch.family != "mpich":
        pytest.skip("programs here are no MPI programs: one library is enough")
    (login.launch.cwd / "killed.py").write_text(KILLED)
    out = login.ended(login.submit("--slots", "3", "killed.py"), "killed")
    assert [line for line in out.splitlines() if line.endswith("left nothing")] == [
        f"{how} left nothing" for how in ("cancel", "walltime", "stubborn", "killed")
    ]


# ---- stand-ins ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", [name for name in LAUNCHERS if name not in NOT_HERE])
def test_everything_through_each_stand_in(launch: Launch, tmp_path: Path, launcher: str, ring: str) -> None:
    job: Job = fake(launch, launcher, tmp_path / "job")
    room = job.file.room
    hosts = job.hosts[:2] if room == "nodes" else job.hosts
    world = Layout(len(hosts), 2, hosts=hosts if job.file.hosts else (), allocation=job.hosts, bind=False)
    words = ["-m", "exex.run", "--slots", "1", "mixed.py", ring]
    with launch_helper(job, launches=5):
        ended = launch.finish(job.start([*job.world_file.world_argv(world), sys.executable, *words]))
    assert ended.status == 0, (ended.out, ended.err)
    check(launch.cwd, Counter())
    launches = job.allocation.launches()[1:]
    assert len(launches) == 5
    two = [sorted(done["ranks"].values()) for done in launches if len(done["ranks"]) == 2]
    assert two.count([2, 2]) >= 2, launches
    free = set(job.hosts) - set(hosts) if room == "nodes" else set(job.hosts)
    assert all(set(done["ranks"]) <= free for done in launches), launches
