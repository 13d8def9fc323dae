"""A few stories of tests/faults/resume.py, and what a user sees of the journal; with the MPI library of this environment."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from exex.store import inspection
from tests.faults.resume import VICTIMS, run_once
from tests.launch import Launch

SEEDS = range(int(os.environ.get("RESUME_SEEDS", "2")))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_nothing_recorded_runs_twice(victim: str, seed: int, tmp_path: Path) -> None:
    run_once(victim, 1000 + seed, tmp_path)


COUNTED = """
import os, sys
import exex
from exex import File, bash_app, python_app

@python_app(cache=True, version={version})
def square(x):
    with open("runs", "a") as file:
        file.write("x")
    return x * x

@bash_app(cache=True)
def make(outputs=()):
    return f"echo -n x >> runs; touch {{outputs[0].filepath}}"

assert [future.result() for future in [square(i % 10) for i in range(30)]] == [i * i for i in range(10)] * 3
make(outputs=[File("made")]).result()
{more}
"""


def count(launch: Launch) -> int:
    try:
        return len((launch.cwd / "runs").read_text())
    finally:
        (launch.cwd / "runs").unlink(missing_ok=True)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_job_is_answered_from_its_journal(launch: Launch, ranks: int) -> None:
    def run(*options: str, version: int = 1, more: str = "") -> str:
        done = launch.workflow(ranks, COUNTED.format(version=version, more=more), options=("--journal", "j", *options))
        assert done.status == 0, done.err
        return done.err

    assert re.search("journal .*/j: 0 results were there, 11 are new", run()) and count(launch) == 11
    assert "11 results were there, 0 are new" in run("--resume")
    assert not (launch.cwd / "runs").exists()
    (launch.cwd / "made").unlink()
    run("--resume")
    assert count(launch) == 1, "the file was gone"
    run("--resume", version=2)
    assert count(launch) == 10, "another version of one app"
    done = launch.workflow(ranks, COUNTED.format(version=1, more=""), options=("--journal", "j"))
    assert done.status != 0 and "add --resume to go on" in done.err and "move this one away" in done.err
    assert inspection.verify(str(launch.cwd / "j")) == (f"{launch.cwd / 'j'} is sound: 22 results", True)


def test_without_a_journal_equal_calls_run_once(launch: Launch) -> None:
    done = launch.workflow(3, COUNTED.format(version=1, more='make(outputs=[File("made")]).result()'))
    assert done.status == 0 and done.err == "", done.err
    assert count(launch) == 11


MANUAL = """
import exex, os
from exex import python_app

@python_app(cache=True)
def square(x):
    return x * x

[square(i).result() for i in range(10)]
exex.checkpoint()
[square(i).result() for i in range(10, 20)]
os.kill(exex.manager_pid(), 9)
try:
    square(100).result()
except exex.ManagerLost as error:
    print(error)
try:
    exex.checkpoint()
except exex.ManagerLost as error:
    print(error)
"""


def test_manual_checkpoints_and_what_the_script_hears(launch: Launch) -> None:
    done = launch.workflow(3, MANUAL, options=("--journal", "j", "--checkpoint-mode", "manual"))
    says = f"in the journal {launch.cwd}/j: run the same command with --resume"
    lines = [line for line in done.out.splitlines() if "--resume" in line]  # Hydra has much to say beside it
    assert done.status != 0 and len(lines) == 2 and all(says in line for line in lines), (done.out, done.err)
    assert says in done.err, "the last words"
    resumed = launch.workflow(3, MANUAL.replace("9)", "0)"), options=("--journal", "j", "--resume"))
    assert "10 results were there, 11 are new" in resumed.err, resumed.err


def test_a_checkpoint_without_a_journal(launch: Launch) -> None:
    done = launch.workflow(1, "import exex\nexex.checkpoint()")
    assert done.status == 1 and "ConfigError: exex.checkpoint() needs a journal: start the job with --journal FILE" in done.err


def test_a_damaged_journal_ends_the_job_before_it_begins(launch: Launch) -> None:
    (launch.cwd / "j").write_bytes(b"SQLite format 3\0" + bytes(3000))
    done = launch.workflow(3, "print('began')", options=("--journal", "j", "--resume"))
    assert done.status != 0 and "began" not in done.out and f"the journal {launch.cwd}/j is damaged" in done.err


def test_what_cannot_be_part_of_a_key_fails_at_the_call(launch: Launch) -> None:
    script = """
from exex import CacheKeyError, python_app

class Thing: pass

@python_app(cache=True)
def use(x, things=()):
    return x

@python_app(cache=True, ignore_for_cache=["things"])
def use_less(x, things=()):
    return x

try:
    use(1, things=[Thing()])
except CacheKeyError as error:
    print(error)
print(use_less(1, things=[Thing()]).result(), use_less(use_less(2), use(3)).result())
"""
    done = launch.workflow(1, script)
    assert done.out == (
        "app use has cache=True, and argument 'things'[0] of type __main__.Thing cannot be part of a cache key: register a "
        "function that makes bytes of it with @exex.id_for_memo.register(Thing), or name the argument in ignore_for_cache\n1 2\n"
    ), done.err
