"""A world through every launcher, and a sub-task inside it: the real mpiexec of the environment, and the stand-ins of the others."""

import contextlib
import json
import os
import re
import signal
import socket
import sys

import pytest

from exex.launch.launchers import Layout, load_launcher
from exex.launch.world import expected_world, task_environment
from tests.slurm import Cluster, why_not
from tests.standins.allocation import LAUNCHERS, FakeAllocation

REAL = {"mpich": "mpiexec-hydra", "openmpi": "mpiexec-openmpi"}
PMI = {"mpich": "pmi2", "openmpi": "pmix"}
GREETING = "hello, world; $1"

HELLO = """
import json, os, socket
from mpi4py import MPI
world = MPI.COMM_WORLD
found = world.gather({"rank": world.rank, "size": world.size, "host": socket.gethostname(), "env": dict(os.environ)})
total = world.allreduce(world.rank)
if world.rank == 0:
    print(json.dumps({"total": total, "ranks": found}), flush=True)
"""

WORKFLOW = """
import json, os, subprocess, sys
import exex

@exex.python_app
def subtask(name, argv):
    with open("/proc/self/environ", "rb") as file:  # what the launcher gave this task's rank, before we took it away
        given = dict(entry.split("=", 1) for entry in os.fsdecode(file.read()).split("\\0") if entry)
    seen = dict(os.environ)
    plain = json.loads(subprocess.check_output([sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]))
    from exex.launch.helped import helped
    from exex.launch.launchers import load_launcher
    launcher = load_launcher(name, os.environ)
    nested = launcher.nested_environment(os.environ)
    if not launcher.from_compute_nodes:
        argv = helped(argv, os.environ)
    done = subprocess.run(argv, env=nested, capture_output=True, text=True)
    return {"given": given, "seen": seen, "plain": plain, "nested": nested, "status": done.returncode, "out": done.stdout, "err": done.stderr}

print(json.dumps(subtask(sys.argv[1], json.loads(sys.argv[2])).result()), flush=True)
"""


