"""What a task may have changed about its process, beside Python's own objects: seen and undone before the next task.

Directory, umask, environment, timer, CPUs and Python's streams are put back. A process whose descriptors or signals are not
what they were is replaced: nobody knows what else has changed, and a new one takes a few milliseconds.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import resource
import signal
import sys
from collections.abc import Sequence

from exex.launch.notices import NOTICES
from exex.worker.context import STOP_SIGNAL

FIT, RESTORED, UNFIT = 0, 1, 2

LOWEST_FD = 500
"""exex's own descriptors in a task process are from here on: a task that closes all from 0 to 100 does not hit them."""

_without_enums = importlib.import_module("_signal")
"""`signal` less the conversion of numbers to enumerations, which would cost more than all the rest that is looked at."""

_SIGNALS = (signal.SIGINT, *NOTICES, STOP_SIGNAL, signal.SIGCHLD, signal.SIGALRM, signal.SIGPIPE)


def out_of_reach(fd: int) -> int:
    """Move a descriptor up to where nobody closes it by number."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST_FD if soft < 0 else min(LOWEST_FD, soft // 2))
    os.close(fd)
    return moved


class Condition:
    """The condition of this process as it is now, to compare with later."""

    def __init__(self) -> None:
        self._cwd = os.getcwd()
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._cpus = os.sched_getaffinity(0)
        self._environ = os.environ
        self._variables = dict(os.environ._data)  # type: ignore[attr-defined]  # compared without decoding
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        self._fixed = self._what_must_stay()

    def move(self, cpus: Sequence[int]) -> None:
        """From now on this process belongs on these CPUs; none: where it was."""
        if cpus:
            self._cpus = set(cpus)

    def restore(self) -> int:
        """Undo what can be undone. Costs some 6 microseconds.

        Returns:
            `FIT` if nothing had changed, `RESTORED`, or `UNFIT`: this process must not run another task.
        """
        try:
            found = self._restore()
            return UNFIT if self._what_must_stay() != self._fixed else found
        except (OSError, ValueError):
            return UNFIT

    def _restore(self) -> int:
        found = FIT
        try:
            inside = os.getcwd() == self._cwd
        except FileNotFoundError:  # a directory that the task has removed
            inside = False
        if not inside:
            os.chdir(self._cwd)
            found = RESTORED
        if os.umask(self._umask) != self._umask:
            found = RESTORED
        if os.sched_getaffinity(0) != self._cpus:
            os.sched_setaffinity(0, self._cpus)
            found = RESTORED
        if os.environ is not self._environ or os.environ._data != self._variables:  # type: ignore[attr-defined]
            self._restore_environment()
            found = RESTORED
        if signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, 0)
            found = RESTORED
        if (sys.stdin, sys.stdout, sys.stderr) != self._streams:
            sys.stdin, sys.stdout, sys.stderr = self._streams
            found = RESTORED
        return found

    def _restore_environment(self) -> None:
        os.environ = self._environ  # noqa: B003
        now, before = os.environ._data, self._variables  # type: ignore[attr-defined]
        for name in [name for name in now if name not in before]:
            del os.environ[os.fsdecode(name)]
        for name, value in before.items():
            if now.get(name) != value:
                os.environ[os.fsdecode(name)] = os.fsdecode(value)

    def _what_must_stay(self) -> tuple[object, ...]:
        """Descriptors 0 to 2, Python's streams over them, handlers and mask of signals."""
        files = [os.fstat(fd) for fd in (0, 1, 2)]
        return (
            [(file.st_dev, file.st_ino) for file in files],
            [stream is not None and stream.closed for stream in self._streams],
            [_without_enums.getsignal(number) for number in _SIGNALS],
            _without_enums.pthread_sigmask(signal.SIG_BLOCK, ()),
        )
