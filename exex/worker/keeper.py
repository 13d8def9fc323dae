"""A task process's keeper: its parent, forked from the template, and the reaper of all that it starts.

Orphans, also daemons that have left their session, come to the keeper and not to the template. So it is known at any
time what belongs to which slot, and when the task process ends all of that ends with it. It is also what a task hits
that sends a signal to its parent or to its parent's process group: that costs the one attempt.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable
from typing import NoReturn

from exex.worker import families
from exex.worker.context import STOP_SIGNAL
from exex.worker.task_process import die_with_parent

_PR_SET_CHILD_SUBREAPER = 36
_FORK_TRIES = 50
_FORK_AGAIN_S = 0.1


def keep(task_process: Callable[[], object], fds: Iterable[int]) -> NoReturn:
    """Start a task process, wait for it, and end as it did. STOP_SIGNAL must be blocked.

    Args:
        task_process: runs in it; does not return.
        fds: that belong to it alone.
    """
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    me = os.getpid()
    child = _fork()
    if child == 0:
        try:
            die_with_parent(me)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (STOP_SIGNAL,))
            task_process()
        finally:
            os._exit(os.EX_SOFTWARE)

    stopped = False

    def stop(number: int, frame: object) -> None:
        """Gently: SIGTERM to what the task has started, and an exception in the task. SIGKILL follows in time."""
        nonlocal stopped
        stopped = True
        families.send((pid for pid in families.family({me}) if pid not in (me, child)), signal.SIGTERM)
        families.send({child}, STOP_SIGNAL)

    signal.signal(STOP_SIGNAL, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (STOP_SIGNAL,))
    for fd in fds:
        os.close(fd)
    while True:  # the task process is reaped when `stop` cannot come any more: until then its number is its own
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        if ended.si_pid == child:
            break
        os.waitpid(ended.si_pid, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, (STOP_SIGNAL,))
    if stopped:
        _await_all()
    families.kill_family(families.children(me))
    _end_as(ended.si_code, ended.si_status)


def _await_all() -> None:
    """What was told to end may take its time: if it is too long, the rank has all of us killed."""
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass


def _fork() -> int:
    """Fork, also where there are too many processes for a moment."""
    for _ in range(_FORK_TRIES):
        try:
            return os.fork()
        except OSError:
            time.sleep(_FORK_AGAIN_S)
    os._exit(os.EX_OSERR)


def _end_as(code: int, status: int) -> NoReturn:
    """End with the exit code of another process, or by the signal that killed it."""
    if code != os.CLD_EXITED:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # there is one already, if it was wanted
        if status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(status, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (status,))
        os.kill(os.getpid(), status)
        status += 128
    os._exit(status)
