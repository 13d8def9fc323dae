"""Kills what a killed guard leaves behind.

Launchers end a job by SIGKILL to the processes that they started, and the kernel passes that on from guard to rank,
template, client and task processes (PR_SET_PDEATHSIG). What tasks have started would live on. So each guard has a reaper:
in a session of its own, where no launcher finds it, it waits for the end of a pipe that closes with the guard, and then
kills every process that carries the guard's tag in its environment. After an orderly end it has nothing to do.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Sequence

from exex.launch.leftovers import remove_shared_memory
from exex.launch.steps import end_launchers

TAG = "EXEX_GUARD"
"""The variable that all which a task starts inherits."""

_QUIET_SCANS = 3
_MOST_S = 5.0
_PAUSE_S = 0.02
_ORDERLY = b"\0"


class Reaper:
    """The guard's side. To be made before anything else is forked.

    Attributes:
        tag: value of the variable TAG for all that belongs to this guard.
    """

    def __init__(self) -> None:
        guard = os.getpid()
        self.tag = f"{guard}-{time.time_ns():x}"
        read_end, self._pipe = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            try:
                if os.fork() == 0:  # an orphan, so that nobody waits for it or counts it
                    os.close(self._pipe)
                    _wait_and_reap(read_end, guard, self.tag)
            finally:
                os._exit(0)
        os.close(read_end)
        os.waitpid(child, 0)

    def note_shared_memory(self, paths: Sequence[str]) -> None:
        """Files in /dev/shm to remove, too."""
        self._write(json.dumps({"shared": list(paths)}).encode() + b"\n")

    def note_staged(self, directory: str) -> None:
        """A staged directory to remove, too, if nobody else holds it."""
        self._write(json.dumps({"staged": directory}).encode() + b"\n")

    def dismiss(self) -> None:
        """The guard has left nothing behind."""
        self._write(_ORDERLY)
        os.close(self._pipe)

    def _write(self, data: bytes) -> None:
        try:
            os.write(self._pipe, data)
        except BrokenPipeError:
            pass  # somebody killed it


def _wait_and_reap(read_end: int, guard: int, tag: str) -> None:
    os.setsid()
    death = _open_death(guard)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)  # a launcher waits until its pipes are closed
    kept = sorted(fd for fd in (read_end, death) if fd >= 0)
    for low, high in zip([3, *(fd + 1 for fd in kept)], [*kept, os.sysconf("SC_OPEN_MAX")]):
        os.closerange(low, high)
    told = b""
    while data := os.read(read_end, 65536):
        told += data
    if told.endswith(_ORDERLY):
        return
    _await_death(death)
    kill_tagged(tag)
    for line in told.splitlines():
        note = json.loads(line)
        remove_shared_memory(note.get("shared", ()))
        if note.get("staged"):
            from exex.launch.stage_hold import remove_if_left

            remove_if_left(note["staged"])


def _open_death(guard: int) -> int:
    """Readable when the guard is dead; -1 if it is already, or on a kernel (before Linux 5.3) that cannot tell."""
    try:
        return os.pidfd_open(guard)
    except OSError:
        return -1


def _await_death(death: int) -> None:
    """Wait until the guard has passed its death on to its children.

    The kernel closes its pipes before that, and a keeper that still lives would report a launcher that we kill as one that
    was killed while all was well.
    """
    if death >= 0:
        poll = select.poll()
        poll.register(death, select.POLLIN)
        poll.poll(_MOST_S * 1e3)


def kill_tagged(tag: str) -> None:
    """SIGKILL every process with this tag, until none has been found for a while."""
    wanted = f"{TAG}={tag}".encode()
    until = time.monotonic() + _MOST_S
    quiet = 0
    while quiet < _QUIET_SCANS and time.monotonic() < until:
        quiet += 1
        numbers = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        found = [pid for pid in numbers if pid != os.getpid() and wanted in _environment(pid)]
        end_launchers(found)
        for pid in found:
            quiet = 0
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(_PAUSE_S)


def _environment(pid: int) -> list[bytes]:
    """The variables that a process began with; none if it is not ours, or has just ended."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []
