"""Ranks that die: `python -m tests.faults.dead_ranks [--runs 20] [--seed N] [SCENARIO...]`.

Each run starts a job of 2,000 mixed tasks with dependencies, or of tasks that make tasks, through `exex run`, takes one or two of its worker ranks away
at random moments, and checks every result, the exit status, what was said, and that no process is left; or takes the manager away, and
checks that all others end. CI makes a few runs of each (test_dead_ranks.py).
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from exex.launch.launchers import load_launcher
from tests.endurance import MARK, nobody_left, processes
from tests.launch import Ended, Launch
from tests.slurm import Cluster, why_not

WORKFLOW = """
import sys, time
import exex
from exex import bash_app, python_app

@python_app(cache=True)
def work(i, need=0):
    import time
    time.sleep(0.001 * (i % 5))
    return 2 * i + need

@bash_app
def shell(i, stdout=None):
    return f"echo {i}"

print("manager", exex.manager_pid(), flush=True)
futures = [work(i) for i in range(10)]
want = [2 * i for i in range(10)]
shells = []
for i in range(10, 1900):
    needs = i % 3 == 0
    futures.append(work(i, futures[i - 10]) if needs else work(i))
    want.append(2 * i + (want[i - 10] if needs else 0))
    if i % 19 == 0:
        shells.append(shell(i, stdout=(f"{i}.out", "w")))
print("started", flush=True)
assert [f.result() for f in futures] == want
assert [s.result() for s in shells] == [0] * len(shells)
for i in range(10, 1900):
    if i % 19 == 0:
        assert open(f"{i}.out").read() == f"{i}\\n"
print("all right", flush=True)
"""


TREES = """
import time
import exex
from exex import python_app

@python_app
def leaf(i):
    time.sleep(0.002 * (i % 4))
    return i

@python_app
def tree(levels, i):
    branches = [tree(levels - 1, 3 * i + k) for k in range(3)] if levels else [leaf(i)]
    return sum(branch.result() for branch in branches)

