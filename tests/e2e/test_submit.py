"""`exex submit` from the login node to the end of the work: job scripts for real machines run in stand-ins of their batch systems
and launchers, and chains go on by resume.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from exex.launch.machines import load_machine
from tests.launch import ROOT, Ended, Launch
from tests.standins.batch import FakeBatchSystem

HELLO = """
import os, socket, sys
from exex import bash_app, python_app

@python_app
def square(x):
    return x * x

@bash_app
def where(stdout=None):
    return "hostname"

assert [f.result() for f in [square(x) for x in range(20)]] == [x * x for x in range(20)]
where(stdout=("where", "w")).result()
with open("said", "w") as file:
    print(repr(sys.argv[1:]), file=file)
"""
CACHED = """
import os
from exex import python_app

if os.path.exists("begun"):
    open("again", "w").close()  # what is left is quick
open("begun", "w").close()

@python_app(cache=True)
def half(i):
    import time
    time.sleep(0 if os.path.exists("again") else 0.5)
    fd = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\\n" % i)
    os.close(fd)
    return i

assert [future.result() for future in [half(i) for i in range(28)]] == list(range(28))
print("all right", flush=True)
"""


class Site:
    """A login node."""

    def __init__(self, launch: Launch, batch: FakeBatchSystem) -> None:
        self.launch, self.batch = launch, batch

    def exex(self, *words: str) -> Ended:
        """Run `exex WORDS`."""
        return self.launch.finish(self.launch.start([sys.executable, "-m", "exex", *words], **self.batch.environment))

    def output(self, job: str) -> str:
        """What a job has printed."""
        (path,) = self.launch.cwd.glob(f"*{job.partition('.')[0]}*")
        return path.read_text()

    def submit(self, *words: str) -> str:
        """Submit a job; its id."""
        done = self.exex("submit", *words)
        assert done.status == 0, done.err
        return done.out.strip()


@pytest.fixture
def site(launch, tmp_path):
    """`site(system, launcher)`; there is a workflow.py in the current directory."""

    def make(system: str, launcher: str | None = None, cores: int = 4) -> Site:
        if launcher is not None and launch.family != "mpich":
            pytest.skip("stand-ins start ranks by MPICH's mpiexec")
        launch.cwd = tmp_path / "project"
        launch.cwd.mkdir()
        (launch.cwd / "workflow.py").write_text(HELLO)
        return Site(launch, FakeBatchSystem(system, launcher, tmp_path / "site", launch.mpiexec, cores=cores))

    return make


MACHINES = [
    ("perlmutter-cpu", "Slurm", "srun", ["--queue", "debug"]),
    ("frontera", "Slurm", "ibrun", ["--queue", "small"]),
    ("polaris", "PBS", "mpiexec-pals", ["--queue", "debug", "--account", "Ocean"]),
    ("blue-waters", "Torque", "aprun", []),
    ("theta", "Cobalt", "aprun", ["--queue", "debug-cache-quad", "--account", "Ocean"]),
    ("summit", "LSF", "jsrun", ["--account", "ABC123"]),
]


@pytest.mark.parametrize("machine, system, launcher, words", MACHINES, ids=[machine for machine, *_ in MACHINES])
def test_a_job_on_a_real_machine(site, machine, system, launcher, words):
    here = site(system, launcher, load_machine(machine, {"HOME": "/nobody"}).node.cores)
    common = ["--machine", machine, "--nodes", "2", "--walltime", "5:00", "--slots", "2", "--set-env", f"PYTHONPATH={ROOT}"]
    job = here.submit(*common, *words, "workflow.py", "two words", "$HOME", "it's\nnew")
    status = here.batch.ended(job)
    assert status == 0, here.output(job)
    assert (here.launch.cwd / "said").read_text() == repr(["two words", "$HOME", "it's\nnew"]) + "\n"
    (launched,) = here.batch.launches(job)
    assert launched["ranks"] == {"nid00010": 1, "nid00011": 1}
    if os.geteuid() == 0:
        assert (here.launch.cwd / "where").read_text() in ("nid00010\n", "nid00011\n")
    script = here.launch.cwd / "workflow.sh"
    assert script.exists() and os.access(script, os.X_OK)


SUBTASKS = """
import os, shlex
from exex import AppTimeout, BashExitFailure, bash_app
from exex.launch.helped import helped

def aprun(*words):
    return shlex.join(helped(["aprun", "-q", *words], os.environ))

@bash_app
def hosts(number, stdout=None):
    return aprun("-n", "2", "-N", "1", "-L", "12-13") + f" sh -c 'echo {number} $STANDIN_HOST'"

@bash_app(walltime=1)
def hangs():
    return "trap '' TERM; " + aprun("-n", "2", "-N", "1", "-L", "12-13") + " sh -c 'trap \"\" TERM; touch hangs.$ALPS_APP_PE; sleep 1000 & wait'"

@bash_app
def fails():
    return aprun("-n", "1", "-L", "12") + " sh -c 'echo no good >&2; exit 3'"

@bash_app
def crashes():
    return aprun("-n", "1", "-L", "99") + " true"

