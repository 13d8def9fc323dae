"""The reaper: kills what carries a dead guard's tag, and not before the guard is dead."""

import os
import select
import signal
import subprocess
import sys

LIMIT_MS = 20_000

GUARD = """
import os, subprocess, sys
from exex.reaper import TAG, Reaper

reaper = Reaper()
started = subprocess.Popen(["sleep", "1000"], env={**os.environ, TAG: reaper.tag}, start_new_session=True, stdout=subprocess.DEVNULL)
ACTION
print(started.pid, flush=True)
sys.stdin.read()
"""


def guard(action):
    """A guard that has done this, and a pidfd of a process that it has started in a session of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", GUARD.replace("ACTION", action)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, os.pidfd_open(int(process.stdout.readline()))


def ends(pidfd, most_ms):
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(most_ms))


def test_what_a_killed_guard_has_started_is_killed():
    process, started = guard("pass")
    process.kill()
    process.communicate()
    assert ends(started, LIMIT_MS)
    os.close(started)


def test_nothing_is_killed_while_the_guard_lives():
    """The kernel closes a dying guard's pipe before it tells its children: keepers may then still speak for what they hold."""
    process, started = guard("os.close(reaper._pipe)")
    assert not ends(started, 300)
    process.kill()
    process.communicate()
    assert ends(started, LIMIT_MS)
    os.close(started)


def test_after_an_orderly_end_nothing_is_killed():
    process, started = guard("reaper.dismiss()")
    process.communicate()
    assert process.returncode == 0
    assert not ends(started, 300)
    signal.pidfd_send_signal(started, signal.SIGKILL)
    os.close(started)
