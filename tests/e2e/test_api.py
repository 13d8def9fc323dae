"""The API as a workflow sees it, over real MPI. Each workflow asserts for itself and prints `fine` at its end."""

from __future__ import annotations

import pytest

from tests.launch import Ended, Launch


def fine(done: Ended) -> None:
    assert done.status == 0, done.err
    assert "fine" in done.out.split(), (done.out, done.err)


MIXED = """
import exex
from exex import python_app, bash_app, join_app, Executor
import concurrent.futures as cf

@python_app
def add(*xs):
    return sum(xs)

@python_app
def fails(x):
    raise ValueError(f"no {x}")

@bash_app
def say(word, stdout="said.txt"):
    return f"echo {word}"

@join_app
def fib(n):
    return add(fib(n - 1), fib(n - 2)) if n > 1 else add(n)

def square(x):
    return x * x

futures = [add(i, i) for i in range(300)]
total = add(*futures)
assert total.result() == 300 * 299
chain = add(1)
for _ in range(200):
    chain = add(chain, 1)
assert chain.result() == 201
assert fib(7).result() == 13
assert say("hello").result() == 0 and open("said.txt").read() == "hello\\n"
bad = fails("way")
dependent = add(bad, 1)
assert isinstance(bad.exception(), ValueError)
assert isinstance(dependent.exception(), exex.DependencyError), dependent.exception()
assert dependent.exception().__cause__.args == ("no way",)
with Executor() as executor:
    assert list(executor.map(square, range(1000))) == [x * x for x in range(1000)]
    assert executor.submit(lambda: 42).result() == 42
assert {f.result() for f in cf.as_completed(futures)} == {2 * i for i in range(300)}
print("fine")
"""


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 17])
def test_a_mixed_workflow(launch: Launch, ranks: int) -> None:
    fine(launch.workflow(ranks, MIXED))


@pytest.mark.parametrize("options", [("--slots", "3"), ("--isolation", "none", "--slots", "1")], ids=["many slots", "no isolation"])
def test_a_mixed_workflow_in_other_shapes(launch: Launch, options: tuple[str, ...]) -> None:
    fine(launch.workflow(3, MIXED, options=options))


LARGE = """
from exex import python_app

@python_app
def size(data):
    return len(data)

data = [bytes(3_000_000 + i) for i in range(4)]
futures = [size(data[i % 4]) for i in range(16)]
assert [future.result() for future in futures] == [3_000_000 + i % 4 for i in range(16)]
print("fine")
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_arguments_that_no_socket_takes_at_once(launch: Launch, ranks: int) -> None:
    """A process that is slow to take its own does not hold up those of the other slots, nor is the rest forgotten."""
    fine(launch.workflow(ranks, LARGE, options=("--slots", "4")))


def test_without_isolation_python_runs_in_the_rank_and_bash_does_not(launch: Launch) -> None:
    fine(
        launch.workflow(
            2,
            """
import os
from exex import python_app, bash_app

@python_app
def pid(x):
    import os
    return os.getpid()

@python_app(walltime=60)
def limited(x):
    import os
    return os.getpid()

@bash_app
def shell():
    return "exit 0"

pids = {f.result() for f in [pid(i) for i in range(500)]}
assert len(pids) == 1, pids
assert shell().result() == 0
assert limited(0).result() not in pids
print("fine")
""",
            options=("--isolation", "none", "--slots", "2"),
        )
    )


def test_futures_at_any_depth_become_dependencies(launch: Launch) -> None:
    fine(
        launch.workflow(
            3,
            """
from dataclasses import dataclass
from exex import python_app
from concurrent.futures import ThreadPoolExecutor

@dataclass(frozen=True)
class Pair:
    left: object
    right: object

class Box:
    def __init__(self, content):
        self.content = content

@python_app
def one(x):
    return x

@python_app
def deep(argument, *, key):
    return (argument["list"][0][1], argument["pair"].right, sorted(argument["set"]), argument["box"].content, key)

@python_app
def foreign(x):
    return x + 1

f = [one(i) for i in range(5)]
result = deep({"list": [(0, f[0])], "pair": Pair(None, f[1]), "set": {f[2], f[2]}, "box": Box([f[3]])}, key=f[4]).result()
assert result == (0, 1, [2], [3], 4), result
with ThreadPoolExecutor(1) as pool:
    assert foreign(pool.submit(lambda: 41)).result() == 42
