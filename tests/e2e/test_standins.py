"""The stand-ins for launchers: they refuse what the real ones refuse, place ranks on hosts, and end as these do."""

import os
import shlex
import signal
import subprocess

import pytest

from tests.standins.allocation import LAUNCHERS, FakeAllocation


@pytest.fixture
def allocation(launch, tmp_path):
    """`allocation(launcher)`: four hosts of four cores, and a way to run commands in a job script there."""
    if launch.family != "mpich":
        pytest.skip("stand-ins start ranks by MPICH's mpiexec")

    class Job(FakeAllocation):
        def start(self, command, **extra):
            return launch.start(shlex.split(command), **{**self.environment, **extra})

        def run(self, command, **extra):
            return launch.finish(self.start(command, **extra), 30)

    return lambda launcher: Job(launcher, tmp_path / "job", launch.mpiexec)


REFUSED = {
    "srun": [
        ("srun --ntask=2 true", "unrecognized option '--ntask=2'"),
        ("srun -n", "option -n requires an argument"),
        ("srun -n two true", "invalid value for -n: 'two'"),
        ("srun -n 1 -n 2 true", "option -n is given twice"),
        ("srun -n 2", "no program is named"),
        ("srun --ppn 2 true", "unrecognized option '--ppn'"),
        ("srun -N2 -n2 -w nid00010,nid00099 true", "Requested node configuration is not available: nid00099"),
        ("srun -N1 -n2 -w nid00010,nid00011 true", "more nodes than permitted"),
        ("srun -N5 -n5 true", "More nodes requested than permitted"),
        ("srun -N2 -n1 true", "can't run 1 processes on 2 nodes"),
        ("srun -N2 -n5 --ntasks-per-node=2 true", "5 tasks do not fit 2 nodes of 2"),
        ("srun -N1 -n5 true", "Requested node configuration is not available"),
        ("srun -N1 -n2 -c3 true", "Requested node configuration is not available"),
        ("srun -n1 --cpu-bind=core true", "Invalid --cpu-bind specification: core"),
        ("srun -n1 --mpi=pmi1 true", "Invalid --mpi specification: pmi1"),
        ("srun -n1 --time=1.5 true", "Invalid --time specification: 1.5"),
    ],
    "aprun": [
        ("aprun -n 2 --ppn 1 true", "unrecognized option '--ppn'"),
        ("aprun -n 5 -N 5 true", "-N 5 with -d 1 exceeds the 4 CPUs of a node"),
        ("aprun -n 4 -N 4 -d 2 true", "-N 4 with -d 2 exceeds"),
        ("aprun -n 2 -N 1 -L 10,14 true", "NIDs are not in the reservation: nid00014"),
        ("aprun -n 2 -N 1 -L nid00010 true", "invalid list"),
        ("aprun -n 5 -N 1 true", "claim exceeds reservation's node-count"),
        ("aprun -n 1 -cc cores true", "-cc cores: not a cpu list or keyword"),
        ("aprun -n 1 -e A true", "-e must have the form VARNAME=value"),
        ("aprun -n 1 -F all true", "-F value must be exclusive or share"),
    ],
    "mpiexec-pals": [
        ("mpiexec -N 2 true", "unrecognized option '-N'"),
        ("mpiexec -n 2 --bind-to core true", "unrecognized option '--bind-to'"),
        ("mpiexec -n 2 --hosts nid00010,nid00099 true", "Host is not in the job: nid00099"),
        ("mpiexec -n 3 --ppn 1 --hosts nid00010,nid00011 true", "need more than the 2 hosts given"),
        ("mpiexec -n 1 --cpu-bind cores true", "Invalid CPU binding cores"),
        ("mpiexec -n 4 --ppn 4 --depth 2 --cpu-bind depth true", "4 ranks of depth 2 do not fit the 4 CPUs"),
        ("mpiexec -n 1 --env A true", "Invalid value for '--env'"),
        ("mpiexec -n 1 --pmi pmi2 true", "Invalid value for '--pmi': pmi2"),
    ],
    "jsrun": [
        ("jsrun -n 2 --hosts nid00010 true", "unrecognized option '--hosts'"),
        ("jsrun -n 1 -c 5 true", "Resource request exceeds what one host has"),
        ("jsrun -n 1 -g 7 true", "Resource request exceeds what one host has"),
        ("jsrun -n 5 -r 1 -c 1 true", "Not enough free resources"),
        ("jsrun -n 1 -b core true", "invalid binding core"),
        ("jsrun -n 1 -d random true", "invalid distribution random"),
        ("jsrun -n 1 -E 1=2= true", None),
        ("jsrun -n 1 -E =2 true", "invalid environment variable"),
    ],
    "flux": [
        ("flux srun -n 1 true", "`flux srun` is not here"),
        ("flux run -n 1 --hosts=nid00010 true", "unrecognized option '--hosts=nid00010'"),
        ("flux run -n 1 --requires=hosts:nid00099 true", "unsatisfiable request: nid00099"),
        ("flux run -n 1 --requires=nodes:nid00010 true", "invalid constraint nodes:nid00010"),
        ("flux run -N 2 -n 1 true", "node count must not be greater than task count"),
        ("flux run -N 1 -n 5 true", "unsatisfiable request"),
        ("flux run -n 1 -t 10x true", "invalid Flux standard duration 10x"),
        ("flux run -n 1 -o cpu-affinity=core true", "invalid shell option cpu-affinity=core"),
        ("flux run -n 1 -o exit-timout=none true", "invalid shell option exit-timout=none"),
    ],
    "ibrun": [
        ("ibrun -N 1 true", "unrecognized option '-N'"),
        ("ibrun -n 5 true", "-n 5 -o 0 exceeds the 4 task slots of the job"),
        ("ibrun -n 2 -o 3 true", "-n 2 -o 3 exceeds"),
    ],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_what_the_real_ones_do_not_know_is_refused(allocation, launcher):
    job = allocation(launcher)
    for command, message in REFUSED[launcher]:
        done = job.run(command)
        assert bool(done.status) == bool(message), command
        assert (message or "") in done.err, command


WHERE = "sh -c 'echo $(hostname) $STANDIN_HOST'"
PLACED = [
    ("srun", "srun -N2 -n 3", "10 10 11"),
    ("srun", "srun --nodes 2 --ntasks-per-node=2 --nodelist=nid00013,nid00011", "11 11 13 13"),
    ("srun", "srun -N3 -w nid[00012-00013] -n3", "10 12 13"),
    ("aprun", "aprun -q -n 3 -N 2", "10 10 11"),
    ("aprun", "aprun -q --pes 2 -N1 -L 12-13", "12 13"),
    ("mpiexec-pals", "mpiexec -np 3 --ppn=2", "10 10 11"),
    ("mpiexec-pals", "mpiexec -n 2 -ppn 1 -hosts nid00013,nid00011", "13 11"),
    ("jsrun", "jsrun --nrs=3 -r 2", "10 10 11"),
    ("jsrun", "jsrun -n2 -r1 -a2 -c2", "10 10 11 11"),
    ("flux", "flux run -N2 -n3", "10 10 11"),
    ("flux", "flux run -N 2 --ntasks=2 --requires=hosts:nid00012,nid00013", "12 13"),
    ("ibrun", "env SLURM_TASKS_PER_NODE=2(x4) ibrun -n 3 -o 2", "11 11 12"),
]


@pytest.mark.parametrize("launcher, command, hosts", PLACED)
def test_ranks_are_on_the_hosts_that_were_asked_for(allocation, launcher, command, hosts):
    done = allocation(launcher).run(f"{command} {WHERE}")
    assert done.status == 0, done.err
    pairs = [line.split() for line in done.out.splitlines()]
    assert sorted(host for _, host in pairs) == sorted(f"nid000{number}" for number in hosts.split())
    if os.geteuid() == 0:
        assert all(name == host for name, host in pairs)


ONE = {
    "srun": "srun -n 2 -N 1",
    "aprun": "aprun -n 2 -N 2",
    "mpiexec-pals": "mpiexec -n 2 --ppn 2",
    "jsrun": "jsrun -n 2 -r 2",
    "flux": "flux run -n 2",
    "ibrun": "env SLURM_TASKS_PER_NODE=2(x4) ibrun -n 2",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_status_is_that_of_the_ranks(allocation, launcher):
    job = allocation(launcher)
    assert job.run(f"{ONE[launcher]} true").status == 0
    ends = "sh -c 'test $PMI_RANK = 0 && exit 3; exit 0'"
    done = job.run(f"{ONE[launcher]} {ends}")
    assert done.status == 3
    assert "3" in done.err


LEFT = "sh -c 'test $PMI_RANK = 0 && kill -9 $$; exec sleep 60'"
ENDS_ALL = {**ONE, "srun": "srun -n 2 -N 1 -K", "flux": "flux run -n 2 -o exit-on-error"}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_rank_that_is_killed_ends_the_others(allocation, launcher):
    done = allocation(launcher).run(f"{ENDS_ALL[launcher]} {LEFT}")
    assert done.status in (137, 143)  # srun and flux tell the highest, which may be that of a rank that they have ended
    assert done.seconds < 20


GO_ON = {"srun": "srun -n 2 -N 1 -K0 --no-kill", "mpiexec-pals": "mpiexec -n 2 --no-abort-on-failure", "flux": "flux run -n 2 -o exit-timeout=none"}


@pytest.mark.parametrize("launcher", GO_ON)
def test_the_others_go_on_if_they_are_let(allocation, tmp_path, launcher):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    job = allocation(launcher)
    job.start(f"{GO_ON[launcher]} sh -c 'test $PMI_RANK = 0 && kill -9 $$; echo on > {fifo}'")
    assert fifo.read_text() == "on\n"


def test_flux_ends_what_runs_too_long(allocation):
    job = allocation("flux")
    assert job.run("flux run -n 1 --time-limit=0.3s sleep 60").status == 142
    assert job.run("flux run -n 2 -o exit-timeout=0.3s sh -c 'test $PMI_RANK = 0 && exit 0; exec sleep 60'").status == 1


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_go_to_every_rank(allocation, launcher, number):
    name = number.name.removeprefix("SIG")
    job = allocation(launcher)
    started = job.start(f"{ONE[launcher]} sh -c 'trap \"echo got; exit 0\" {name}; echo up; while :; do sleep 0.05; done'")
    assert [started.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
    if launcher == "ibrun":  # `env` has become ibrun
        assert started.args[0] == "env"
    started.send_signal(number)
    out, _ = started.communicate(timeout=30)
    assert out.split()[:2] == ["got", "got"]
    assert started.returncode == 0


BUSY = [
    ("srun", "srun -N1 -n1", "srun -N1 -n1 -w nid00010 true", "Requested nodes are busy", "srun --overlap -N1 -n1 -w nid00010 true"),
    ("aprun", "aprun -n1 -N1 -L 10", "aprun -n1 -N1 -L 10 true", "nid00010 runs another application", "aprun -n 1 -L 11 true"),
    ("jsrun", "jsrun -n4 -r1 -c3", "jsrun -n1 -c2 true", "Not enough free resources", "jsrun -n 1 -c 1 true"),
    ("flux", "flux run -N4 -n4 -c3", "flux run -n1 -c2 true", "not enough free cores", "flux run -n1 -c1 true"),
]


@pytest.mark.parametrize("launcher, first, second, message, right", BUSY)
def test_cores_and_nodes_that_are_held(allocation, launcher, first, second, message, right):
    job = allocation(launcher)
    until = subprocess.Popen(["sleep", "60"])
    world = job.start(f"{first} sh -c 'echo up; exec tail --pid={until.pid} -s0.05 -f /dev/null'")
    assert world.stdout.readline() == "up\n"
    done = job.run(second)
    assert done.status != 0
    assert message in done.err
    assert job.run(right).status == 0
    until.kill()
    until.wait()
    world.communicate(timeout=30)
    assert job.run(second).status == 0


@pytest.mark.parametrize("launcher", ["aprun", "jsrun"])
def test_some_cannot_be_called_on_a_compute_node(allocation, launcher):
    done = allocation(launcher).run(f"{launcher} -n 1 {launcher} -n 1 true")
    assert done.status == 1
    assert f"{launcher} cannot be called on a compute node (nid00010)" in done.err


def test_a_killed_stand_in_leaves_no_rank(allocation):
    job = allocation("srun")
    started = job.start("srun -n 2 -N 1 sh -c 'echo $$; exec sleep 60'")
    pids = [int(started.stdout.readline()) for _ in range(2)]
    started.kill()
    started.wait()
    for pid in pids:
        subprocess.run(["tail", f"--pid={pid}", "-s0.05", "-f", "/dev/null"], timeout=20, check=True)


def test_srun_takes_a_steps_variables_for_options(allocation):
    step = {"SLURM_NNODES": "2", "SLURM_NTASKS": "2"}
    job = allocation("srun")
    assert job.run("srun true", **step).status == 0
    assert job.launches() == [{"step": 0, "argv": ["srun", "true"], "ranks": {"nid00010": 1, "nid00011": 1}, "from": None}]
