"""How a rank is reached while a function of the user's has its main thread.

A function that runs on a communicator runs in the rank itself, which hears nothing by MPI until it returns. The manager, which
knows that the task was cancelled, has used up its time, or has failed on another rank, has the rank's guard told (see alarm).
Guard and rank share a page of memory, in which the rank says which call it runs, by a number that no other attempt has: a word
may be late. The guard writes there what is to be stopped, and sends a signal, which raises an exception in the function's Python
code. Where that is of no use, because the function waits in MPI for a rank that will not come, the guard kills the rank.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct

STOP_RANK = signal.SIGRTMIN + 1
"""None that a launcher sends."""

_NUMBER = struct.Struct("<Q")
_RUNNING, _WANTED = 0, 8  # offsets; a call's number, or 0


class Page:
    """To be made before the fork."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def running(self) -> int | None:
        """The call that has the rank's main thread; None if none has."""
        return self._get(_RUNNING)

    def run(self, call: int | None) -> None:
        """At the rank: say so."""
        self._put(_RUNNING, call)

    def wanted(self) -> int | None:
        """The call that is to be stopped."""
        return self._get(_WANTED)

    def stop(self, pid: int, call: int, hard: bool) -> None:
        """At the guard: end `call`, if that is what the rank runs.

        Args:
            pid: of the rank.
            hard: by killing the rank.
        """
        if self.running() != call:
            return
        self._put(_WANTED, call)
        os.kill(pid, signal.SIGKILL if hard else STOP_RANK)

    def _get(self, offset: int) -> int | None:
        (number,) = _NUMBER.unpack_from(self._memory, offset)
        return number or None

    def _put(self, offset: int, call: int | None) -> None:
        _NUMBER.pack_into(self._memory, offset, call or 0)
