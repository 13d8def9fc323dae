"""Whatever a task does to its process, it costs that task's attempt, and nothing else. Real worlds under mpiexec."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.endurance import MARK, nobody_left, processes
from tests.faults.processes import run_once
from tests.launch import Ended, Launch

HOSTILE = str(Path(__file__).with_name("hostile.py"))
FLOOD_BYTES = 1 << 30


def fine(ended: Ended) -> Ended:
    assert ended.status == 0, (ended.status, ended.out, ended.err)
    return ended


# ---- acts of one task after the other -------------------------------------------------------------------------

DIED = "TaskProcessDied"
ENDS = {  # error, and what its text says; None: the task goes well
    "segfault": (DIED, "was killed by SIGSEGV"),
    "killed_for_memory": (DIED, "was killed by SIGKILL; its stderr ends:\nabout to need too much\n"),
    "leaves_at_once": (DIED, "ended with exit code 3"),
    "sys_exit": (DIED, "called sys.exit with exit code 4"),
    "recursion": ("RecursionError", "maximum recursion depth"),
    "recursion_on_the_c_stack": (DIED, "was killed by SIGSEGV"),
    "closes_descriptors": None,
    "closes_all_descriptors": (DIED, "ended with exit code 70"),
    "changes_directory": None,
    "changes_handlers": None,
    "sets_an_alarm": None,
    "changes_umask": None,
    "changes_environment": None,
    "replaces_streams": None,
    "leaves_threads": None,
    "leaves_children": None,
    "daemonises": None,
    "kills_its_parent": (DIED, "was killed by SIGKILL"),
    "terminates_its_parent": None,
    "kills_its_group": (DIED, "was killed by SIGKILL"),
    "kills_its_parents_group": (DIED, "was killed by SIGKILL"),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What hostile.py saw. No process of the job is left, whatever the tasks have left behind."""
    launch, mark = Launch(tmp_path_factory.mktemp("hostile")), uuid.uuid4().hex
    argv = launch.argv(2, "-m", "exex.run", "--slots", "2", HOSTILE)
    done = fine(launch.finish(launch.start(argv, **{MARK: mark})))
    assert done.out.count("still printing\n") == len(ENDS) + 1, done.out
    nobody_left(mark)
    result: dict[str, Any] = json.loads((launch.cwd / "told.json").read_text())
    return result


def test_every_act_was_played(told: dict[str, Any]) -> None:
    assert set(told) - {"before"} == set(ENDS)


@pytest.mark.parametrize("act", ENDS)
def test_an_act_costs_its_own_attempt_only(told: dict[str, Any], act: str) -> None:
    """The task beside it does not notice, and the next one in its slot finds everything as the first one did."""
    seen, expected = told[act], ENDS[act]
    if expected is None:
        assert seen["error"] == "NoneType", seen
    else:
        error, says = expected
        assert seen["error"] == error and says in seen["text"], seen
        if error == DIED:
            assert f"({act})" in seen["text"] and "attempt 1" in seen["text"] and " on rank 1 at " in seen["text"]
    assert seen["bystander"] == "undisturbed"
    assert seen["next"] == told["before"]


# ---- what must end with the task ------------------------------------------------------------------------------

TREE = """
import os, subprocess, time
from exex import AppTimeout, python_app

@python_app
def tree(path):
    import os, signal, subprocess, time
    def note(name):
        with open(path, "a") as file:
            file.write(f"{name} {os.getpid()}\\n")
    subprocess.Popen(["bash", "-c", f"trap 'sleep 0.05; echo term >> {path}.term; exit' TERM; echo bash $$ >> {path}; while :; do sleep 0.01; done"])
    subprocess.Popen(["setsid", "bash", "-c", f"trap '' TERM; echo stubborn $$ >> {path}; while :; do sleep 0.01; done"])
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            note("daemon")
            os.closerange(0, 1 << 16)
            time.sleep(1000)
        os._exit(0)
    os.wait()
    note("task")
    try:
        time.sleep(1000)
    finally:
        note("finally")

def lives(pid):
    try:
        return "Z" not in open(f"/proc/{pid}/stat").read().split()[2]
    except (FileNotFoundError, ProcessLookupError):
        return False

def alive(path):
    pids = {line.split()[0]: int(line.split()[1]) for line in open(path)}
    return [name for name, pid in pids.items() if lives(pid)]

def grown(path):
    while not os.path.exists(path) or len(open(path).readlines()) < 4:
        time.sleep(0.01)

def gone(path):
    until = time.monotonic() + 20
    while alive(path) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(path), alive(path)
    assert "finally" in open(path).read()
    assert open(path + ".term").read() == "term\\n"

future = tree("cancelled")
grown("cancelled")
assert sorted(alive("cancelled")) == ["bash", "daemon", "stubborn", "task"], alive("cancelled")
assert future.cancel()
gone("cancelled")
future = tree("late", walltime=1.5)
grown("late")
assert sorted(alive("late")) == ["bash", "daemon", "stubborn", "task"], alive("late")
assert isinstance(future.exception(), AppTimeout), future.exception()
gone("late")
print("all gone")
"""


