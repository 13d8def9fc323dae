"""Memory of real processes that share pages, as /proc tells it."""

import mmap
import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from exex.worker import families

MiB = 1024**2
PARENT = bytearray(b"x") * (60 * MiB)  # as what a template has preloaded


@pytest.fixture
def forked():
    """Start children that prepare something and wait; their pids."""
    pids = []

    def start(prepare):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                kept = prepare()
                os.write(write, b"x")
                os.close(write)
                signal.pause()
                del kept
            finally:
                os._exit(1)
        os.close(write)
        pids.append(pid)
        assert os.read(read, 1) == b"x"
        os.close(read)
        return pid

    yield start
    for pid in families.family(pids):
        if pid in pids:
            families.kill_family({pid})
            os.waitpid(pid, 0)


def used(pids, limit=0):
    return families.used_bytes(pids, limit, os.getpid()) / MiB


def test_what_is_still_the_parents_is_not_charged(forked):
    assert used([forked(lambda: None)]) < 15


def test_own_memory_is(forked):
    assert 79 <= used([forked(lambda: b"x" * (80 * MiB))]) < 100  # pages are shared out to the nearest few KiB


def test_pages_of_the_parent_that_were_written_are(forked):
    def write():
        for i in range(0, 50 * MiB, 4096):
            PARENT[i] = 1

    assert 30 <= used([forked(write)]) < 70


@pytest.mark.parametrize("others", [0, 1])
def test_pages_that_a_family_shares_are_charged_once(forked, tmp_path, others):
    """Also where other programs have mapped what the template has, as libraries: a forked child has not."""

    def family():
        data = b"x" * (80 * MiB)
        for _ in range(3):
            read, write = os.pipe()
            if os.fork() == 0:
                os.write(write, b"x")
                signal.pause()
            os.read(read, 1)
        return data

    path = tmp_path / "library"
    path.write_bytes(bytes(50 * MiB))
    look = "import mmap, sys; file = open(sys.argv[1], 'rb'); m = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); m[::4096]"
    with ExitStack() as stack:
        for _ in range(others):
            argv = [sys.executable, "-c", f"{look}; print(flush=True); sys.stdin.read()", str(path)]
            other = stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            other.stdout.readline()
            stack.callback(other.kill)
        library = mmap.mmap(stack.enter_context(path.open("rb")).fileno(), 0, access=mmap.ACCESS_READ)
        assert not any(library[::4096])
        pid = forked(family)
        assert len(families.family({pid})) == 4
        assert 60 <= used(families.family({pid})) < 120
        assert used(families.family({pid}), limit=1 << 50) > 240  # an upper bound will do below the limit


def test_programs_are_counted_with_their_own_memory(forked):
    def start():
        read, write = os.pipe()
        os.set_inheritable(write, True)
        code = f"import os, signal; kept = b'x' * {50 * MiB}; os.write({write}, b'x'); signal.pause()"
        for _ in range(2):
            os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", code])
            os.read(read, 1)

    pid = forked(start)
    assert 99 <= used(families.family({pid})) < 130


def test_of_what_has_ended_nothing_is_counted():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert used([pid]) == 0
    os.waitpid(pid, 0)
    assert used([pid]) == 0


def test_kernels_without_smaps_rollup_have_an_upper_bound(forked, monkeypatch):
    pid = forked(lambda: None)
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: exists(path) and "smaps_rollup" not in str(path))
    assert used([pid]) > 50
