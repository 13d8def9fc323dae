"""Stores of nodes in real jobs: each rank plays a node of its own, by a --store-dir of its own."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from pathlib import Path

import psutil
import pytest

from tests.launch import Launch

SPILLING = """
import concurrent.futures, glob, os
import numpy as np
import exex

@exex.python_app
def make(i):
    return np.full(100_000, float(i))

@exex.python_app
def total(arrays, more):
    return sum(float(array[0]) + float(array[-1]) for array in arrays) + float(more.sum())

arrays = [make(i) for i in range(24)]
concurrent.futures.wait(arrays)
print("on disk:", len(glob.glob("node*/exex-store-*/*/t*")))
more = np.ones(200_000)
print(sum(array.result()[5] for array in arrays))
print([total(arrays[i::4], more).result() for i in range(4)])
"""

WAITING = """
import concurrent.futures, time
import numpy as np
import exex

@exex.python_app
def make(i):
    return np.zeros(100_000)

futures = [make(i) for i in range(4)]
concurrent.futures.wait(futures)
print("made", flush=True)
time.sleep(100)
"""


def options(launch: Launch, ranks: int) -> tuple[str, ...]:
    for rank in range(ranks):
        (launch.cwd / f"node{rank}").mkdir(exist_ok=True)
    variable = {"mpich": "PMI_RANK", "openmpi": "OMPI_COMM_WORLD_RANK"}[launch.family]
    return ("--store-dir", f"{launch.cwd}/node${variable}")


def left(cwd: Path) -> list[str]:
    """Directories of stores below here, and the links of those in memory that lead here."""
    found = glob.glob(f"{glob.escape(str(cwd))}/node*/exex-store-*/*")
    for link in glob.glob(f"/dev/shm/exex-store-{os.getuid()}/*/spill"):
        with contextlib.suppress(FileNotFoundError):  # other jobs come and go
            if str(cwd) in os.readlink(link):
                found.append(link)
    return found


def test_values_that_find_no_room_in_memory_are_used_from_disk(launch: Launch) -> None:
    done = launch.workflow(3, SPILLING, options=(*options(launch, 3), "--slots", "1", "--store-bytes", "1000000"))
    assert done.status == 0, done.err
    on_disk, first, totals = done.out.splitlines()
    assert float(first) == sum(range(24)) and int(on_disk.split()[-1]) >= 20
    assert eval(totals) == [2.0 * sum(range(24)[i::4]) + 200_000 for i in range(4)]
    assert left(launch.cwd) == []


def test_a_job_that_is_killed_leaves_no_store(launch: Launch) -> None:
    (launch.cwd / "w.py").write_text(WAITING)
    process = launch.start(launch.argv(3, "-m", "exex.run", *options(launch, 3), "--slots", "1", "w.py"))
    assert process.stdout is not None
    assert process.stdout.readline() == "made\n", process.communicate()[1]
    assert len(left(launch.cwd)) >= 4, "two workers at least"
    for each in (*psutil.Process(process.pid).children(recursive=True), process):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    until = time.monotonic() + 30
    while left(launch.cwd):
        assert time.monotonic() < until, left(launch.cwd)
        time.sleep(0.05)
    process.communicate()


@pytest.mark.parametrize("wrong", ["/proc", "/nowhere"])
def test_a_directory_that_cannot_be_used_ends_the_job_and_is_named(launch: Launch, wrong: str) -> None:
    done = launch.workflow(1, "print('never')", options=("--store-dir", wrong))
    assert done.status != 0 and "never" not in done.out and f"--store-dir {wrong} " in done.err