def test_cancel_and_walltime_end_the_whole_tree(launch: Launch) -> None:
    """Also what ignores SIGTERM, and daemons that have left session and parent."""
    assert fine(launch.workflow(2, TREE, options=("--grace-s", "0.5"))).out == "all gone\n"


MEMORY = """
import os
from exex import MemoryLimitExceeded, bash_app, python_app

MiB = 1024**2

@python_app(memory=150 * MiB)
def fill(size, seconds):
    import time
    data = bytearray(size)
    for i in range(0, size, 4096):
        data[i] = 1
    time.sleep(seconds)
    return os.getpid()

@bash_app(memory=150 * MiB)
def several(size):
    child = f"import time; data = b'x' * {size}; time.sleep(1000)"
    return f"for i in 1 2 3; do setsid python3 -c \\"{child}\\" & done; wait"

@python_app(memory=150 * MiB)
def forks(size):
    import time
    data = bytearray(b"x") * size
    pids = [os.fork() for _ in range(3)]
    time.sleep(0.5)  # each has the pages of the first
    if 0 in pids:
        os._exit(0)
    return len(data)

@python_app(retries=1, memory=150 * MiB)
def second_time(path):
    tried = os.path.exists(path)
    open(path, "w").close()
    if not tried:
        import time
        data = b"x" * 300 * MiB
        time.sleep(1000)
    return "now"

@python_app
def leak(size):
    import builtins
    builtins.leaked = b"x" * size
    return os.getpid()

error = fill(300 * MiB, 1000).exception()
print(error)
assert isinstance(error, MemoryLimitExceeded), error
assert error.limit_bytes == 150 * MiB and 150 * MiB < error.used_bytes < 400 * MiB, error.used_bytes
assert fill(90 * MiB, 0.5).exception() is None
error = several(80 * MiB).exception()
assert isinstance(error, MemoryLimitExceeded) and error.used_bytes > 150 * MiB, error
assert forks(80 * MiB).result() == 80 * MiB
assert second_time("tried").result() == "now"
leaking = leak(300 * MiB).result()
assert fill(10 * MiB, 0.5).result() != leaking
assert fill(40 * MiB, 1000, parsl_resource_specification={"memory": 20}).exception().limit_bytes == 20 * MiB
print("all measured")
"""


@pytest.mark.one_library
@pytest.mark.parametrize("isolation", ["process", "none"])
def test_memory_is_limited(launch: Launch, isolation: str) -> None:
    """Of the whole tree, shared pages once; a failed attempt is tried again, and nobody pays for another app's leaks."""
    done = fine(launch.workflow(2, MEMORY, options=("--isolation", isolation) if isolation == "none" else ()))
    first, last = done.out.splitlines()
    assert last == "all measured"
    assert first.startswith("task 0 (fill), attempt 1, was stopped on rank 1 at ")
    assert first.endswith("MiB of memory, more than its limit of 150.0 MiB (memory=157286400)")


# ---- the template ---------------------------------------------------------------------------------------------

