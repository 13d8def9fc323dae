"""Signals by which batch systems announce the end. Some send them to every process of a job step, not only to those that the
launcher has started: who is not in charge must survive them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1

NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def pass_over(numbers: Sequence[int]) -> None:
    """Let these signals do nothing in this process. What it forks or executes has the usual dispositions.

    Handlers, and not SIG_IGN, because what is started must not inherit it: `Popen.terminate` would do nothing.
    """

    def hold() -> None:
        """Before a fork: a signal that the child gets at once must not find our handlers there."""
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def let() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def restore() -> None:
        for number in numbers:
            if signal.getsignal(number) is _nothing:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        let()

    for number in numbers:
        signal.signal(number, _nothing)
        signal.siginterrupt(number, False)
    os.register_at_fork(before=hold, after_in_parent=let, after_in_child=restore)


def _nothing(number: int, frame: object) -> None:
    pass


def end_with_parent(parent: int, number: int) -> None:
    """Get this signal when the parent dies; at once, if it has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
