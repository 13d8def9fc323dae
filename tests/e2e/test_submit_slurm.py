"""`exex submit` to a real Slurm of two nodes on this machine, and its job script in the shell of an `salloc`."""

from __future__ import annotations

import re
import sys
import time

import pytest

from tests.launch import ROOT
from tests.slurm import Cluster, why_not
from tests.staged_environment import make_archive

NETWORK = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo"}  # the nodes are one machine
ASKED = ["--machine", "slurm", "--nodes", "2", "--slots", "2", "--walltime", "10:00"]
SET = [f"--set-env={name}={value}" for name, value in {**NETWORK, "SLURM_MPI_TYPE": "pmi2", "PYTHONPATH": str(ROOT)}.items()]

HELLO = """
import sys
from exex import bash_app, python_app

@python_app
def where(i):
    import socket, time
    time.sleep(0.2)
    return socket.gethostname()

@bash_app
def say(words, stdout=("said", "w")):
    return f"echo {words}"

say("in bash").result()
print(sorted({f.result() for f in [where(i) for i in range(24)]}), sys.argv[1:], flush=True)
"""
TWICE = """
import os
from exex import python_app

@python_app(cache=True)
def square(i):
    open(f"ran-{i}", "x").close()
    return i * i

@python_app
def second_half():
    pass

print([square(i).result() for i in range(5)], flush=True)
limit_s = 1 if os.path.exists("first") else 36000
open("first", "a").close()
second_half(walltime=limit_s).result()
print("all right", flush=True)
"""
LONG = """
from exex import python_app

@python_app
def wait():
    open("begun", "x").close()
    import time
    time.sleep(600)

wait().result()
"""


@pytest.fixture(scope="module")
def cluster():
    if why := why_not():
        pytest.skip(why)
    with Cluster(nodes=2) as cluster:
        yield cluster


class Login:
    """A login node of the cluster."""

    def __init__(self, cluster, launch):
        self.cluster, self.launch = cluster, launch
        if launch.family != "mpich":
            pytest.skip("with MPICH, whose ranks start by Slurm's pmi2")

    def call(self, *argv):
        """Run a program; its stdout."""
        done = self.launch.finish(self.launch.start(list(argv), **{**self.cluster.environment, "PYTHONPATH": str(ROOT)}))
        assert done.status == 0, (argv, done.out, done.err)
        return done.out

    def submit(self, script, *words):
        """Submit `script` as workflow.py; the job's id."""
        (self.launch.cwd / "workflow.py").write_text(script)
        return self.call(sys.executable, "-m", "exex", "submit", *ASKED, *SET, *words).strip()

    def ended(self, job):
        """Wait for a job's end; its state and exit status."""
        until = time.monotonic() + 90
        while True:
            shown = self.call("scontrol", "show", "job", job)
            state = re.search(r"JobState=(\S+)", shown)[1]
            if state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
                return state, int(re.search(r"ExitCode=(\d+)", shown)[1])
            assert time.monotonic() < until, shown
            time.sleep(0.2)

    def output(self, job):
        return (self.launch.cwd / f"workflow-{job}.out").read_text()


@pytest.fixture
def login(cluster, launch):
    return Login(cluster, launch)


def test_a_job_uses_all_its_nodes(login):
    job = login.submit(HELLO, "--ranks-per-node", "2", "workflow.py", "two words", "$HOME")
    assert login.ended(job) == ("COMPLETED", 0), login.output(job)
    assert "['node1', 'node2'] ['two words', '$HOME']\n" in login.output(job)
    assert (login.launch.cwd / "said").read_text() == "in bash\n"
    shown = login.call("scontrol", "show", "job", job)
    assert "JobName=workflow" in shown and "TimeLimit=00:10:00" in shown and "NumNodes=2" in shown


def test_the_status_of_the_script_is_the_jobs(login):
    job = login.submit("raise SystemExit(3)", "workflow.py")
    assert login.ended(job) == ("FAILED", 3), login.output(job)


def test_a_chain_finishes_by_resume(login):
    first = login.submit(TWICE, "--chain", "2", "workflow.py")
    assert login.ended(first) == ("FAILED", 75), login.output(first)
    second = str(int(first) + 1)
    assert f"Submitted batch job {second}\n" in login.output(first)
    assert login.ended(second) == ("COMPLETED", 0), login.output(second)
    assert "all right\n" in login.output(second)
    assert "5 calls did not run again" in login.output(second)
    assert not (login.launch.cwd / f"workflow-{int(second) + 1}.out").exists()


def test_a_cancelled_chain_does_not_go_on(login):
    job = login.submit(LONG, "--chain", "2", "workflow.py")
    until = time.monotonic() + 60
    while not (login.launch.cwd / "begun").exists():
        assert time.monotonic() < until, login.output(job)
        time.sleep(0.1)
    login.call("scancel", job)
    assert login.ended(job)[0] == "CANCELLED"
    assert login.call("squeue", "--noheader") == ""
    assert "submitting the next job" not in login.output(job)


def test_the_script_runs_in_an_interactive_allocation(login):
    (login.launch.cwd / "workflow.py").write_text(HELLO)
    script = login.call(sys.executable, "-m", "exex", "jobscript", *ASKED, *SET, "workflow.py")
    (login.launch.cwd / "job.sh").write_text(script)
    out = login.call("salloc", "--nodes=2", "--exclusive", "--time=10", "--quiet", "bash", "job.sh")
    assert "['node1', 'node2'] []\n" in out


STAGED = """
import os, sys
from exex import python_app

@python_app
def where(i):
    import os, socket, sys, time
    time.sleep(0.2)
    return socket.gethostname(), sys.prefix

node = os.environ["NODE"]
found = sorted({f.result() for f in [where(i) for i in range(24)]})
assert [host for host, _ in found] == ["node1", "node2"], found
assert all(f"{node}/exex-stage-0/{host}-" in prefix for host, prefix in found), found
print("script and tasks are", "staged" if sys.prefix in dict(found).values() else f"in {sys.prefix}", flush=True)
"""


def test_ranks_start_from_what_a_step_has_staged(login):
    node = login.launch.cwd / "node"
    make_archive(login.launch.cwd, copied=False)
    node.mkdir()
    words = ["--stage", "env.tar", "--stage-dir", str(node), f"--set-env=NODE={node}", "--ranks-per-node", "2"]
    job = login.submit(STAGED, *words, "workflow.py")
    assert login.ended(job) == ("COMPLETED", 0), login.output(job)
    said = login.output(job)
    assert "script and tasks are staged\n" in said and said.count("exex: staged env.tar ") == 1 and "ranks start" not in said
    assert not [path for path in node.rglob("*") if path.is_file()]


def test_a_step_that_cannot_stage_ends_the_job(login):
    job = login.submit("print('never')", "--stage", "nothere.tar", "workflow.py")
    assert login.ended(job) == ("FAILED", 1)
    said = login.output(job)
    assert said.count("cannot stage nothere.tar: No such file or directory") == 1 and "never" not in said
    assert "exex: the job ends, because it could not be staged" in said