print("manager", exex.manager_pid(), flush=True)
trees = [tree(2, i) for i in range(20)]
assert [tree.result() for tree in trees] == [sum(range(9 * i, 9 * i + 9)) for i in range(20)]
print("all right", flush=True)
"""


def workers(mark: str, manager: int) -> list[psutil.Process]:
    """The worker ranks of a job: its processes that have an MPI library, but for the manager."""
    found = []
    for process in processes(mark):
        with contextlib.suppress(psutil.Error):
            if process.pid != manager and any("/libmpi.so" in mapped.path for mapped in process.memory_maps()):
                found.append(process)
    return found


def kill_rank(rank: psutil.Process) -> None:
    rank.kill()


def stop_rank(rank: psutil.Process) -> None:
    rank.suspend()


def kill_guard(rank: psutil.Process) -> None:
    """The guard and, by the kernel, all below it."""
    guard = rank.parent()
    assert guard is not None
    guard.kill()


OPTIONS = ["--heartbeat-s", "0.2", "--heartbeat-limit-s", "2"]


def exex_run(launch: Launch) -> list[str]:
    return [sys.executable, "-m", "exex", "run", "-n", "3", *OPTIONS]


def run(
    launch: Launch,
    mark: str,
    rng: random.Random,
    hit: Callable[[psutil.Process], None],
    argv: list[str] | None = None,
    workflow: str = WORKFLOW,
    **extra: str,
) -> tuple[Ended, int]:
    """A job of three workers that loses one or two; how it ended, and how many."""
    path = launch.cwd / "workflow.py"
    path.write_text(workflow)
    process = launch.start([*(argv or exex_run(launch)), str(path)], **{MARK: mark, **extra})
    first = process.stdout.readline().split()
    if first[:1] != ["manager"]:
        raise AssertionError(launch.finish(process, 60))
    manager = int(first[1])
    segments = [m.path for m in psutil.Process(manager).memory_maps() if m.path.startswith("/dev/shm/")]
    victims = rng.sample(workers(mark, manager), rng.choice([1, 2]))
    for victim in victims:
        time.sleep(rng.uniform(0, 0.7))
        with contextlib.suppress(psutil.Error):  # the job was faster
            hit(victim)
    done = launch.finish(process, 60)
    nobody_left(mark)
    left = [path for path in segments if os.path.exists(path)]
    assert not left, f"left behind: {left}"
    return done, len(victims)


def survives(
    launch: Launch, mark: str, rng: random.Random, hit: Callable[[psutil.Process], None], workflow: str = WORKFLOW
) -> Ended:
    """All results are right, and the job says whom it has lost."""
    done, victims = run(launch, mark, rng, hit, workflow=workflow)
    assert done.status == 0 and "all right" in done.out, (done.status, done.out, done.err)
    assert done.err.count("exex: lost rank") <= victims, done.err
    return done


def one_dies(launch: Launch, mark: str, rng: random.Random) -> Ended:
    """Ranks are killed, their guards are spared."""
    return survives(launch, mark, rng, kill_rank)


def parents_die(launch: Launch, mark: str, rng: random.Random) -> Ended:
    """Ranks are killed whose tasks wait for tasks of their own, on these and on other ranks."""
    return survives(launch, mark, rng, kill_rank, TREES)


def one_hangs(launch: Launch, mark: str, rng: random.Random) -> Ended:
    """Ranks are stopped, and given up after the limit."""
    return survives(launch, mark, rng, stop_rank)


def guard_dies(launch: Launch, mark: str, rng: random.Random) -> Ended:
    """Guards die, and their ranks with them. Hydra cannot go on then: the job ends at once, and is resumed."""
    if launch.family == "openmpi":
        return survives(launch, mark, rng, kill_guard)
    done, _ = run(launch, mark, rng, kill_guard, [*exex_run(launch), "--journal", "journal"])
    if done.status == 0:  # the job was faster
        assert "all right" in done.out, (done.status, done.out, done.err)
        return done
    again = [*exex_run(launch), "--journal", "journal", "--resume", str(launch.cwd / "workflow.py")]
    resumed = launch.finish(launch.start(again, **{MARK: mark}), 60)
    assert resumed.status == 0 and "all right" in resumed.out, (resumed.status, resumed.out, resumed.err)
    nobody_left(mark)
    verified = launch.finish(launch.start([sys.executable, "-m", "exex", "journal", "verify", "journal"]), 60)
    assert verified.status == 0, (verified.out, verified.err)
    return done


def manager_dies(launch: Launch, mark: str, rng: random.Random) -> Ended:
    """The manager is killed under a launcher that lets the others live: they end at once, not after two minutes of silence."""
    status_dir = launch.cwd / "status"
    status_dir.mkdir()
    path = launch.cwd / "workflow.py"
    path.write_text(WORKFLOW.replace("range(10, 1900)", "range(10, 100_000)"))
    file = load_launcher("mpiexec-openmpi" if launch.family == "openmpi" else "mpiexec-hydra", {"HOME": "/nonexistent"})
    argv = [launch.mpiexec, *file.goes_on, "-n", "4", sys.executable, "-m", "exex.run", str(path)]
    process = launch.start(argv, **{MARK: mark, "EXEX_JOB_DIR": str(status_dir)})
    first = process.stdout.readline().split()
    if first[:1] != ["manager"]:
        raise AssertionError(launch.finish(process, 60))
    time.sleep(rng.uniform(0, 0.7))
    psutil.Process(int(first[1])).kill()
    done = launch.finish(process, 30)
    assert "rank 0 at " in done.err and "was killed by SIGKILL" in done.err and done.status != 0, done
    assert not (status_dir / "status").exists()
    nobody_left(mark)
    return done


def under_slurm(launch: Launch, mark: str, rng: random.Random) -> Ended:
    """srun on a cluster of three nodes: ranks and guards are killed, ranks hang."""
    global cluster
    if cluster is None:
        cluster = Cluster(nodes=3).__enter__()
        atexit.register(cluster.__exit__)
    status_dir = launch.cwd / "status"
    status_dir.mkdir()
    srun = cluster.srun(launch.family, "-N3", "-n4", "--distribution=cyclic")
    argv = [*srun, sys.executable, "-m", "exex.run", *OPTIONS]
    hit = rng.choice([kill_rank, kill_guard, stop_rank])
    done, victims = run(launch, mark, rng, hit, argv, EXEX_JOB_DIR=str(status_dir), **cluster.variables(launch.family))
    assert (status_dir / "status").exists(), f"no status: {done}"
    status = int((status_dir / "status").read_text())
    assert status == 0 and "all right" in done.out, (status, done.status, done.out, done.err)
    assert done.err.count("exex: lost rank") <= victims, done.err
    return done


cluster: Cluster | None = None
SCENARIOS = {"one-dies": one_dies, "parents-die": parents_die, "one-hangs": one_hangs, "guard-dies": guard_dies, "manager-dies": manager_dies}
if Launch(Path()).family == "mpich" and not why_not():
    SCENARIOS["slurm"] = under_slurm


def run_once(scenario: str, seed: int, directory: Path) -> Ended:
    """One run, and nobody left behind."""
    return SCENARIOS[scenario](Launch(directory), uuid.uuid4().hex, random.Random(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for scenario in options.scenarios or SCENARIOS:
        good, lost = 0, 0
        for seed in range(options.seed, options.seed + options.runs):
            with tempfile.TemporaryDirectory() as directory:
                try:
                    done = run_once(scenario, seed, Path(directory))
                    good += 1
                    lost += done.err.count("exex: lost rank")
                except AssertionError as error:
                    print(f"{scenario} seed {seed}: {error}", flush=True)
        print(f"{scenario}: {good} of {options.runs} ended as they must; {lost} ranks lost on the way", flush=True)


if __name__ == "__main__":
    main()
