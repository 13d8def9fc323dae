"""The descriptors of a worker's task processes: whose they are, and what becomes of what is printed there."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from exex.transport.wait import Waiter
from exex.worker.context import Place
from exex.worker.output import Outlet
from exex.worker.port import ProcessPort
from exex.worker.printed import Printed
from exex.worker.task_streams import TaskProcess

if TYPE_CHECKING:
    from exex.store.task_output import TaskOutput

_TAIL_BYTES = 4096
_MOST_READS = 64
_DRAIN_S = 3.0


class Streams:
    """Passes on what tasks print, to this process's own stdout and stderr, or keeps it as theirs.

    Args:
        output: where what tasks print is kept; None: it is passed on.
    """

    def __init__(self, waiter: Waiter, output: TaskOutput | None) -> None:
        self._waiter = waiter
        self._owners: dict[int, tuple[ProcessPort, str]] = {}
        self._outlets = {"stdout": Outlet(1), "stderr": Outlet(2)}
        self._printed = Printed(output) if output is not None else None
        self._paused: set[int] = set()  # pipes that are not read, because our own stdout or stderr is full

    # ---- whose they are ----

    def watch(self, port: ProcessPort, process: TaskProcess) -> None:
        """Watch all that comes from a new task process."""
        own = (process.link.fileno(), "link"), (process.client.fileno(), "client"), (process.seat.fileno(), "seat")
        for fd, what in (*own, (process.stdout, "stdout"), (process.stderr, "stderr")):
            self._owners[fd] = (port, what)
            self._waiter.watch(fd)

    def forget(self, process: TaskProcess) -> None:
        """Watch nothing of a task process any more."""
        links = process.link.fileno(), process.client.fileno(), process.seat.fileno()
        for fd in (*links, process.stdout, process.stderr):
            self.unwatch(fd)

    def unwatch(self, fd: int) -> None:
        """Watch this one no more: nothing comes from there."""
        owner = self._owners.pop(fd, None)
        if owner is None:
            return
        if fd in self._paused:
            self._paused.discard(fd)
            self._outlets[owner[1]].ended(fd)
        else:
            self._waiter.forget(fd)

    def owner(self, fd: int) -> tuple[ProcessPort | None, str]:
        """Whose a descriptor is, and what of it: its link, client, seat, stdout or stderr."""
        return self._owners.get(fd, (None, ""))

    # ---- what is printed ----

    def pass_on(self, port: ProcessPort, fd: int, what: str) -> bool:
        """What a task printed: to our own stdout or stderr, and the end of stderr to mind. False if nothing is there."""
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return False
        if not data:
            self.unwatch(fd)
            return False
        if self._printed is not None:
            data = self._printed.take(port.slot, what, data, time.monotonic())
        if what == "stderr":
            port.tail = (port.tail + data)[-_TAIL_BYTES:]
        if self._printed is not None:
            return True
        outlet = self._outlets[what]
        was_full = outlet.full
        if not outlet.pass_on(fd, data):
            if not was_full:
                self._waiter.watch_writable(outlet.fileno())
            if fd not in self._paused:
                self._paused.add(fd)
                self._waiter.forget(fd)
        return True

    def pass_on_all(self, port: ProcessPort) -> None:
        """All that a task process that has ended has printed."""
        assert port.process is not None
        for fd, what in ((port.process.stdout, "stdout"), (port.process.stderr, "stderr")):
            for _ in range(_MOST_READS):
                if fd not in self._owners or not self.pass_on(port, fd, what):
                    break

    def is_read_again(self, fd: int) -> bool:
        """Whether it is our own stdout or stderr, and somebody reads it again: then so are the pipes that waited for that."""
        for outlet in self._outlets.values():
            if outlet.full and fd == outlet.fileno():
                self._resume(outlet)
                return True
        return False

    def _resume(self, outlet: Outlet) -> None:
        for fd in outlet.resume():
            self._paused.discard(fd)
            self._waiter.watch(fd)
        if not outlet.full:
            self._waiter.forget(outlet.fileno())

    # ---- whose it is, where it is kept ----

    def results_come(self, port: ProcessPort, count: int, now_s: float) -> None:
        """The first calls that a slot holds have ended: what was printed until then is theirs."""
        if self._printed is not None:
            self.pass_on_all(port)
            self._printed.ended(port.slot, count, now_s)

    def died(self, port: ProcessPort, now_s: float) -> None:
        """The task process of a slot is gone."""
        self.pass_on_all(port)
        if self._printed is not None:
            self._printed.died(port.slot, now_s)

    def flush_if_due(self, now_s: float) -> None:
        """Write what has waited for long enough."""
        if self._printed is not None:
            self._printed.flush_if_due(now_s)

    def close(self, place: Place) -> None:
        """Write all that waits, as far as somebody reads it in time."""
        if self._printed is not None:
            self._printed.close()
        for name, outlet in self._outlets.items():
            outlet.drain(_DRAIN_S)
            if outlet.dropped_bytes:
                print(
                    f"exex: {place} lost {outlet.dropped_bytes} bytes that tasks wrote to {name}: nobody read them in time",
                    file=sys.stderr,
                    flush=True,
                )
            outlet.close()
