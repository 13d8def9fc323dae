"""Ranks of a crowded node wait for each other, asleep, and never for ever."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from exex.launch import together
from exex.launch.together import patience, wait_for_node
from exex.launch.world import ExpectedWorld

CODE = """
import sys, time
from exex.launch import together
from exex.launch.world import ExpectedWorld
together._launch = lambda: sys.argv[1]
sys.stdin.read(1)
print(together.wait_for_node(ExpectedWorld("x", 0, 3, 3), 2, 20.0), time.process_time(), flush=True)
"""


def ranks(name: str, count: int) -> list[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", CODE, name]
    return [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("x")
    process.stdin.flush()


def test_nobody_goes_on_before_the_last_has_come() -> None:
    processes = ranks(f"test-{os.getpid()}", 3)
    for process in processes[:2]:
        go(process)
    time.sleep(0.5)  # more would not show more: nobody may have gone on
    assert [process.poll() for process in processes[:2]] == [None, None]
    go(processes[2])
    found = sorted(int(process.communicate(timeout=30)[0].split()[0]) for process in processes)
    assert found == [2, 2, 3]


def test_who_does_not_come_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_launch", lambda: f"alone-{os.getpid()}")
    assert wait_for_node(ExpectedWorld("x", 0, 3, 3), 2, no_other_s=0.05) == 1
    assert wait_for_node(ExpectedWorld("x", 0, 3, 3), 2, no_other_s=0.05) == 1, "the name is free again"


def test_a_name_that_nobody_listens_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_launch", lambda: f"dead-{os.getpid()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as held:
        held.bind(f"\0exex-together-{os.getuid()}-dead-{os.getpid()}")
        began_s = time.monotonic()
        assert wait_for_node(ExpectedWorld("x", 0, 3, 3), 2) == 1
        assert time.monotonic() - began_s < 20


def test_where_each_rank_has_a_core_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_launch", lambda: pytest.fail("looked for the launch"))
    assert wait_for_node(ExpectedWorld("x", 0, 8, 8), 8) == 1
    assert wait_for_node(ExpectedWorld("x"), 8) == 1


def test_the_launch_is_the_same_for_all_that_one_process_has_started() -> None:
    shell = f"{sys.executable} -c 'import subprocess, sys; [subprocess.run([sys.executable, \"-c\", sys.argv[1]]) for _ in range(2)]' "
    shell += "'from exex.launch import together; print(together._launch())'"
    done = subprocess.run(["sh", "-c", shell + "; true"], capture_output=True, text=True, check=True)
    first, second = done.stdout.split()
    assert first == second and first.partition("-")[0].isdecimal()


def test_many_ranks_on_few_cores_may_take_longer() -> None:
    assert patience(ExpectedWorld("x", 0, 128, 128), 2) == 8
    assert patience(ExpectedWorld("x", 0, 128, 128), 64) == patience(ExpectedWorld("none"), 2) == 1