print("fine")
""",
        )
    )


def test_remote_tracebacks_begin_with_task_rank_and_node(launch: Launch) -> None:
    done = launch.workflow(
        2,
        """
from exex import python_app

@python_app
def outer(x):
    def inner():
        return 1 / x
    return inner()

outer(0).result()
""",
    )
    assert done.status == 1
    assert "task 0 (outer) on rank 1 at " in done.err
    assert "in inner" in done.err and "return 1 / x" in done.err
    assert done.err.count("Traceback (most recent call last)") == 2, done.err
    assert "\nZeroDivisionError: division by zero\n" in done.err


def test_what_cannot_be_pickled(launch: Launch) -> None:
    fine(
        launch.workflow(
            2,
            """
import threading, exex
from exex import python_app

@python_app
def take(x, y=None):
    return x

@python_app
def lock():
    import threading
    return {"a": [threading.Lock()]}

class Stubborn(Exception):
    def __init__(self, a, b):
        super().__init__("stubborn")

@python_app
def stubborn():
    raise Stubborn(1, 2)

try:
    take(1, y={"deep": [threading.Lock()]})
except exex.SerializationError as error:
    assert "'y'" in str(error) and "deep" in str(error) and "lock" in str(error), error
else:
    raise AssertionError("pickled a lock")
error = lock().exception()
assert isinstance(error, exex.SerializationError) and "['a'][0]" in str(error) and "lock" in str(error), error
error = stubborn().exception()
assert isinstance(error, exex.SerializationError) and "Stubborn" in str(error), error
assert take(3).result() == 3
print("fine")
""",
        )
    )


def test_functions_from_everywhere(launch: Launch) -> None:
    (launch.cwd / "beside.py").write_text(
        "from exex import python_app\n\ndef plain(x):\n    return helper(x)\n\ndef helper(x):\n    return x + 100\n\n"
        "@python_app\ndef decorated(x):\n    return helper(x)\n\nclass Model:\n    def __init__(self, a):\n        self.a = a\n"
        "    def predict(self, x):\n        return self.a * x\n"
    )
    fine(
        launch.workflow(
            3,
            """
import functools
import beside
from exex import python_app, Executor

OFFSET = 7

def helper(x):
    return x + OFFSET

@python_app
def uses_globals(x):
    return helper(x)

class Local:
    def __init__(self, v):
        self.v = v
    def __eq__(self, other):
        return self.v == other.v

@python_app
def recursive_name(n):
    return n if n == 0 else recursive_name.__wrapped__(n - 1)

def make(n):
    def closure(x):
        return x + n
    return closure

with Executor() as ex:
    assert ex.submit(beside.plain, 1).result() == 101
    assert ex.submit(beside.Model(3).predict, 4).result() == 12
    assert ex.submit(make(5), 1).result() == 6
    assert ex.submit(functools.partial(pow, 2), 5).result() == 32
    assert ex.submit(Local, 3).result() == Local(3)
    assert list(ex.map(lambda a, b: a * b, [1, 2], [3, 4])) == [3, 8]
assert beside.decorated(2).result() == 102
assert uses_globals(1).result() == 8
assert recursive_name(3).result() == 0
print("fine")
""",
        )
    )


def test_streams_cwd_env_and_outputs(launch: Launch) -> None:
    (launch.cwd / "elsewhere").mkdir()
    fine(
        launch.workflow(
            3,
            """
import os, exex
from exex import python_app, bash_app, File, AUTO_LOGNAME

@bash_app
def make(outputs=(), stdout=AUTO_LOGNAME, stderr=AUTO_LOGNAME):
    return f"echo made > {outputs[0]}; echo out; echo err >&2"

@python_app
def read(inputs=()):
    with open(inputs[0]) as file:
        return file.read()

@bash_app
def forgets(outputs=()):
    return "true"

@bash_app
def exits():
    return "echo last words >&2; exit 3"

@python_app
def where(stdout=None):
    import os
    print("printed")
    return os.getcwd(), os.environ.get("COLOUR")

made = make(outputs=[File("made.txt")])
assert read(inputs=[made.outputs[0]]).result() == "made\\n"
assert open(made.stdout).read() == "out\\n", made.stdout
assert "runinfo/000/task_logs/0000/task_0000_make" in made.stdout
assert isinstance(forgets(outputs=[File("never.txt")]).exception(), exex.MissingOutputs)
error = exits().exception()
assert isinstance(error, exex.BashExitFailure) and error.exitcode == 3 and error.app_name == "exits", error
assert "last words" in str(error), error
here = os.path.realpath(os.getcwd())
assert where(cwd="elsewhere", env={"COLOUR": "red"}, stdout=("printed.txt", "w")).result() == (here + "/elsewhere", "red")
assert where().result() == (here, None)
assert open("printed.txt").read() == "printed\\n"
print("fine")
""",
        )
    )


def test_retries_priority_walltime_and_cancel(launch: Launch) -> None:
    fine(
        launch.workflow(
            2,
            """
