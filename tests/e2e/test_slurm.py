"""Jobs under a real Slurm of four nodes on this machine: see tests/slurm.py. Skipped where there is none."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import pytest

from exex.launch.hostlist import expand_hosts
from tests.endurance import MARK, nobody_left
from tests.launch import Launch
from tests.slurm import Cluster, Job, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

CORES = len(os.sched_getaffinity(0))  # as a rank on a node of the cluster sees them


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=4) as cluster:
        yield cluster


class Site:
    """Where a test submits its jobs; none of their processes may be left at its end."""

    def __init__(self, cluster: Cluster, launch: Launch) -> None:
        self.cluster, self.launch, self.mark = cluster, launch, uuid.uuid4().hex
        self.status_dir = launch.cwd / "job"
        self.status_dir.mkdir()
        variables = {
            **cluster.variables(launch.family),
            MARK: self.mark,
            "EXEX_JOB_DIR": str(self.status_dir),
            "EXEX_START_TIMEOUT_S": "120",  # several worlds start at once on a few cores
            "PYTHONUNBUFFERED": "1",
        }
        self.env = launch.environment(**variables)

    def world(self, shape: str, *options: str, before: str = "") -> str:
        """A line of a job script that starts an exex world of this shape on workflow.py."""
        srun = " ".join(self.cluster.srun(self.launch.family, *shape.split()))
        return f"{srun} {before} {sys.executable} -m exex.run {' '.join(options)} workflow.py"

    def workflow(self, text: str) -> None:
        (self.launch.cwd / "workflow.py").write_text(text)

    def submit(self, *lines: str, options: str = "", name: str = "job.sh") -> Job:
        script = self.launch.cwd / name
        script.write_text("\n".join(["#!/bin/bash", *lines, ""]))
        return self.cluster.submit(script, options.split(), self.env)

    def status(self) -> int:
        """What the job left in its directory."""
        return int((self.status_dir / "status").read_text())


@pytest.fixture
def site(cluster: Cluster, launch: Launch) -> Iterator[Site]:
    site = Site(cluster, launch)
    yield site
    cluster.cancel("--user=root")  # of a test that has failed
    nobody_left(site.mark)


# ---- where tasks run ----

WHERE = """
import collections, exex, socket
from exex import bash_app, python_app
from exex.client.session import current

@python_app
def where(i):
    import os, socket, time
    time.sleep(0.05)
    return socket.gethostname()

@bash_app
def host(stdout=None):
    return "hostname"

slots = current("test").proxy.welcome.slots
nodes = [f.result() for f in [where(i) for i in range(8 * slots)]]
assert host(stdout="host").result() == 0
print("script on", socket.gethostname(), "slots", slots, "nodes", *sorted(set(nodes)))
"""


def worlds(site: Site) -> str:
    """Worlds of several shapes, one after the other."""
    return "\n".join(
        [
            site.world("-N4 -n4"),  # a rank per node
            site.world("-N2 -n4 --ntasks-per-node=2 -w node1,node2"),  # two
            site.world("-N2 -n2 -w node1,node2", before="taskset -c 0"),  # ranks that were granted one core
            site.world("-N2 -n2 -w node1,node2", "--slots 3 --manager-slots 2"),
        ]
    )


def check_worlds(said: str) -> None:
    found = [(int(slots), nodes.split()) for slots, nodes in re.findall(r"script on node1 slots (\d+) nodes (.*)", said)]
    assert [slots for slots, _ in found] == [3 * CORES + CORES - 1, 3 * max(1, CORES // 2), 1, 5], said
    assert [nodes for _, nodes in found] == [
        ["node1", "node2", "node3", "node4"] if CORES > 1 else ["node2", "node3", "node4"],
        ["node1", "node2"],
        ["node2"],
        ["node1", "node2"],
    ], said


def test_a_workflow_under_sbatch(site: Site) -> None:
    site.workflow(WHERE)
    job = site.submit(worlds(site), options="-N4 --ntasks-per-node=4")
    assert job.wait(120) == "COMPLETED", job.output()
    check_worlds(job.output())
    assert site.status() == 0


def test_a_workflow_under_salloc(site: Site) -> None:
    site.workflow(WHERE)
    line = site.world("-N2 -n2", "--slots 1 --manager-slots 1")
    done = site.launch.finish(site.launch.start(["salloc", "-Q", "-N2", "--ntasks-per-node=4", "bash", "-c", line], **site.env))
    assert (done.status, done.out) == (0, "script on node1 slots 2 nodes node1 node2\n"), done.err


def test_what_doctor_says_of_the_allocation(site: Site) -> None:
    program = "import os; from exex.launch import doctor; print(doctor._allocation(os.environ))"
    line = f"{sys.executable} -c '{program}'"
    argv = ["salloc", "-Q", "-N3", "-n5", "--time=30", "bash", "-c", f"{line}; srun -N2 -n2 {line}"]
    done = site.launch.finish(site.launch.start(argv, **site.env))
    said = re.findall(r"Slurm job \d+, 3 nodes \(node1 ... node3\), 5 cores, ends at .{19} \(in 0:(29:\d\d|30:00)\); here", done.out)
    assert done.status == 0 and len(said) == 3, (done.out, done.err)


@pytest.mark.parametrize("text", ["nid[00012-00015,00020],login1", "rack[1-2]node[1-3]", "n[9-11],n[09-11],n[1-003]", "b1,a[1-3],b1"])
def test_host_lists_mean_what_slurm_makes_of_them(cluster: Cluster, text: str) -> None:
    argv = ["scontrol", "show", "hostnames", text]
    assert subprocess.run(argv, env=cluster.environment, capture_output=True, text=True, check=True).stdout.split() == expand_hosts(text)


# ---- the end ----

CHAIN = """
from exex import python_app

