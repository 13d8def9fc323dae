"""Tasks that make tasks, in real jobs: recursion on few slots, every way to wait, what ends with what."""

from __future__ import annotations

import re
import sys

import pytest

from tests.launch import Launch

EVERYTHING = """
import asyncio, concurrent.futures, os, threading, time
import exex
from exex import Executor, join_app, python_app

@python_app
def fib(n):
    if n < 2:
        return n
    a, b = fib(n - 1), fib(n - 2)
    return a.result() + b.result()

@python_app
def quicksort(xs):
    if len(xs) <= 8:
        return sorted(xs)
    pivot = xs[len(xs) // 2]
    low, high = quicksort([x for x in xs if x < pivot]), quicksort([x for x in xs if x > pivot])
    return low.result() + [x for x in xs if x == pivot] + high.result()

@python_app
def square(x):
    return x * x

@python_app
def appears(path):
    while not os.path.exists(path):
        time.sleep(0.01)

@python_app
def fails():
    raise KeyError("child")

@python_app(cache=True)
def cached(x):
    return os.getpid(), x

@join_app
def joined(n):
    return [square(i) for i in range(n)]

@python_app
def ways():
    import exex.aio
    from exex import Executor
    found = {}
    futures = [square(i) for i in range(5)]
    found["wait"] = len(concurrent.futures.wait(futures).done)
    found["as_completed"] = sorted(f.result() for f in concurrent.futures.as_completed([square(i) for i in range(5)]))
    with Executor() as executor:
        found["map"] = list(executor.map(square.func, range(20)))
        found["submit"] = executor.submit(pow, 2, 10).result()

    async def main():
        futures = [await exex.aio.submit(abs, -i) for i in range(3)]
        return [await square(3), [await future for future in futures]]

    found["asyncio"] = asyncio.run(main())
    found["threads"] = []
    threads = [threading.Thread(target=lambda i=i: found["threads"].append(square(i).result())) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found["threads"].sort()
    found["join"] = joined(3).result()
    found["needs"] = square(square(square(2))).result()
    found["item"] = exex.python_app(lambda: {"a": 5})()["a"].result()
    found["same"] = cached(1).result() == cached(1).result()
    try:
        fails().result()
    except KeyError as error:
        found["error"] = str(error)
    late = appears("late")
    try:
        late.result(timeout=0.01)
    except TimeoutError:
        found["timeout"] = True
    open("late", "w").close()
    late.result()
    for name, call in (("connect", lambda: exex.connect("x.json")), ("start", lambda: exex.start(workers=1))):
        try:
            call()
        except exex.StartError as error:
            found[name] = "client of its own job" in str(error)
    exex.wait_for_current_tasks()
    return found

assert fib(9).result() == 34
import random
xs = [random.randrange(1000) for _ in range(200)]
assert quicksort(xs).result() == sorted(xs)
found = ways().result()
assert found == {
    "wait": 5, "as_completed": [0, 1, 4, 9, 16], "map": [i * i for i in range(20)], "submit": 1024, "asyncio": [9, [0, 1, 2]],
    "threads": [0, 1, 4, 9], "join": [0, 1, 4], "needs": 256, "item": 5, "same": True, "error": "'child'", "timeout": True,
    "connect": True, "start": True,
}, found

# what ends with what
@python_app
def sleeps(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)

@python_app
def waits_for(path):
    return sleeps(path).result()

@python_app
def leaves(path):
    child = sleeps(path)
    while not os.path.exists(path) or not os.path.getsize(path):
        time.sleep(0.01)

def until_gone(path):
    while not os.path.exists(path) or not os.path.getsize(path):
        time.sleep(0.01)
    return int(open(path).read())

def gone(pid):
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.01)

parent = waits_for("cancelled")
pid = until_gone("cancelled")
assert parent.cancel()
gone(pid)
leaves("left").result()
gone(until_gone("left"))

@python_app(retries=1)
def dies_once(path):
    if os.path.exists(path):
        return square(7).result()
    open(path, "w").close()
    child = sleeps(path + ".child")
    until_gone(path + ".child")
    os.kill(os.getpid(), 9)

assert dies_once("died").result() == 49
gone(until_gone("died.child"))

@python_app(walltime=60)
def limited():
    return fib(3).result()

@python_app(cores=2)
def wide():
    return [os.environ["EXEX_GRANTED_CORES"], fib(4).result(), exex.python_app(lambda: 1, cores=2)().result()]

assert limited().result() == 2 and wide().result() == ["2", 3, 1]
print("fine")
"""


@pytest.mark.parametrize(("ranks", "slots"), [(2, 2), (3, 2)])
def test_everything(launch: Launch, ranks: int, slots: int) -> None:
    ended = launch.workflow(ranks, EVERYTHING, options=("--slots", str(slots), "--grace-s", "0.5"))
    assert (ended.status, ended.out.splitlines()[-1:]) == (0, ["fine"]), (ended.status, ended.out, ended.err)


