"""How processes end: all below a guard, and the world; and how one has ended, in words."""

from __future__ import annotations

import os
import signal
import sys
import time

from exex.launch.steps import end_launchers


def end_the_world() -> None:
    """End this process so that its launcher ends the others, too: Hydra goes on after a plain exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def kill_descendants(most_s: float = 5.0) -> None:
    """SIGKILL every child of this process, and their orphans as they come to us, until there are none."""
    until = time.monotonic() + most_s
    while time.monotonic() < until:
        left = children(os.getpid())
        end_launchers(left)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.waitpid(-1, 0 if left else os.WNOHANG)
        except ChildProcessError:
            return


def children(pid: int) -> list[int]:
    """Direct children of a process without threads; none of one that has ended."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def how_it_ended(code: int) -> str:
    """For messages: an exit code, or minus a signal's number, in words that follow "it"."""
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