@python_app(cache=True)
def quick(i):
    open(f"ran.{i}", "x").close()
    return i

@python_app(cache=True, walltime=300)
def long():
    return "long"

assert [f.result() for f in [quick(i) for i in range(20)]] == list(range(20))
print("begun", flush=True)
print("ended", long().result(), flush=True)
"""


def test_what_does_not_fit_is_left_for_the_next_job(site: Site) -> None:
    """The end is learnt from Slurm: the job script has no word about it but that of status 75."""
    site.workflow(CHAIN)
    world = site.world("-N2 -n2", "--journal j --resume")
    again = f"sbatch --time=30 -N2 --output={site.launch.cwd}/again.out again.sh"
    (site.launch.cwd / "again.sh").write_text(f"#!/bin/bash\n{world}\necho second $(cat {site.status_dir}/status)\n")
    job = site.submit(world, f"status=$(cat {site.status_dir}/status); echo first $status", f"[ $status = 75 ] && {again}", options="--time=1 -N2")
    assert job.wait() == "COMPLETED", job.output()
    assert "begun" in job.output() and "first 75" in job.output() and "ended" not in job.output(), job.output()
    follower = Job(site.cluster, int(job.output().split()[-1]), site.launch.cwd / "again.out")
    assert follower.wait() == "COMPLETED", follower.output()
    assert "ended long" in follower.output() and "second 0" in follower.output(), follower.output()
    assert "20 calls did not run again" in follower.output()


LONG = """
import exex
from exex import bash_app, python_app

@bash_app
def shell():
    return "sleep 300 & exec setsid sleep 300"

@python_app
def sleep(seconds):
    import time
    time.sleep(seconds)

shells = [shell() for _ in range(4)]
sleep(0).result()
print("begun", exex.manager_pid(), flush=True)
try:
    sleep(300).result()
except exex.ManagerLost:
    print("manager lost", flush=True)
    raise
"""


def test_scancel_gives_notice(site: Site) -> None:
    site.workflow(LONG)
    job = site.submit(site.world("-N2 -n3", "--slots 3", "--notice-s 1"), options="-N2 -n4")
    job.until("begun")
    site.cluster.cancel(str(job.number))
    assert job.wait() == "CANCELLED"
    nobody_left(site.mark)
    assert site.status() == 75
    assert "got SIGTERM: what does not end within 1 s is not begun any more" in job.output()


def test_scancel_leaves_nobody_behind_that_takes_too_long(site: Site) -> None:
    """Slurm kills what has not ended in its KillWait, with the guards first."""
    site.workflow(LONG)
    job = site.submit(site.world("-N2 -n3", "--slots 3", "--notice-s 100"), options="-N2 -n4")
    job.until("begun")
    site.cluster.cancel(str(job.number))
    assert job.wait() == "CANCELLED"
    nobody_left(site.mark)


# ---- the manager dies ----


def test_a_manager_that_dies_takes_the_step_along(site: Site) -> None:
    """`srun -K0` lets the others live, and their patience with a silent manager is two minutes."""
    site.workflow(LONG)
    job = site.submit(site.world("-N4 -n5", "--slots 2"), "echo step ended", options="-N4 --ntasks-per-node=2")
    manager = int(re.findall(r"begun (\d+)", job.until("begun"))[0])
    began_s = time.monotonic()
    os.kill(manager, signal.SIGKILL)
    job.wait(30)
    assert "step ended" in job.output() and time.monotonic() - began_s < 20
    if site.launch.family == "openmpi":
        return  # Slurm's pmix kills a step that loses a rank, also its script
    assert "manager lost" in job.output() and "rank 0 at node1 was killed by SIGKILL" in job.output()
    assert not (site.status_dir / "status").exists(), "it is to be run again"


# ---- losses, and signals that Slurm sends when its clock says so: all at once, since both take Slurm half a minute ----

GOES_ON = """
import os, time, socket
from exex import python_app