RANK_DIES = """
import os, signal, time
from exex import python_app

@python_app
def sleeps(path):
    with open(path + ".new", "w") as file:
        file.write(f"{os.getpid()} {os.environ['EXEX_GUARD']}")
    os.rename(path + ".new", path)
    time.sleep(1000)

@python_app
def seven():
    return 7

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return open(path).read().split()

def rank_of_this_task():
    pid = os.getpid()
    for _ in range(3):  # keeper, template, guard
        pid = int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])
    children = open(f"/proc/{pid}/task/{pid}/children").read().split()
    return next(int(child) for child in children if "libmpi.so" in open(f"/proc/{child}/maps").read())

@python_app
def parent():
    if os.path.exists("again"):
        return seven().result()
    open("again", "w").close()
    children = [sleeps(str(i)) for i in range(3)]
    for i in range(3):
        wait_for(str(i))
    os.kill(rank_of_this_task(), signal.SIGKILL)
    return [child.result() for child in children]

assert parent().result() == 7
guards = set()
for i in range(3):
    pid, guard = wait_for(str(i))
    guards.add(guard)
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.01)
assert len(guards) == 2, guards
print("fine")
"""


def test_a_rank_dies_whose_task_has_made_tasks_here_and_elsewhere(launch: Launch) -> None:
    """They end, though one rank lives, and the attempt that follows makes its own."""
    path = launch.cwd / "workflow.py"
    path.write_text(RANK_DIES)
    argv = [sys.executable, "-m", "exex", "run", "-n", "2", "--slots", "2", "--grace-s", "0.5", str(path)]
    ended = launch.finish(launch.start(argv))
    assert (ended.status, ended.out.splitlines()[-1:]) == (0, ["fine"]), (ended.status, ended.out, ended.err)
    assert ended.err.count("exex: lost rank") == 1, ended.err


TOO_MANY = """
from exex import InvalidResourceSpecification, TooManyParents, python_app

@python_app(gpus=1)
def below():
    pass

@python_app(gpus=1)
def above():
    return below().exception()

error = above().result()
assert isinstance(error, InvalidResourceSpecification) and "task 0 (above), which made it, will keep" in str(error), error

@python_app
def deeper(levels):
    return deeper(levels - 1).result() if levels else 0

error = deeper(10).exception()
assert isinstance(error, TooManyParents) and error.waiting == 4, error
print(error)
assert deeper(3).result() == 0
print("fine")
"""


def test_what_cannot_be_is_an_error_that_says_so(launch: Launch) -> None:
    """A task of which those above keep the accelerator; more tasks that wait than may."""
    ended = launch.workflow(2, TOO_MANY, options=("--slots", "1", "--max-parents", "4", "--gpus", "0", "--grace-s", "0.5"))
    assert (ended.status, ended.out.splitlines()[-1:]) == (0, ["fine"]), (ended.status, ended.out, ended.err)
    assert "as 4 others of this worker do, and no more may: ask for more by --max-parents N" in ended.out


NAMES = """
import exex
from exex import bash_app, python_app

@bash_app
def say(i, stdout=exex.AUTO_LOGNAME):
    return f"echo say {i}"

@python_app
def inner(i):
    print("inner", i)

@python_app
def outer(i):
    inner(i).result()
    say(i).result()
    print("outer", i)

for future in [outer(i) for i in range(3)]:
    future.result()
"""


def test_what_tasks_have_made_has_names_of_its_own(launch: Launch) -> None:
    """In logs, in names of files, in the record."""
    ended = launch.workflow(2, NAMES, options=("--slots", "2", "--output", "files", "--record", "run.h5"))
    assert ended.status == 0, (ended.out, ended.err)
    run_dir = launch.cwd / "runinfo" / "000"
    paths = sorted((run_dir / "task_logs" / "0000").iterdir())
    assert sorted(path.read_text() for path in paths) == [f"say {i}\n" for i in range(3)]
    assert all(re.fullmatch(r"task_[1-9]\d*\.\d{4}_say\.stdout", path.name) for path in paths), paths

    def shell(*words: str) -> str:
        done = launch.finish(launch.start([sys.executable, "-m", "exex", *words]))
        assert done.status == 0, done.err
        return done.out

    printed = re.findall(r"task +(\S+) +\d+ B", shell("logs"))
    assert len(printed) == 6 and {"0", "1", "2"} < set(printed)
    assert {shell("logs", name) for name in printed} == {f"{what} {i}\n" for what in ("inner", "outer") for i in range(3)}
    assert "6 of them were made by 3 others" in shell("report", "run.h5")


def test_where_tasks_cannot_make_tasks_they_are_told_so(launch: Launch) -> None:
    script = """
from exex import NoManagerError, python_app

@python_app
def inner():
    return 1

@python_app
def outer():
    return inner().result()

try:
    outer().result()
except NoManagerError as error:
    print(error)
"""
    ended = launch.workflow(2, script, options=("--isolation", "none"))
    assert "app inner was called inside task 0 (outer), which has no task process (--isolation none, or" in ended.out, ended