hosts(1, stdout=("first", "w")).result()
assert type(hangs().exception()) is AppTimeout
assert os.path.exists("hangs.0") and os.path.exists("hangs.1")
hosts(2, stdout=("second", "w")).result()  # on the nodes that are free again
error = fails().exception()
assert type(error) is BashExitFailure and error.exitcode == 3 and "no good" in str(error), error
error = crashes().exception()
assert "apsched: NIDs are not in the reservation: nid00099" in str(error), error
print("all right", flush=True)
"""


def test_what_compute_nodes_cannot_launch_is_launched_beside_the_job_script(site):
    """Tasks on the first two nodes of four start aprun for the others, over the launch helper that the job script has started."""
    here = site("Cobalt", "aprun", 64)
    (here.launch.cwd / "workflow.py").write_text(SUBTASKS)
    asked = ["--machine", "theta", "--queue", "debug-cache-quad", "--account", "Ocean", "--nodes", "4", "--walltime", "5:00", "--slots", "1"]
    text = here.exex("jobscript", *asked, "--set-env", f"PYTHONPATH={ROOT}", "workflow.py").out
    assert "aprun -n 4 -N 1" in text
    script = here.launch.cwd / "job.sh"
    text = text.replace("aprun -n 4 -N 1", "aprun -n 2 -N 1 -L 10-11").replace("launch-helper --launcher", "launch-helper --grace-s 1 --launcher")
    script.write_text(text)
    script.chmod(0o755)
    job = here.launch.finish(here.launch.start(["qsub", str(script)], **here.batch.environment)).out.strip()
    assert here.batch.ended(job) == 0, here.output(job)
    assert "all right\n" in here.output(job)
    for number, name in ((1, "first"), (2, "second")):
        assert sorted((here.launch.cwd / name).read_text().splitlines()) == [f"{number} nid00012", f"{number} nid00013"]
    world, *others = here.batch.launches(job)
    assert world["ranks"] == {"nid00010": 1, "nid00011": 1}
    assert [(other["from"], other["ranks"]) for other in others] == [(None, {"nid00012": 1, "nid00013": 1})] * 3 + [(None, {"nid00012": 1})]


HERE = """
description = "this machine"
batch_system = "{system}"
launcher = "{launcher}"
nodes = 4

[environment]
{environment}

[queues.main]
default = true
nodes_most = 2
walltime_most = "1:00:00"
"""


def describe(here: Site, system: str) -> None:
    """A machine file of the user's, `here`, for a site whose scripts start the real mpiexec."""
    root = here.launch.environment()
    names = [name for name in root if name.startswith(("OMPI_ALLOW", "PRTE_MCA"))]
    environment = {
        **{name: root[name] for name in names},
        "PATH": f"{Path(here.launch.mpiexec).parent}:$PATH",
        "PYTHONPATH": str(ROOT),
        "HYDRA_LAUNCHER": "fork",
        "PRTE_MCA_ras": "^slurm",
    }
    folder = Path(here.batch.environment["HOME"], ".config", "exex", "configs")
    folder.mkdir(parents=True)
    text = HERE.format(
        system=system,
        launcher="mpiexec-openmpi" if here.launch.family == "openmpi" else "mpiexec-hydra",
        environment="\n".join(f'{name} = "{value}"' for name, value in environment.items()),
    )
    (folder / "here.toml").write_text(text)


def test_a_chain_finishes_by_resume(site, launch):
    system = "Slurm" if launch.family == "mpich" else "PBS"
    here = site(system)
    describe(here, system)
    (here.launch.cwd / "workflow.py").write_text(CACHED)
    asked = ["--machine", "here", "--ranks-per-node", "3", "--slots", "1", "--chain", "3", "--walltime", "9"]
    first = here.submit(*asked, "workflow.py")
    assert here.batch.ended(first) == 75, here.output(first)
    ran = (here.launch.cwd / "ran").read_text().split()
    assert 0 < len(ran) < 28, here.output(first)
    assert "exit status 75: submitting the next job; 2 more may follow it\n" in here.output(first)
    number = 1
    while here.batch.ended(last := here.batch.jobs()[number]) == 75:  # on a busy machine
        number += 1
    assert "all right\n" in here.output(last), here.output(last)
    assert here.batch.jobs()[-1] == last
    assert f"{len(ran)} calls did not run again" in here.output(here.batch.jobs()[1])
    assert sorted((here.launch.cwd / "ran").read_text().split(), key=int) == [str(i) for i in range(28)], "each ran once"


@pytest.mark.one_library
def test_a_chain_that_gets_nowhere_ends(site):
    here = site("Slurm")
    describe(here, "Slurm")
    (here.launch.cwd / "workflow.py").write_text("import exex\n@exex.python_app(walltime=3600)\ndef f(): pass\nf().result()\n")
    here.submit("--machine", "here", "--chain", "2", "--walltime", "5", "workflow.py")
    for number in range(3):
        assert here.batch.ended(here.batch.jobs()[number]) == 75
    assert len(here.batch.jobs()) == 3


@pytest.mark.parametrize(
    "words, says",
    [
        (["--nodes", "3"], "the queue main of here takes 1 to 2 nodes, not 3"),
        (["--nodes", "5"], "here has 4 nodes, not 5"),
        (["--walltime", "2:00:00"], "the queue main of here lets 1 node run for 01:00:00, not 02:00:00"),
        (["--queue", "mian"], "here has no queue 'mian'; the nearest is 'main'; all: main"),
        (["--account", "a b"], "--account is 'a b'; accounts of here are names"),
        (["--walltime", "soon"], "--walltime: 'soon' is no duration"),
    ],
)
def test_what_cannot_run_is_not_submitted(site, words, says):
    here = site("Slurm")
    describe(here, "Slurm")
    done = here.exex("submit", "--machine", "here", "--walltime", "5:00", *words, "workflow.py")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"exex submit: {says}")
    assert here.batch.jobs() == [] and sorted(os.listdir(here.launch.cwd)) == ["workflow.py"]


def test_what_the_batch_system_refuses_is_told(site):
    here = site("Slurm")
    describe(here, "Slurm")
    done = here.exex("submit", "--machine", "here", "--walltime", "5:00", "--directive=--nodse=2", "workflow.py")
    assert (done.status, done.out) == (1, "")
    assert "workflow.sh ended with status 1; it said: sbatch: error: unrecognized option '--nodse=2'" in done.err
