"""The end of the allocation: nothing is begun that does not fit, and the job ends in time with status 75."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.launch import Launch

WORKFLOW = """
from exex import python_app

@python_app
def short(i):
    import time
    time.sleep(0.2)
    return i

@python_app(walltime=3600)
def long():
    return "long"

@python_app
def quick(i):
    return i

assert [f.result() for f in [quick(i) for i in range(100)]] == list(range(100))
futures = [short(i) for i in range(200)]
waiting = [long() for _ in range(3)]
for future in futures:
    print("done", future.result(), flush=True)
"""


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    path = tmp_path / "workflow.py"
    path.write_text(WORKFLOW)
    return path


def exex_run(*words: str) -> list[str]:
    return [sys.executable, "-m", "exex", "run", "-n", "2", *words]


def check(status: int, out: str, err: str) -> None:
    assert status == 75, err
    done = out.count("done ")
    assert 0 < done < 200, out
    assert re.search(rf"the allocation ends: (20[0-3]|1\d\d) tasks not done \({0} of them begun\); exit status 75", err), err
    assert "Traceback" not in err


def test_a_job_ends_within_its_walltime(launch: Launch, workflow: Path) -> None:
    ended = launch.finish(launch.start(exex_run("--walltime", "8", str(workflow))), 30)
    check(ended.status, ended.out, ended.err)
    assert ended.seconds < 12, ended.err  # all of it would take 20


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_gives_notice(launch: Launch, workflow: Path, number: int) -> None:
    if launch.family == "mpich" and number == signal.SIGUSR1:
        pytest.skip("Hydra sends SIGUSR1 when a process dies, so it is no notice there")
    process = launch.start(exex_run("--notice-s", "2", str(workflow)))
    launch.read_until(process, "done 0")
    process.send_signal(number)
    ended = launch.finish(process, 30)
    check(ended.status, "done 0\n" + ended.out, ended.err)
    assert "SIGUSR" in ended.err


CACHED = """
import os
from exex import python_app

if os.path.exists("begun"):
    open("again", "w").close()  # what is left is quick
open("begun", "w").close()

@python_app(cache=True)
def half(i):
    import time
    time.sleep(0 if os.path.exists("again") else 0.5)
    fd = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"%d\\n" % i)
    os.close(fd)
    return i

assert [future.result() for future in [half(i) for i in range(32)]] == list(range(32))
print("all right", flush=True)
"""


def test_what_the_allocation_cuts_off_is_finished_by_resume(launch: Launch) -> None:
    path = launch.cwd / "workflow.py"
    path.write_text(CACHED)
    first = launch.finish(launch.start(exex_run("--walltime", "7", "--journal", "j", str(path))), 30)
    assert first.status == 75 and "all right" not in first.out, first.err
    ran = (launch.cwd / "ran").read_text().split()
    assert 0 < len(ran) < 32, first.err
    second = launch.finish(launch.start(exex_run("--journal", "j", "--resume", str(path))), 60)
    assert (second.status, second.out) == (0, "all right\n"), second.err
    assert sorted((launch.cwd / "ran").read_text().split(), key=int) == [str(i) for i in range(32)], "each ran once"
    assert f"{len(ran)} calls did not run again" in second.err