class Job:
    """A job script's place: hosts, and a launcher for the world and one for sub-tasks.

    Args:
        before: words that make an allocation.
        allocation: a fake one, if it is.
    """

    def __init__(self, launch, world, subtask, hosts, environment, before=(), allocation=None):
        self.launch, self.hosts, self.environment, self.before, self.allocation = launch, hosts, environment, before, allocation
        self.world_file, self.file = (load_launcher(name, {"HOME": "/nonexistent"}) for name in (world, subtask))
        two = hosts[:2]
        others = hosts[2:] if self.file.room == "nodes" else two
        self.world = Layout(len(two), 2 // len(two), cores_per_rank=2, hosts=two, allocation=hosts, bind=len(two) == 2)
        self.subtask = Layout(len(others), 4 // len(others), hosts=others, allocation=hosts, bind=False, env={"GREETING": GREETING})
        if self.file.hosts is None:
            self.world, self.subtask = self.world._replace(hosts=()), self.subtask._replace(hosts=())

    def start(self, argv):
        return self.launch.start([*self.before, *argv], **self.environment)


@pytest.fixture(scope="module")
def cluster():
    """A real Slurm of two nodes."""
    if why_not():
        pytest.skip(why_not())
    with Cluster(nodes=2) as cluster:
        yield cluster


def here(launch):
    path = f"{os.path.dirname(launch.mpiexec)}:{os.environ['PATH']}"
    return Job(launch, REAL[launch.family], REAL[launch.family], (socket.gethostname(),), {"PATH": path})


def fake(launch, name, directory):
    if launch.family != "mpich":
        pytest.skip("stand-ins start ranks by MPICH's mpiexec")
    allocation = FakeAllocation(name, directory, launch.mpiexec)
    return Job(launch, name, name, allocation.hosts, allocation.environment, allocation=allocation)


def in_slurm(launch, cluster, subtask):
    loopback = {
        "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo",
        "OMPI_MCA_btl_tcp_if_include": "lo", "OMPI_MCA_mpi_yield_when_idle": "1",
    }  # fmt: skip
    path = f"{os.path.dirname(launch.mpiexec)}:{cluster.environment['PATH']}"
    environment = {"SLURM_CONF": cluster.environment["SLURM_CONF"], "PATH": path, "SLURM_MPI_TYPE": PMI[launch.family], **loopback}
    return Job(launch, "srun", subtask, ("node1", "node2"), environment, ["salloc", "--quiet", "--nodes=2", "--exclusive"])


@pytest.fixture(params=["here", *LAUNCHERS, "srun in Slurm", "mpiexec in Slurm"])
def job(request, launch, tmp_path):
    """The environment's own mpiexec on this machine; every launcher that there is a stand-in for; a real srun."""
    if request.param == "here":
        return here(launch)
    if request.param in LAUNCHERS:
        return fake(launch, request.param, tmp_path / "job")
    cluster = request.getfixturevalue("cluster")
    return in_slurm(launch, cluster, "srun" if request.param.startswith("srun") else REAL[launch.family])


def test_a_rank_knows_its_world(job):
    """Two hosts with two ranks each, where there are two hosts: what exex concludes from the launcher's variables."""
    probe = "import json, os, socket; from exex.launch.world import expected_world as e; print(json.dumps([*e(os.environ), socket.gethostname()]))"
    layout = job.world._replace(ranks_per_node=4 // job.world.nodes, cores_per_rank=1)
    done = job.launch.finish(job.start([*job.world_file.world_argv(layout), sys.executable, "-c", probe]), 40)
    assert done.status == 0, done.err
    ranks = sorted(json.loads(rank) for rank in re.findall(r"\[.*?\]", done.out))  # Hydra may mix lines
    assert [rank[:3] for rank in ranks] == [[job.world_file.world_is, number, 4] for number in range(4)]
    assert {rank[3] for rank in ranks} <= {None, layout.ranks_per_node}
    if os.geteuid() == 0:
        nodes = [job.hosts[number // layout.ranks_per_node] for number in range(4)]
        assert [rank[4] for rank in ranks] == nodes


@contextlib.contextmanager
def launch_helper(job, launches=1):
    """The launch helper, on the job script's node; beside a launcher that needs none there is none."""
    if job.file.from_compute_nodes:
        yield
        return
    job.environment = {**job.environment, "EXEX_LAUNCH_HELPER": str(job.launch.cwd / "launch-helper")}
    helper = job.start([sys.executable, "-m", "exex", "launch-helper", "--verbose", job.environment["EXEX_LAUNCH_HELPER"]])
    try:
        yield
    finally:
        helper.send_signal(signal.SIGHUP)
        ended = job.launch.finish(helper, 20)
    assert ended.status == 0, ended.err
    assert len(re.findall(": begins$", ended.err, re.MULTILINE)) == len(re.findall(": over after ", ended.err)) == launches, ended.err


def test_a_world_comes_up_and_a_subtask_runs_in_it(job):
    file = job.file
    (job.launch.cwd / "workflow.py").write_text(WORKFLOW)
    (job.launch.cwd / "hello.py").write_text(HELLO)
    program = [sys.executable, str(job.launch.cwd / "hello.py")]
    argv = [*file.subtask_argv(job.subtask), *program]
    words = ["-m", "exex.run", "workflow.py", file.name, json.dumps(argv)]
    with launch_helper(job):
        ended = job.launch.finish(job.start([*job.world_file.world_argv(job.world), sys.executable, *words]))
    assert ended.status == 0, ended.err
    told = next(json.loads(line) for line in ended.out.splitlines() if line.startswith("{"))
    assert told["status"] == 0, told["err"]
    check_world(job, told)
    check_subtask(job, told, json.loads(told["out"]))


def check_world(job, told):
    """The world was the one that was asked for, and nothing of it is left in a task."""
    given = told["given"]
    world = expected_world(given)
    assert (world.launcher, world.rank) == (job.world_file.world_is, 1)
    assert world.size in (2, None)
    own = given.keys() - task_environment(given).keys()
    assert own & set(job.world_file.ranks_see)
    for environment in (told["seen"], told["plain"], told["nested"]):
        assert not [name for name in own & environment.keys() if environment[name] == given[name]]
        assert expected_world(environment).launcher == "none"
    assert not own & told["seen"].keys()


def check_subtask(job, told, found):
    """It was a world of its own, on the hosts that it was to be on."""
    ranks = found["ranks"]
    assert found["total"] == 6
    assert [(rank["rank"], rank["size"]) for rank in ranks] == [(number, 4) for number in range(4)]
    for rank in ranks:
        assert rank["env"]["GREETING"] == GREETING
        world = expected_world(rank["env"])
        assert (world.launcher, world.rank) == (job.file.world_is, rank["rank"])
        assert world.size in (4, None)
        for name in ("PMI_JOBID", "SLURM_STEP_ID", "PALS_APID", "ALPS_APP_ID", "JSM_NAMESPACE_ID", "FLUX_JOB_ID", "PMIX_NAMESPACE"):
            assert name not in rank["env"] or rank["env"][name] != told["given"].get(name)
    if job.allocation:
        world, subtask = job.allocation.launches()
        assert subtask["from"] == (job.hosts[1] if job.file.from_compute_nodes else None)
        if job.subtask.hosts:
            assert subtask["ranks"] == dict.fromkeys(job.subtask.hosts, job.subtask.ranks_per_node)
            assert world["ranks"] == dict.fromkeys(job.world.hosts, 1)
    if os.geteuid() == 0 and job.subtask.hosts:
        assert [rank["host"] for rank in ranks] == [job.subtask.hosts[number // job.subtask.ranks_per_node] for number in range(4)]


LOSS = """
import os
import exex

@exex.python_app
def kills_its_rank():
    import os, psutil
    if os.path.exists("killed"):
        return
    guard = me = psutil.Process()
    while guard.parent().cmdline() == me.cmdline():
        guard = guard.parent()
    [rank] = [child for child in guard.children() if any("/libmpi" in mapped.path for mapped in child.memory_maps())]
    open("killed", "w").close()
    rank.kill()
    rank.wait()

kills_its_rank().result()
print("went on", flush=True)
"""


@pytest.mark.parametrize("name", [name for name in LAUNCHERS if load_launcher(name, {}).goes_on])
def test_a_job_goes_on_without_a_rank(launch, tmp_path, name):
    job = fake(launch, name, tmp_path / "job")
    (launch.cwd / "workflow.py").write_text(LOSS)
    world = job.world._replace(nodes=3, hosts=job.hosts[:3])
    ended = launch.finish(job.start([*job.world_file.world_argv(world), sys.executable, "-m", "exex.run", "workflow.py"]))
    assert "went on" in ended.out, (ended.out, ended.err)
    assert ended.status == 0
    assert "it was killed by SIGKILL; 1 attempt will be run again on the 1 worker left" in ended.err
