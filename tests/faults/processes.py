"""Task processes killed at random under a mixed workload: `python -m tests.faults.processes [--runs 20] [--mpi openmpi]`.

Each run starts a world by mpiexec, kills 200 task processes by SIGKILL or SIGSEGV while 2,000 tasks run (python, bash,
with needs, with failures of their own), and checks every result. CI makes one run (test_task_processes.py).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil

from tests.endurance import MARK, nobody_left, task_processes
from tests.launch import Launch

KILLS = 200

WORKLOAD = """
import os, sys
from exex import bash_app, python_app

@python_app(retries=1000)
def square(x):
    import time
    time.sleep(0.01)
    return x * x

@python_app(retries=1000)
def add(*values):
    import time
    time.sleep(0.005)
    return sum(values)

@python_app(retries=1000)
def third_time(name):
    with open(name, "a") as file:
        file.write("x")
    if os.path.getsize(name) < 3:
        raise RuntimeError("not yet")
    return name

@bash_app(retries=1000)
def shell(x, stdout=None):
    return f"sleep 0.01; echo {x}"

@python_app(retries=1000)
def read(path, needs):
    with open(path) as file:
        return int(file.read().split()[-1])

squares = [square(i) for i in range(800)]
sums = [add(*squares[4 * i : 4 * i + 4]) for i in range(200)]
shells = [shell(i, stdout=(f"shell{i}", "w")) for i in range(400)]
reads = [read(f"shell{i}", shells[i]) for i in range(400)]
patient = [third_time(f"try{i}") for i in range(100)]
chain = [add(0, 1)]
for _ in range(99):
    chain.append(add(chain[-1], 1))
print("started", flush=True)

while not os.path.exists("killed"):  # more, until enough have been killed: a fast machine is done before
    squares += (more := [square(i) for i in range(len(squares), len(squares) + 50)])
    more[-1].result()

assert [f.result() for f in squares] == [i * i for i in range(len(squares))]
assert [f.result() for f in sums] == [sum(i * i for i in range(4 * k, 4 * k + 4)) for k in range(200)]
assert [f.result() for f in reads] == list(range(400))
assert [f.result() for f in patient] == [f"try{i}" for i in range(100)]
assert [f.result() for f in chain] == list(range(1, 101))
print("all right", len(squares) + 1200, flush=True)
"""


def run_once(seed: int, directory: Path, kills: int = KILLS, limit_s: float = 150.0) -> tuple[int, float]:
    """One run; how many tasks it had, and how long it took in seconds."""
    rng = random.Random(seed)
    mark = uuid.uuid4().hex
    launch = Launch(directory)
    path = directory / "workflow.py"
    path.write_text(WORKLOAD)
    process = launch.start(launch.argv(3, "-m", "exex.run", "--slots", "2", str(path)), **{MARK: mark})
    began = time.monotonic()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        _kill(rng, mark, kills, began + limit_s, process.pid)
        (directory / "killed").touch()
    finally:
        done = launch.finish(process, limit_s)
    assert done.status == 0, (done.status, done.err)
    assert done.out.startswith("all right "), (done.out, done.err)
    nobody_left(mark)
    return int(done.out.split()[-1]), time.monotonic() - began


def _kill(rng: random.Random, mark: str, kills: int, until: float, world: int) -> None:
    """Kill task processes until it is enough; each once."""
    killed: set[tuple[int, float]] = set()
    while len(killed) < kills:
        assert time.monotonic() < until, f"only {len(killed)} of {kills} could be killed"
        assert psutil.pid_exists(world), "the world has ended"
        victims = [victim for victim in task_processes(mark) if (victim.pid, victim.create_time()) not in killed]
        for victim in rng.sample(victims, min(len(victims), rng.randint(1, 2))):
            try:
                victim.send_signal(rng.choice((signal.SIGKILL, signal.SIGSEGV)))
                killed.add((victim.pid, victim.create_time()))
            except psutil.Error:
                pass
        time.sleep(rng.uniform(0, 0.02))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--mpi", help="mpich or openmpi: what this Python must have; default: whichever it has")
    options = parser.parse_args()
    family = Launch(Path.cwd()).family
    if options.mpi not in (None, family):
        print(f"the mpiexec of {sys.executable} is that of {family}, not of {options.mpi}", file=sys.stderr)
        return os.EX_USAGE
    good = 0
    for seed in range(options.seed, options.seed + options.runs):
        with tempfile.TemporaryDirectory() as directory:
            try:
                tasks, seconds = run_once(seed, Path(directory), options.kills)
            except AssertionError as error:
                print(f"seed {seed}: {error}", flush=True)
                continue
        good += 1
        print(f"seed {seed}: {tasks} tasks, {options.kills} kills, {seconds:.1f} s", flush=True)
    print(f"{family}: {good} of {options.runs} runs with all results right", flush=True)
    return 0 if good == options.runs else 1


if __name__ == "__main__":
    sys.exit(main())