import os, time, exex, concurrent.futures as cf
from exex import python_app, bash_app

@python_app(retries=2)
def third_time(path):
    with open(path, "a") as file:
        file.write("x")
    if len(open(path).read()) < 3:
        raise RuntimeError("not yet")
    return "now"

def handler(error, record):
    return 0.5 if isinstance(error, KeyError) else 100

@python_app(retries=1, retry_handler=handler)
def asked(kind, path):
    with open(path, "a") as file:
        file.write("x")
    raise (KeyError if kind == "key" else ValueError)(kind)

@python_app
def sleep(s):
    import time
    time.sleep(s)

@python_app
def gated(path):
    import time
    while not os.path.exists(path):
        time.sleep(0.005)

@bash_app(walltime=0.5)
def too_long(path):
    return f"sleep 50 & echo $! > {path}; wait"

@python_app
def order(path, name):
    with open(path, "a") as file:
        file.write(name)

assert third_time("tries").result() == "now"
assert isinstance(asked("key", "k").exception(), KeyError) and open("k").read() == "xxx"
assert isinstance(asked("value", "v").exception(), ValueError) and open("v").read() == "x"

began = time.monotonic()
error = too_long("pid").exception()
assert isinstance(error, exex.AppTimeout), error
assert time.monotonic() - began < 10

def lives(pid):
    try:
        return open(f"/proc/{pid}/stat").read().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False

while lives(int(open("pid").read())):  # it is told to end, and may not have had its turn yet
    assert time.monotonic() - began < 10
    time.sleep(0.01)

running, queued = sleep(60), sleep(60)
after = order("never", running)
while not running.running():
    time.sleep(0.01)
assert queued.cancel() and running.cancel() and running.cancelled()
try:
    running.result()
except cf.CancelledError:
    pass
assert isinstance(after.exception(), exex.DependencyError)
assert sleep(0).result() is None
assert time.monotonic() - began < 30

gate = gated("open")
waiting = [order("order", "c", priority=3), order("order", "a", priority=-1), order("order", "b")]
broken = cf.Future()
behind = order("never", broken)
broken.set_exception(ValueError("kept by nobody"))
assert isinstance(behind.exception(), exex.DependencyError)  # so the manager has those before it
open("open", "w").close()
exex.wait_for_current_tasks()
assert open("order").read() == "abc", open("order").read()
print("fine")
""",
            options=("--slots", "1"),
        )
    )


def test_what_is_queued_behind_a_long_task_runs_elsewhere(launch: Launch) -> None:
    """The long task waits for all others, of which some are queued behind it: its length is not what its app has shown."""
    fine(
        launch.workflow(
            3,
            """
import os
import time
from exex import python_app

@python_app
def work(file=""):
    while file and not os.path.exists(file):
        time.sleep(0.01)

for done in [work() for _ in range(200)]:
    done.result()
for number in range(3):
    long = work(f"go{number}")
    short = [work() for _ in range(300)]
    for done in short:
        done.result(timeout=30)
    assert not long.done()
    open(f"go{number}", "w").close()
    long.result(timeout=30)
print("fine")
""",
            EXEX_SLOTS="1",
        )
    )


def test_a_task_can_start_mpiexec(launch: Launch) -> None:
    fine(
        launch.workflow(
            3,
            f"""
from exex import bash_app, python_app

@python_app
def launcher_variables():
    import os
    return [name for name in os.environ if name.startswith(("PMI", "HYDI", "PRTE_", "OMPI_COMM_WORLD", "PMIX"))]

@bash_app
def inner(stdout="inner.txt", stderr="inner.err"):
    return '''{launch.mpiexec} -n 2 python3 -c "from mpi4py import MPI; print(MPI.COMM_WORLD.allreduce(1))"'''.replace("python3", {__import__("sys").executable!r})

assert launcher_variables().result() == [v for v in launcher_variables().result() if v.startswith("PRTE_MCA")]
assert inner().result() == 0
assert open("inner.txt").read().count("2") == 2, open("inner.txt").read()
print("fine")
""",
        )
    )
