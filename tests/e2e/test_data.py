"""Large values and arguments in real jobs, with one store for all ranks and with one for each."""

from __future__ import annotations

import sys

import pytest

from tests.e2e.test_stores import left, options
from tests.launch import Launch

EVERYTHING = """
import concurrent.futures, os, threading
import numpy as np
import exex
from exex import join_app, python_app

@python_app
def make(n, start=0):
    return np.arange(start, start + n)

@python_app
def total(*arrays):
    return sum(int(array.sum()) for array in arrays)

@python_app
def add(array, x):
    array += x  # its own copy
    return array

@python_app(cache=True)
def cached(array):
    return int(array.sum())

@python_app
def shared(found, i):
    return int(found["array"][i]), found["array"].flags.writeable

@join_app
def several():
    return [make(100_000), make(100_001)]

@join_app
def one():
    return make(100_000)

def sum_of(n):
    return n * (n - 1) // 2

# values that stay, and dependents anywhere
parts = [make(100_000, i) for i in range(8)]
assert total(*parts).result() == sum(sum_of(100_000) + 100_000 * i for i in range(8))
assert [int(f.result()[0]) for f in parts] == list(range(8))
assert total(parts[3]).result() == sum_of(100_000) + 300_000, "again, after the client has it"

# arrays can be written to, by whoever has them
array = make(100_000)
changed = [add(array, i) for i in range(4)]
assert [int(f.result()[0]) for f in changed] == [0, 1, 2, 3] and int(array.result()[0]) == 0
mine = array.result()
mine += 7
assert total(mine).result() == sum_of(100_000) + 700_000

# an argument is as it was when the call was made
big = np.ones(500_000)
futures = [total(big.astype(int)), add(big, 1.0)]
big[:] = 5
assert futures[0].result() == 500_000 and futures[1].result()[-1] == 2.0

# cached calls: equal values make equal calls, wherever they lie
values = [cached(make(100_000)).result(), cached(make(100_000)).result(), cached(np.arange(100_000)).result()]
assert values == [sum_of(100_000)] * 3

# join apps, callbacks, maps, cancelling
assert [len(a) for a in several().result()] == [100_000, 100_001] and total(one()).result() == sum_of(100_000)
heard = []
future = make(200_000)
future.add_done_callback(lambda f: heard.append(len(f.result())))
concurrent.futures.wait([future])
assert [len(a) for a in exex.map(np.ones, [50_000, 60_000])] == [50_000, 60_000]
cancelled = [make(200_000) for _ in range(6)]
for f in cancelled:
    f.cancel()

# broadcast
handle = exex.broadcast({"array": np.arange(200_000)})
assert [shared(handle, i).result() for i in range(8)] == [(i, False) for i in range(8)]
assert handle.value()["array"][5] == 5
handle.release()

exex.wait_for_current_tasks()
while not heard:
    pass
assert heard == [200_000]
del parts, array, changed, mine, futures, future, cancelled, handle, f
print("all right", flush=True)
"""

LOSING = """
import concurrent.futures, os, sys
import numpy as np
import psutil
import exex
from exex import python_app

@python_app
def make(n):
    return np.full(n, 3), os.getppid()

@python_app
def derive(found):
    return found[0] + 1, os.getppid()

@python_app
def total(*found):
    return [int(array[-1]) for array, _ in found]

def has_mpi(process):
    return any("/libmpi.so" in mapped.path for mapped in process.memory_maps())

def rank_of(pid):
    for guard in psutil.Process(pid).parents():
        for child in guard.children():
            if has_mpi(child):
                return child

first = [make(100_000) for _ in range(6)]
second = [derive(f) for f in first]
concurrent.futures.wait(second)
where = [second[i].result()[1] for i in (0, 1)]
rank_of(where[0]).kill()
print(total(*first).result(), total(*second).result(), [int(f.result()[0][0]) for f in second])
print("all right", flush=True)
"""


@pytest.mark.parametrize("kind", ["one store", "a store for each rank", "one rank", "no stores"])
def test_large_values_are_as_good_as_small_ones(launch: Launch, kind: str) -> None:
    ranks = 1 if kind == "one rank" else 4
    words = options(launch, ranks) if kind == "a store for each rank" else ("--keep-bytes", "0") if kind == "no stores" else ()
    done = launch.workflow(ranks, EVERYTHING, options=(*words, "--slots", "1", "--journal", "journal.db"))
    assert done.status == 0 and done.out == "all right\n", (done.out, done.err)
    assert left(launch.cwd) == []


@pytest.mark.parametrize("kind", ["one store", "a store for each rank"])
def test_values_of_a_killed_rank_are_taken_over_or_made_again(launch: Launch, kind: str) -> None:
    words = options(launch, 4) if kind != "one store" else ()
    (launch.cwd / "w.py").write_text(LOSING)
    argv = [sys.executable, "-m", "exex", "run", "-n", "3", "--slots", "1", *words, "--heartbeat-s", "0.2", "--heartbeat-limit-s", "2", "w.py"]
    done = launch.finish(launch.start(argv))
    assert done.status == 0, (done.out, done.err)
    assert done.out == f"{[3] * 6} {[4] * 6} {[4] * 6}\nall right\n"
    assert "lost rank" in done.err
