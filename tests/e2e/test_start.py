"""Programs that start a world for themselves: it works as under `exex run`, and ends with the program, however that ends."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.launch import Launch
from tests.standins.allocation import FakeAllocation

PROGRAM = """
import json, multiprocessing, os, signal, sys, threading, time
import psutil
import exex
from beside import double

@exex.python_app
def whoami():
    return os.getpid(), os.getppid()

class Point:
    pass

def begin(**settings):
    return exex.start(2, slots=1, log="logs/exex.log", **settings)
"""


def program(launch: Launch, text: str) -> list[str]:
    (launch.cwd / "beside.py").write_text("def double(x):\n    return 2 * x\n")
    path = launch.cwd / "program.py"
    path.write_text(PROGRAM + text)
    return [sys.executable, str(path)]


def left(launch: Launch) -> list[str]:
    """Directories of worlds that are still there."""
    return [path.name for path in Path(launch.cwd, "tmp").iterdir() if path.name != f"exex-store-{os.getuid()}"]


@pytest.fixture
def temporary(launch: Launch) -> dict[str, str]:
    (launch.cwd / "tmp").mkdir()
    return {"TMPDIR": str(launch.cwd / "tmp")}


def test_a_program_has_worlds_of_its_own_one_after_the_other(launch: Launch, temporary: dict[str, str]) -> None:
    text = """
with begin() as world:
    assert (world.workers, world.slots, world.connected) == (2, 2, True), world
    assert list(exex.map(double, range(4))) == [0, 2, 4, 6]
    assert type(world.executor().submit(Point).result()) is Point
    assert "NAME" not in world.executor().submit(lambda: "EXEX_CLIENT_SOCKET NAME" if "EXEX_CLIENT_SOCKET" in os.environ else "").result()
    try:
        exex.start()
    except exex.StartError as error:
        assert "client of a job already" in str(error), error
    everything = psutil.Process().children(recursive=True)
assert not world.connected
world.close()
gone, alive = psutil.wait_procs(everything, timeout=0)
assert not alive, alive
world = begin()
assert whoami().result()[0] != os.getpid()
print("fine")  # and leaves the world to the end of the program
"""
    ended = launch.finish(launch.start(program(launch, text), **temporary))
    assert (ended.status, ended.out, ended.err) == (0, "fine\n", ""), (ended, Path(launch.cwd, "logs/exex.log").read_text())
    assert left(launch) == []


def test_a_program_that_is_killed_takes_its_world_along(launch: Launch, temporary: dict[str, str]) -> None:
    text = """
def start_in_a_thread_that_ends():
    begin()

thread = threading.Thread(target=start_in_a_thread_that_ends)
thread.start()
thread.join()
task, keeper = whoami().result()
exex.Executor().submit(time.sleep, 1000)
survivor = os.fork()  # has copies of all descriptors, and outlives the program
if not survivor:
    signal.pause()
children = [process.pid for process in psutil.Process().children(recursive=True) if process.pid != survivor]
print(json.dumps([survivor, task, *children]), flush=True)
signal.pause()
"""
    started = launch.start(program(launch, text), **temporary)
    survivor, *pids = json.loads(launch.read_until(started, "["))
    processes = [psutil.Process(pid) for pid in pids]
    started.kill()
    try:
        _, alive = psutil.wait_procs(processes, timeout=60)
        assert not alive, alive
        assert psutil.pid_exists(survivor)
    finally:
        os.kill(survivor, signal.SIGKILL)
    assert launch.finish(started).status == -signal.SIGKILL
    assert left(launch) == []


def test_rank_0_on_another_node(launch: Launch, temporary: dict[str, str]) -> None:
    if launch.family != "mpich":
        pytest.skip("stand-ins start ranks by MPICH's mpiexec")
    allocation = FakeAllocation("aprun", launch.cwd / "allocation", launch.mpiexec, nodes=2)
    text = """
with exex.start(log="logs/exex.log", slots=1, manager_slots=0) as world:
    assert world.workers == 1, world
    assert whoami().result()[0] != os.getpid()
    assert type(world.executor().submit(Point).result()) is Point
    everything = psutil.Process().children(recursive=True)
    files = os.listdir("logs")
    assert len(files) == 2, files
gone, alive = psutil.wait_procs(everything, timeout=0)
assert not alive, alive
assert os.listdir("logs") == ["exex.log"]
print("fine")
"""
    ended = launch.finish(launch.start(program(launch, text), **temporary, **allocation.environment))
    assert (ended.status, ended.out, ended.err) == (0, "fine\n", ""), (ended, Path(launch.cwd, "logs/exex.log").read_text())
    assert [step["argv"][:5] for step in allocation.launches()] == [["aprun", "-n", "2", "-N", "1"]]
    assert left(launch) == []
