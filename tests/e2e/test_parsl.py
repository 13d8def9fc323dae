"""EXEX under Parsl: Parsl's own tests, and what they do not ask for: resources, losses, the end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.e2e.test_docs import parts
from tests.launch import ROOT, Launch
from tests.parsl.excused import FAIL

parsl = pytest.importorskip("parsl")

LEAST_PASSED = 140
SUITE_S = 110.0


@pytest.mark.timeout(SUITE_S + 20)
def test_parsls_own_tests_pass_or_are_excused(launch: Launch) -> None:
    pytest.importorskip("pandas")  # for one of them
    theirs = Path(parsl.__file__).parent / "tests"
    outcomes = launch.cwd / "outcomes"
    (launch.cwd / "pytest.ini").write_text("[pytest]\n")
    (launch.cwd / "tmp").mkdir()
    options = ["-q", "-p", "no:cacheprovider", "-p", "tests.parsl.plugin", "-c", "pytest.ini", "--tb", "short", "--show-capture", "no"]
    words = [*options, "--rootdir", str(theirs), "--confcutdir", str(theirs), "--config", str(ROOT / "tests" / "parsl" / "config.py")]
    ended = launch.finish(
        launch.start(
            [sys.executable, "-m", "pytest", *words, str(theirs)],
            PARSL_OUTCOMES=str(outcomes),
            TMPDIR=str(launch.cwd / "tmp"),
        ),
        SUITE_S,
    )
    assert outcomes.exists(), (ended.out, ended.err)
    ends = [line.split(" ", 1) for line in outcomes.read_text().splitlines()]
    failed = {test for how, test in ends if how == "failed"}
    assert failed == FAIL.keys(), f"{sorted(failed ^ FAIL.keys())}\n{ended.out}"
    assert sum(how == "passed" for how, _ in ends) >= LEAST_PASSED, ended.out
    left = [path.name for path in (launch.cwd / "tmp").iterdir() if path.name.startswith("exex") and "store" not in path.name]
    assert left == []


PROGRAM = """
import os, pickle, signal, sys, time
import parsl
from parsl import bash_app, python_app
from parsl.config import Config
from parsl.executors.errors import BadStateException, ExecutorError, InvalidResourceSpecification
from parsl.executors.high_throughput.errors import WorkerLost
from parsl.serialize.errors import SerializationError
import exex
from exex.integrations.parsl import ExtremeScaleExecutor

class Problem(Exception):
    pass

class Point:
    def __init__(self, x):
        self.x = x

@python_app
def where():
    return os.getpid()

@python_app
def fail():
    raise Problem("here")

@python_app
def shift(point, by):
    return Point(by[0](point.x))

@python_app
def die():
    os._exit(7)

@python_app
def granted(parsl_resource_specification={}):
    return os.environ["EXEX_GRANTED_CORES"]

@bash_app
def ranks(stdout=None, parsl_resource_specification={}):
    return "$PARSL_MPI_PREFIX sh -c 'echo one of $PARSL_NUM_RANKS'"

@python_app
def hang(path):
    open(path, "w").close()
    time.sleep(1000)

def refused(specification, word):
    error = granted(parsl_resource_specification=specification).exception()
    assert type(error) is InvalidResourceSpecification and word in str(error), repr(error)

def config(executor):
    return Config(executors=[executor], strategy="none", run_dir="runs")

def await_file(path):
    while not os.path.exists(path):
        time.sleep(0.01)

def use(executor):
    assert where().result() != os.getpid()
    point = shift(Point(1), [lambda x: x + 1]).result()
    assert type(point) is Point and point.x == 2
    error = fail().exception()
    assert type(error) is Problem and error.args == ("here",), repr(error)
    error = die().exception()
    assert isinstance(error, WorkerLost) and "exit code 7" in str(error), repr(error)
    assert type(error.__cause__) is exex.TaskProcessDied
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert granted(parsl_resource_specification={"cores": 2, "priority": -1}).result() == "2"
    refused({"cpus": 1, "memory": 1, "disk": 1}, "cpus")
    refused({"cores": 99}, "cores")
    refused({"cores": ["two"]}, "cores")
    assert ranks(stdout="ranks.txt", parsl_resource_specification={"num_nodes": 1, "ranks_per_node": 2}).result() == 0
    with open("ranks.txt") as file:
        assert file.read() == "one of 2\\n" * 2
    os.unlink("ranks.txt")
    assert type(where(sys._getframe()).exception()) is SerializationError
"""
WHOLE = """
executor = ExtremeScaleExecutor(workers=1, settings={"slots": 2})
with parsl.load(config(executor)):
    use(executor)
    left = hang("left")
    await_file("left")
assert type(left.exception()) is ExecutorError, left
try:
    executor.submit(abs, {}, -1)
except ExecutorError:
    pass

executor = ExtremeScaleExecutor(workers=1, settings={"slots": 1})
with parsl.load(config(executor)):
    running = hang("running")
    await_file("running")
    os.kill(exex.manager_pid(), signal.SIGKILL)
    assert type(running.exception()) is BadStateException, running
    assert executor.bad_state_is_set and type(executor.executor_exception) is exex.ManagerLost
    assert type(where().exception()) is BadStateException
print("fine")
"""
ATTACHED = """
with parsl.load(config(ExtremeScaleExecutor(connection="job.json"))):
    use(None)
    left = hang("far")
    await_file("far")
assert type(left.exception()) is ExecutorError, left
print("fine, too")
"""
WITHIN = """
import subprocess
assert exex.Executor().submit(where.func).result() != os.getpid()
with parsl.load(config(ExtremeScaleExecutor())):
    use(None)
    left = hang("left")
    await_file("left")
assert type(left.exception()) is ExecutorError, left
assert exex.Executor().submit(abs, -1).result() == 1  # the job is the script's
subprocess.run([sys.executable, "attached.py"], check=True)
print("fine")
"""


def test_errors_resources_and_the_end(launch: Launch) -> None:
    path = launch.cwd / "program.py"
    path.write_text(PROGRAM + WHOLE)
    ended = launch.finish(launch.start([sys.executable, str(path)]))
    assert (ended.status, ended.out, ended.err) == (0, "fine\n", ""), (ended, logs(launch))


def test_the_script_of_a_job_and_a_program_that_attaches_to_it(launch: Launch) -> None:
    (launch.cwd / "attached.py").write_text(PROGRAM + ATTACHED)
    options = ("--slots", "2", "--preload", "parsl", "--listen", "127.0.0.1:0", "--connection-file", "job.json")
    ended = launch.workflow(1, PROGRAM + WITHIN, options=options)
    assert (ended.status, ended.out.splitlines()[-2:]) == (0, ["fine, too", "fine"]), ended


def logs(launch: Launch) -> str:
    return "\n".join(path.read_text() for path in sorted(launch.cwd.glob("runs/*/exex/exex.log")))


def test_the_program_of_the_page(launch: Launch) -> None:
    example = parts(ROOT / "docs" / "parsl.md")[0]
    path = launch.cwd / "program.py"
    path.write_text(example.script)
    ended = launch.finish(launch.start([sys.executable, str(path)]))
    assert (ended.status, ended.out, ended.err) == (0, example.output, ""), (ended, logs(launch))