@python_app
def work(i):
    import socket, time
    time.sleep(0.05)
    return i, socket.gethostname()

wave = 0
while not os.path.exists("enough"):
    results = [f.result() for f in [work(i) for i in range(20)]]
    assert [i for i, _ in results] == list(range(20))
    wave += 1
    print("wave", wave, *sorted({node for _, node in results}), flush=True)
print("all right", flush=True)
"""

WAITS = """
import os, time
from exex import python_app

@python_app
def work(i):
    import time
    time.sleep(0.2)
    return i

for i in range(10_000):
    work(i).result()
    if i == 0:
        print("begun", flush=True)
"""


@pytest.mark.timeout(300)
def test_a_lost_node_and_signals_before_the_end(site: Site, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    if site.launch.family == "openmpi":
        pytest.skip("Slurm's pmix ends a step that loses a rank; signals do not depend on the library")
    sites = {"node": site}
    for name in ("all", "batch"):
        sites[name] = Site(cluster, Launch(tmp_path_factory.mktemp(name)))
        sites[name].workflow(WAITS)
    site.workflow(GOES_ON)
    lost = site.submit(
        site.world("-N3 -n3", "--slots 2 --heartbeat-s 0.2 --heartbeat-limit-s 3"), options="-N3 -w node1,node2,node3 --no-kill"
    )
    waits = ("-N1 -n2", "--slots 1 --walltime none --notice-s 2")
    submit = {
        "USR2": lambda: sites["all"].submit(sites["all"].world(*waits), options="--time=1 --signal=USR2@50 -w node4 -n2"),
        "USR1": lambda: sites["batch"].submit(
            "trap 'kill -USR1 $world' USR1",
            sites["batch"].world(*waits) + " &",
            "world=$!",
            "while kill -0 $world 2>/dev/null; do wait $world; done",  # each signal ends a wait
            options="--time=1 --signal=B:USR1@50 -w node4 -n2",
        ),
    }
    warned = {name: submit[name]() for name in submit}
    lost.until("wave 2 ")
    cluster.kill_node("node2")
    said = lost.until("was not heard of for 3 s", 20)
    assert "exex: lost rank 1 on node2" in said, said
    for name, job in warned.items():
        state = job.wait(90)
        if state == "TIMEOUT" and f"got SIG{name}" not in job.output():  # a busy slurmctld has been seen to send no signal at all
            job = submit[name]()
            state = job.wait(90)
        assert state in ("COMPLETED", "FAILED", "TIMEOUT"), job.output()
        assert f"got SIG{name}: what does not end within 2 s is not begun any more" in job.output(), job.output()
        assert "exit status 75" in job.output(), job.output()
    assert (sites["all"].status(), sites["batch"].status()) == (75, 75)
    until = time.monotonic() + 90
    while "down" not in cluster.node_state("node2"):
        assert time.monotonic() < until, cluster.node_state("node2")
        time.sleep(0.1)
    waves = len(re.findall("wave", lost.output()))
    lost.until(f"wave {waves + 2} ")  # after Slurm knows, too
    (site.launch.cwd / "enough").touch()
    lost.until("all right")
    lost.wait()
    assert site.status() == 0, lost.output()
    assert re.findall(r"^wave .*", lost.output(), re.MULTILINE)[-1].split()[2:] == ["node1", "node3"]
    nobody_left(sites["all"].mark)
    nobody_left(sites["batch"].mark)
    cluster.start_node("node2")
