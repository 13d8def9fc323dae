"""What launchers have started elsewhere must end with them, and does if they are told to end, but not if they are killed.

An srun that gets SIGKILL leaves its step, which then holds its nodes until the job ends; so it is with the others here. Those
of Hydra and PRRTE need no such care: their helpers on other nodes see the connection close.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

LAUNCHERS = frozenset(("srun", "aprun", "jsrun", "flux"))

MOST_S = 2.0
"""How long they may take. srun needs some 0.1 s."""

_LOOK_S = 0.01


def end_launchers(pids: Iterable[int], most_s: float = MOST_S) -> None:
    """SIGTERM to those of these processes that are launchers, and wait until they have ended, or for too long."""
    found = [pid for pid in pids if _name(pid) in LAUNCHERS]
    for pid in found:
        try:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)
        except (ProcessLookupError, PermissionError):
            pass
    until = time.monotonic() + most_s
    while found and time.monotonic() < until:
        found = [pid for pid in found if _lives(pid)]
        time.sleep(_LOOK_S)


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().rstrip("\n")
    except (OSError, UnicodeDecodeError):
        return ""


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False
