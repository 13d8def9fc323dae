"""Rank 0 that is manager and worker: its tasks, its end, and that of others."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.endurance import MARK
from tests.faults.dead_ranks import kill_rank, workers
from tests.launch import Launch

PREPARE = """
import exex, os, time
from exex import bash_app, python_app
from exex.client.session import current

@bash_app
def meet(i, count, stdout=None):
    return f"touch met.$EXEX_RANK.{i}; until [ $(ls met.* | wc -l) -ge {count} ]; do sleep 0.02; done; echo $EXEX_RANK"

def until_met(count):
    while len([name for name in os.listdir() if name.startswith("met.")]) < count:
        time.sleep(0.01)

def ranks(count):
    \"\"\"The ranks of that many tasks at once.\"\"\"
    for future in [meet(i, count, stdout=(f"rank.{i}", "w")) for i in range(count)]:
        future.result()
    return sorted(int(open(f"rank.{i}").read()) for i in range(count))

welcome = current("test").proxy.welcome
"""


@pytest.mark.parametrize(
    "options, workers, slots, ranks",
    [
        (["--manager-slots", "2"], 3, 4, [0, 0, 1, 2]),
        (["--manager-slots", "0"], 2, 2, [1, 2]),
        (["--manager-slots", "auto"], 2, 2, [1, 2]),  # the others have slots for all cores of this machine
        (["--manager-slots", "1", "--isolation", "none"], 3, 3, [0, 1, 2]),
    ],
    ids=str,
)
def test_what_rank_0_runs(launch: Launch, mark: str, options: list[str], workers: int, slots: int, ranks: list[int]) -> None:
    script = PREPARE + f"assert (welcome.workers, welcome.slots) == ({workers}, {slots}), welcome\nprint(*ranks({slots}))\n"
    done = launch.workflow(3, script, options=("--slots", "1", *options), **{MARK: mark})
    assert (done.status, done.out) == (0, " ".join(map(str, ranks)) + "\n"), done.err


def test_tasks_never_run_in_the_manager(launch: Launch, mark: str) -> None:
    """With --isolation none they run in other ranks: in the manager, one would stop all."""
    script = PREPARE + (
        "@python_app\ndef where():\n    import os, time\n    time.sleep(0.05)\n    return os.getpid()\n"
        "pids = {f.result() for f in [where() for _ in range(40)]}\n"
        "assert len(pids) == 2 and exex.manager_pid() not in pids, (pids, exex.manager_pid())\n"
    )
    done = launch.workflow(2, script, options=("--slots", "1", "--manager-slots", "1", "--isolation", "none"), **{MARK: mark})
    assert done.status == 0, done.err


def test_a_crash_on_rank_0_costs_one_attempt(launch: Launch, mark: str) -> None:
    script = PREPARE + (
        "@python_app\ndef crash():\n    import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "errors = [f.exception() for f in [crash() for _ in range(6)]]\n"
        "assert all(isinstance(error, exex.TaskProcessDied) for error in errors), errors\n"
        "assert any('rank 0' in str(error) for error in errors), errors\n"
        "print(*ranks(2))\nraise ValueError('boom')\n"
    )
    done = launch.workflow(2, script, options=("--slots", "1", "--manager-slots", "1"), **{MARK: mark})
    assert done.status == 1 and done.out == "0 1\n" and done.err.count("ValueError: boom") == 1, done.err


def exex_run(*words: str) -> list[str]:
    return [sys.executable, "-m", "exex", "run", *words]


def test_ctrl_c_ends_what_rank_0_runs(launch: Launch, mark: str) -> None:
    path = launch.cwd / "workflow.py"
    path.write_text(PREPARE + "f = [meet(i, 99) for i in range(3)]\nuntil_met(3)\nprint('started', flush=True)\nf[0].result()\n")
    process = launch.start(exex_run("-n", "1", "--slots", "1", "--manager-slots", "2", str(path)), **{MARK: mark})
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    done = launch.finish(process, 30)
    assert done.status == 130, done.err


def test_rank_0_goes_on_when_all_others_are_lost(launch: Launch, mark: str) -> None:
    path = launch.cwd / "workflow.py"
    path.write_text(
        PREPARE + "f = [meet(i, 5, stdout=(f'rank.{i}', 'w')) for i in range(4)]\nprint(exex.manager_pid(), flush=True)\n"
        "until_met(4)\nprint('met', flush=True)\n[x.result() for x in f]\nprint(*[open(f'rank.{i}').read().strip() for i in range(4)])\n"
    )
    process = launch.start(exex_run("-n", "2", "--slots", "1", "--manager-slots", "2", str(path)), **{MARK: mark})
    assert process.stdout is not None
    manager = int(process.stdout.readline())
    assert process.stdout.readline() == "met\n"
    for rank in workers(mark, manager):
        kill_rank(rank)
    (launch.cwd / "met.enough").touch()
    done = launch.finish(process, 60)
    assert (done.status, done.out) == (0, "0 0 0 0\n"), done.err
    assert done.err.count("exex: lost rank") == 2, done.err
