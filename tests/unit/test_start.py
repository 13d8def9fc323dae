"""A program's own world: its command line, how it is held, and how the program becomes its client. The world here is a short script."""

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from exex.client import session
from exex.client.start import _words, start
from exex.errors import ConfigError, StartError
from exex.launch import hand_over, holding, launcher, own_command
from exex.launch.allocation import Allocation, Node
from exex.launch.holding import Held
from exex.launch.own_command import OwnCommand, Shape

ROOT = str(Path(__file__).resolve().parents[2])
DEPUTY = """
import os, socket, sys
from exex.launch.hand_over import CLIENT_SOCKET, stand_in
ours, theirs = socket.socketpair()
theirs = theirs.detach()
ours.sendall(b"from the manager")
status = stand_in(os.environ[CLIENT_SOCKET], theirs)
print("deputy:", status, flush=True)
with open(os.path.join(os.environ["EXEX_JOB_DIR"], "status"), "w") as file:
    print(status, file=file)
"""


@pytest.fixture
def hold(tmp_path, monkeypatch):
    """Holds a script as if it were a world."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(holding.tempfile, "tempdir", None)
    log = tmp_path / "logs" / "exex.log"

    def hold(script):
        env = {**os.environ, "PYTHONPATH": ROOT}
        return Held([sys.executable, "-c", textwrap.dedent(script)], env, str(log), 5.0)

    hold.log = log
    yield hold
    assert [path.name for path in tmp_path.iterdir() if path != log.parent] == []


def test_the_program_gets_the_stream_and_dismisses_its_deputy(hold):
    held = hold(DEPUTY)
    with held.await_client() as stream:
        assert stream.recv(100) == b"from the manager"
    held.end()
    held.end()
    assert hold.log.read_text() == "deputy: 0\n"


def test_a_world_that_does_not_come_up_says_why(hold):
    held = hold("import sys; print('no such library'); sys.exit(3)")
    with pytest.raises(StartError, match=r"did not come up \(exit status 3\); .*exex.log ends:\n(.*\n)*no such library"):
        held.await_client()
    held.end()


def test_a_world_that_does_not_end_is_ended(hold):
    held = hold(DEPUTY.replace("status = stand_in", "stand_in").replace('print("deputy:", status, flush=True)', "import signal; signal.pause()"))
    held.await_client().close()
    held._deputy.forget()  # as if the word did not reach it
    held._deputy = None
    held.end()
    assert "ending the job" in hold.log.read_text()


def test_a_deputy_hears_of_the_death_of_the_program(tmp_path):
    reception = hand_over.Reception(str(tmp_path))
    command = [sys.executable, "-c", DEPUTY]
    env = {**os.environ, "PYTHONPATH": ROOT, hand_over.CLIENT_SOCKET: reception.path, "EXEX_JOB_DIR": str(tmp_path)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    stream, deputy = reception.take()
    assert deputy.pid == process.pid
    deputy.forget()  # what the kernel does
    stream.close()
    assert process.communicate(timeout=30)[0] == "deputy: 1\n"
    reception.close()


def test_a_deputy_that_finds_nobody_says_where_it_is(tmp_path):
    ours, _ = socket.socketpair()
    with pytest.raises(StartError, match=f"it has ended, or runs on another node than rank 0, which is at {socket.gethostname()}"):
        hand_over.stand_in(str(tmp_path / "nobody"), ours.detach())


def test_a_forked_child_lets_go_of_the_world(hold):
    held = hold(DEPUTY)
    held.await_client().close()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.write(write, b"open" if held in holding._running else b"let go")
        os._exit(0)
    assert os.read(read, 100) == b"let go"
    os.waitpid(child, 0)
    held.end()
    os.close(read)
    os.close(write)


def test_one_process_is_the_client_of_one_job(monkeypatch):
    monkeypatch.setattr(session, "is_client", lambda: True)
    with pytest.raises(StartError, match="client of a job already"):
        start()


def test_settings_are_checked_and_passed_on():
    settings = {"slots": 2, "preload": ["numpy", "parsl"], "progress": True, "resume": False, "walltime": None}
    words = _words(settings)
    assert sorted(words) == sorted(["--slots", "2", "--preload", "numpy,parsl", "--progress", "--no-resume"])
    assert words[words.index("--slots") + 1] == "2"
    with pytest.raises(ConfigError, match="the nearest is --slots"):
        start(slot=2)


# ---- command lines ----------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """A machine with MPICH; `machine(allocation)` is what the batch system has granted."""
    library = launcher.Library("hydra", "MPICH 5", "/lib/libmpi.so", "4.1")
    monkeypatch.setattr(launcher, "mpi_library", lambda python, env: library)
    monkeypatch.setattr(launcher, "find_mpiexec", lambda library, python, env: launcher.Launcher("hydra", "/b/mpiexec", "Hydra"))
    monkeypatch.setattr("exex.launch.allocation.usable_cores", lambda: 8)
    monkeypatch.setattr(own_command.socket, "gethostname", lambda: "nid00010.example.org")

    def grant(system="", names=("nid00010",), cores=32):
        found = Allocation(system, "17", tuple(Node(name, cores) for name in names), len(names) or None)
        monkeypatch.setattr("exex.launch.allocation.find_allocation", lambda env: found)

    grant()
    return grant


def command(slots="auto", **shape) -> OwnCommand:
    return own_command.own_command(Shape(**shape), ["--no-progress"], slots, ["/home/ada/parsl"], {"HOME": "/home/ada"})


def test_on_one_machine_mpiexec_starts_it(machine):
    found = command(workers=2)
    assert found.is_near
    assert found.argv[0] == "/b/mpiexec"
    assert found.argv[-8:] == [sys.executable, "-m", "exex.run", "--no-progress", "--slots", "4", "--", "/home/ada/parsl"]
    with pytest.raises(ConfigError, match="nodes=2 needs a launcher"):
        command(nodes=2)


@pytest.mark.parametrize(
    "system, names, shape, begins, is_near",
    [
        ("Slurm", ("nid00010", "nid00011"), {}, "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpu-bind=none", True),
        ("Slurm", ("nid00009", "nid00010"), {}, "srun --nodes=2", False),
        ("Slurm", ("nid00010", "nid00011"), {"ranks_per_node": 4, "nodes": 1}, "srun --nodes=1 --ntasks=4", True),
        ("PBS", ("nid00010", "nid00011"), {}, "mpiexec -n 2", True),
        ("Cobalt", ("nid00010", "nid00011"), {}, "aprun -n 2 -N 1", False),
        ("Slurm", ("nid00010", "nid00011"), {"launcher": "mpiexec-hydra"}, "mpiexec -n 2", True),
        ("Slurm", ("nid00010", "nid00011"), {"launcher": "local"}, "/b/mpiexec", True),
    ],
)
def test_in_an_allocation_its_launcher_starts_it(machine, system, names, shape, begins, is_near):
    machine(system, names)
    found = command(**shape)
    assert " ".join(found.argv).startswith(begins)
    assert found.is_near is is_near


def test_what_cannot_be_had_is_said(machine):
    machine("Slurm", ("nid00010", "nid00011"))
    with pytest.raises(ConfigError, match="workers= is for a world on this machine"):
        command(workers=4)
    machine("ALPS", ())
    with pytest.raises(ConfigError, match="say nodes="):
        command(launcher="aprun")