TEMPLATE = """
import os
from exex import python_app

@python_app
def kill_template(path):
    import os, signal, time
    if os.path.exists(path):
        return "tried again"
    open(path, "w").close()
    with open(f"/proc/{os.getppid()}/stat") as file:
        template = int(file.read().rpartition(")")[2].split()[1])
    os.kill(template, signal.SIGKILL)
    time.sleep(1000)

@python_app
def bystander(path):
    import os, time
    while not os.path.exists(path):
        time.sleep(0.01)
    time.sleep(0.3)
    return "done"

@python_app
def hopeless():
    import os, signal, time
    with open(f"/proc/{os.getppid()}/stat") as file:
        template = int(file.read().rpartition(")")[2].split()[1])
    os.kill(template, signal.SIGKILL)
    time.sleep(1000)

beside = bystander("killed")
assert kill_template("killed").result() == "tried again"
assert beside.result() == "done"
print(hopeless().exception())
"""


def test_tasks_of_a_template_that_dies_are_tried_again(launch: Launch) -> None:
    """That is no failure of theirs: none has retries. One that does it again and again is named."""
    done = fine(launch.workflow(2, TEMPLATE, options=("--slots", "2")))
    assert "(hopeless), attempt 1, is lost: its task process on rank 1 at " in done.out
    assert "ended 4 times through no fault of its own: its template has ended" in done.out
    assert done.err.count("starts another template") == 5, done.err


def test_a_task_process_is_replaced_after_so_many_tasks(launch: Launch) -> None:
    script = """
from collections import Counter
from exex import python_app

@python_app
def pid(x):
    import os
    return os.getpid()

counts = Counter(f.result() for f in [pid(i) for i in range(100)])
assert sum(counts.values()) == 100
assert max(counts.values()) == 7, counts
print(len(counts))
"""
    done = fine(launch.workflow(2, script, **{"EXEX_TASKS_PER_PROCESS": "7"}))
    assert 15 <= int(done.out) <= 20, done.out


# ---- output ---------------------------------------------------------------------------------------------------

FLOOD = """
import os, sys
from exex import python_app

@python_app
def flood(size):
    import os
    line = b"x" * 65535 + b"\\n"
    for _ in range(size // len(line)):
        at = 0
        while at < len(line):
            at += os.write(1, line[at:])

@python_app
def quick(x):
    return x

wet = flood(int(sys.argv[1]))
while not wet.running():
    pass
assert [quick(i).result() for i in range(2000)] == list(range(2000))
with open("others are done.new", "w") as file:
    file.write(str(wet.done()))
os.rename("others are done.new", "others are done")
wet.result()
"""


def test_a_flood_of_output_holds_up_its_own_task_only(launch: Launch, tmp_path: Path) -> None:
    """Nobody reads the launcher's stdout at first: other slots go on, memory stays small, and nothing is lost."""
    mark = uuid.uuid4().hex
    path = tmp_path / "workflow.py"
    path.write_text(FLOOD)
    argv = launch.argv(2, "-m", "exex.run", "--slots", "2", str(path), str(FLOOD_BYTES))
    process = launch.start(argv, **{MARK: mark})
    assert process.stdout is not None
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "others are done").exists():
            assert time.monotonic() < until, "other tasks wait for the reader of stdout"
            time.sleep(0.01)
        most = max(one.memory_info().rss for one in processes(mark) if "python" in one.name())
        assert most < 200 * 1024**2, most
        got, biggest = 0, 0
        while data := os.read(process.stdout.fileno(), 1 << 20):
            got += len(data)
            if got // (1 << 26) > biggest:
                biggest = got // (1 << 26)
                most = max(most, *(one.memory_info().rss for one in processes(mark) if "python" in one.name()))
    finally:
        fine(launch.finish(process))
    assert got == FLOOD_BYTES // 65536 * 65536
    assert most < 200 * 1024**2, most
    nobody_left(mark)


# ---- killed from outside --------------------------------------------------------------------------------------


def test_killed_at_random_all_results_are_right(tmp_path: Path) -> None:
    """200 kills among 2,000 mixed tasks; `python -m tests.faults.processes` makes twenty runs."""
    before = set(psutil.Process().children())
    tasks, _ = run_once(int(os.environ.get("TEST_SEED", "0")), tmp_path)
    assert tasks >= 2000
    assert not set(psutil.Process().children()) - before
