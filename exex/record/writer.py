"""`python -m exex.record.writer`: the process that writes the run record. Started by rank 0, told by frames on its stdin.

It has a process of its own so that compressing costs the manager nothing, and a low priority so that it costs the tasks beside
it little. When rank 0 dies, its pipe ends, and all that was told is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys

from exex.errors import RecordError
from exex.record.frames import Kind, take_frames
from exex.record.hdf5 import RecordFile, versions
from exex.record.rows import Assembler

NICE = 10
_READ_BYTES = 1 << 20
"""As much as the pipe holds: when it is full, rank 0 must keep what follows."""

_WINDOW_US = 250_000
_IDLE_MS = 500


def write(fd: int, manners: Manners) -> None:
    """Write the record that is told of by this descriptor, until its end.

    Raises:
        RecordError: the file cannot be made or written.
    """
    data = bytearray()
    file: RecordFile | None = None
    assembler: Assembler | None = None
    window_us = 0
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        is_idle = not poll.poll(_IDLE_MS)
        chunk = b"" if is_idle else os.read(fd, _READ_BYTES)
        manners.hurry(len(chunk) == _READ_BYTES or (not chunk and not is_idle))
        data += chunk
        for frame in take_frames(data):
            if frame.kind == Kind.BEGIN:
                said = json.loads(frame.body)
                file = RecordFile(said["path"], _attributes(said["attributes"]))
                assembler = Assembler(file.add)
            elif assembler is not None:
                assembler.feed(frame)
        if file is None or assembler is None:
            if not chunk and not is_idle:
                return
            continue
        if is_idle or not chunk or assembler.now_us - window_us >= _WINDOW_US:
            window_us = assembler.now_us
            assembler.close_window()
            file.flush_if_due(assembler.now_us)
        if not chunk and not is_idle:
            assembler.close()
            file.close(assembler.now_us, assembler.dropped)
            return


def _attributes(told: dict[str, object]) -> dict[str, object]:
    meta = told["meta"]
    assert isinstance(meta, dict)
    meta["versions"] = {**meta.get("versions", {}), **versions()}
    return {"began_unix_s": told["began_unix_s"], "meta": json.dumps(meta)}


class Manners:
    """Lets the job's processes go first, unless they wait for this one.

    Where Linux groups processes by session (sched(7), autogroup), a nice value says nothing to those of other sessions, and this
    process has a session of its own: there the group's value counts, and it can be taken back.
    """

    def __init__(self) -> None:
        self._is_group = os.getsid(0) == os.getpid()
        self._is_in_a_hurry = True
        with contextlib.suppress(OSError):
            os.nice(NICE)
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # whoever runs is not interrupted for it

    def hurry(self, now: bool) -> None:
        """Whether somebody waits."""
        if now == self._is_in_a_hurry or not self._is_group:
            return
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w", buffering=1) as file:
            file.write("0\n" if now else f"{NICE}\n")
            self._is_in_a_hurry = now


def main() -> int:
    """Be the writer. Returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the end of the pipe is the end
    try:
        write(0, Manners())
    except (RecordError, OSError) as error:
        print(f"exex: {error}; the job goes on without a run record", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
