"""The run record and the output of tasks of real jobs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from exex.record.columns import How
from exex.record.hdf5 import Record
from exex.record.summary import summarize
from exex.store.task_output import NOTE, parts, read
from tests.launch import Launch

pytestmark = pytest.mark.one_library

WORK = """
import time
from exex import bash_app, python_app

@python_app
def double(x):
    time.sleep(0.002)
    return 2 * x

@python_app(retries=1)
def fails():
    raise ValueError("no")

@python_app
def add(*values):
    return sum(values)
"""


def test_a_job_is_recorded(launch: Launch) -> None:
    script = WORK + (
        "doubled = [double(i) for i in range(200)]\n"
        "total = add(*doubled)\n"
        "failed = fails()\n"
        "behind = add(failed, 1)\n"
        "assert total.result() == 39800\n"
        "assert failed.exception() and behind.exception()\n"
    )
    done = launch.workflow(3, script, EXEX_RECORD="out/run.h5")
    assert done.status == 0, done.err
    path = str(launch.cwd / "out" / "run.h5")
    found = summarize(path)
    assert (found.closed, found.dropped) == (True, 0)
    assert (found.tasks, found.done, found.failed) == (203, 201, 2)
    assert (found.workers, found.attempts, found.critical_tasks) == (2, 203, 2)
    with Record(path) as record:
        how, attempt = record.column("attempts", "how"), record.column("attempts", "attempt")
        assert sorted(attempt[how == How.FAILED].tolist()) == [1, 2]
        assert attempt[how == How.NEED_FAILED].tolist() == [0]
        is_add = record.column("attempts", "task") == 200
        assert record.column("attempts", "ready_us")[is_add] >= record.column("attempts", "done_us")[how == How.DONE][:1]
        assert record.rows("edges") == 201
        assert (record.column("attempts", "run_s")[(how == How.DONE) & ~is_add] >= 0.002).all()
        assert record.meta["settings"]["record"] == "out/run.h5" and "MPI" in record.meta["versions"]
        ran = how == How.DONE
        assert (record.column("attempts", "peak_bytes")[ran & ~is_add] > 1 << 20).all()
        assert set(record.column("attempts", "slot")[ran].tolist()) == {0}
    report = [sys.executable, "-m", "exex", "report", path]
    text = subprocess.run(report, env=launch.environment(), capture_output=True, text=True, check=True).stdout
    assert "tasks        203: 201 done, 2 failed" in text


def test_the_record_has_the_slot_and_the_memory_of_each_attempt(launch: Launch) -> None:
    script = (
        "import os, time\n"
        "from exex import bash_app, python_app\n"
        "@python_app\n"
        "def meet(i):\n"
        "    open(f'met.{i}', 'w').close()\n"
        "    while not os.path.exists(f'met.{1 - i}'):\n"
        "        time.sleep(0.001)\n"
        "@python_app\n"
        "def large(mib):\n"
        "    time.sleep(0.01)\n"
        "    return len(bytes(b'x' * (mib << 20)))\n"
        "@bash_app\n"
        "def program(mib):\n"
        "    return f'head -c {mib << 20} /dev/zero | tail -n 1 | wc -c'\n"
        "both = [meet(0), meet(1)]\n"
        "assert [one.result() for one in both] == [None, None]\n"
        "for mib in (200, 1, 100):\n"
        "    assert large(mib).result() == mib << 20\n"
        "assert program(150).result() == 0\n"
    )
    done = launch.workflow(2, script, EXEX_RECORD="run.h5", EXEX_SLOTS="2")
    assert done.status == 0, done.err
    with Record(str(launch.cwd / "run.h5")) as record:
        peak, slot = record.column("attempts", "peak_bytes") / 2**20, record.column("attempts", "slot")
        by_task = dict(zip(record.column("attempts", "task").tolist(), peak.tolist()))
    assert set(slot.tolist()) == {0, 1}
    assert 200 < by_task[2] < 400 and by_task[3] < 150 and 100 < by_task[4] < 200, by_task
    assert 150 < by_task[5] < 350, by_task


def test_the_record_is_complete_up_to_the_death_of_the_manager(launch: Launch) -> None:
    script = WORK + (
        "import exex, os, signal\n"
        "assert sum(f.result() for f in [double(i) for i in range(100)]) == 9900\n"
        "slow = python_app(lambda: time.sleep(60))()\n"
        "while not slow.running(): time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "os.kill(exex.manager_pid(), signal.SIGKILL)\n"
    )
    done = launch.workflow(3, script, EXEX_RECORD="run.h5", EXEX_STOP_TIMEOUT_S="2")
    assert done.status != 0
    found = summarize(str(launch.cwd / "run.h5"))
    assert (found.closed, found.done, found.unfinished) == (True, 100, 1)


def test_no_record_is_made_unless_it_is_wanted(launch: Launch) -> None:
    done = launch.workflow(1, WORK + "assert double(1).result() == 2\n")
    assert done.status == 0, done.err
    assert not (launch.cwd / "runinfo").exists()


def test_what_tasks_print_is_kept_as_theirs(launch: Launch) -> None:
    script = """
import ctypes, subprocess, sys, time
from exex import bash_app, python_app

@python_app
def say(i):
    print("line", i)
    print("piece", i, end="")
    print("error", i, file=sys.stderr)

@bash_app
def shell(i): return f"echo shell {i}; echo shell error {i} >&2"

@python_app
def from_c(i):
    ctypes.CDLL(None).puts(b"C %d" % i)
    time.sleep(0.002)

@python_app
def program(i): subprocess.run(["echo", "program", str(i)], check=True)

@python_app
def quiet(i): return i

@python_app
def much(): print("x" * 5000)

calls = [app(i) for app in (say, shell, from_c, program, quiet) for i in range(10)] + [much()]
for call in calls: call.result()
print("the script's own")
"""
    done = launch.workflow(3, script, EXEX_OUTPUT="files", EXEX_OUTPUT_LIMIT_BYTES="1000")
    assert done.status == 0, done.err
    assert done.out == "the script's own\n"
    found: dict[tuple[int, int], bytes] = {}
    for part in parts(str(launch.cwd / "runinfo" / "000")):
        key = part.task, part.stream
        found[key] = found.get(key, b"") + read(part)
    expected = {(50, 0): b"x" * 1000}
    for i in range(10):
        expected[i, 0], expected[i, 1] = b"line %d\npiece %d" % (i, i), b"error %d\n" % i
        expected[10 + i, 0], expected[10 + i, 1] = b"shell %d\n" % i, b"shell error %d\n" % i
        expected[20 + i, 0], expected[30 + i, 0] = b"C %d\n" % i, b"program %d\n" % i
    note = found.pop((50, NOTE))
    assert found == expected
    assert b"4,001 B more were printed" in note
