"""The worker rank's loop: all its I/O. Decisions are in `state`, task processes behind `processes`."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

from exex.errors import StartError
from exex.protocol import codec
from exex.protocol import payload as payloads
from exex.protocol.messages import Assign, Bye, Drop, Hello, Kind, Rank, Stop
from exex.transport.base import GONE, Link
from exex.transport.stream import StreamLink
from exex.transport.wait import Waiter
from exex.worker import execute, state
from exex.worker.processes import Died, Failed, Ready, TaskProcess, Template

TICK_S = 0.02
INLINE_S = 0.001
_MESSAGES_A_TURN = 256
_TAIL_BYTES = 4096


class ProcessPort:
    """A slot's task process: started when first needed, replaced when it has died. Implements `SlotPort`."""

    def __init__(self, number: int, loop: WorkerLoop) -> None:
        self.number = number
        self.process: TaskProcess | None = None
        self.tail = b""
        self._loop = loop
        self._apps: set[int] = set()
        self._functions: set[bytes] = set()

    def give(self, calls: list[state.Call]) -> None:
        """See `SlotPort.give`. Tokens go before the calls: see `processes`."""
        process = self.process or self._start()
        spec = calls[0].spec
        apps, functions = [], {}
        if spec.app not in self._apps:
            self._apps.add(spec.app)
            apps.append(spec)
            if spec.function not in self._functions:
                self._functions.add(spec.function)
                functions[spec.function] = self._loop.state.functions[spec.function]
        message = Assign(
            apps=apps,
            functions=functions,
            tasks=[call.task for call in calls],
            calls=[spec.app],
            payloads=[call.payload for call in calls],
            values={i: call.values for i, call in enumerate(calls) if call.values is not None},
            attempts={i: call.attempt for i, call in enumerate(calls) if call.attempt > 1},
        )
        process.give(len(calls))
        try:
            process.link.send(0, self._loop.encoder.encode(message))
        except ConnectionError:
            pass  # it has just died: its end of stream tells

    def take_back(self) -> int:
        """See `SlotPort.take_back`."""
        return self.process.take_back() if self.process else 0

    def kill(self, gently: bool) -> None:
        """See `SlotPort.kill`."""
        if self.process:
            self._loop.template.kill(self.process, gently)

    def _start(self) -> TaskProcess:
        self.process = self._loop.template.fork(self.number)
        self._loop.watch(self, self.process)
        self._apps.clear()
        self._functions.clear()
        self.tail = b""
        return self.process

    def stop(self) -> None:
        """Let go of a process that has died."""
        if self.process:
            self._loop.forget(self.process)
            self.process.close()
            self.process = None


class WorkerLoop:
    """One worker rank.

    Args:
        link: to the manager, whose number there is 0.
        template: not yet begun.
        inline: run Python tasks in this process (`--isolation none`).
    """

    def __init__(
        self, rank: Rank, node: str, slots: int, link: Link, template: Template, waiter: Waiter, grace_s: float, inline: bool
    ) -> None:
        self.encoder = codec.Encoder()
        self.template = template
        self.finished = False
        self._link = link
        self._waiter = waiter
        self._inline = inline
        self._calls = codec.to_worker()
        self._results = codec.from_worker()
        self._ports = [ProcessPort(number, self) for number in range(slots)]
        self.state = state.WorkerState(rank, node, list(self._ports), grace_s)
        self._owners: dict[int, tuple[ProcessPort, str]] = {}
        self._inline_functions: dict[bytes, Any] = {}
        self._next_tick = 0.0
        self._dying: deque[tuple[ProcessPort, int]] = deque()
        waiter.watch(template.fileno())

    # ---- start ----

    def await_template(self, most_s: float) -> str:
        """Wait until the template has imported what it must; "" or what is wrong."""
        until = time.monotonic() + most_s
        while time.monotonic() < until:
            for event in self.template.events():
                if isinstance(event, Ready):
                    return ""
                if isinstance(event, Failed):
                    return event.error
            self._waiter.wait(False, 0.05)
        return f"the template did not come up within {most_s:g} s"

    def hello(self, version: str, python: str, error: str, times_s: list[float]) -> None:
        """Tell the manager that this rank is up, or why it cannot work."""
        self._send(
            Hello(
                version=version,
                python=python,
                node=self.state.node,
                pid=os.getpid(),
                slots=len(self._ports),
                error=error,
                times_s=times_s,
            )
        )

    # ---- descriptors ----

    def watch(self, port: ProcessPort, process: TaskProcess) -> None:
        """Watch all that comes from a new task process."""
        for fd, what in ((process.link.fileno(), "link"), (process.stdout, "stdout"), (process.stderr, "stderr")):
            self._owners[fd] = (port, what)
            self._waiter.watch(fd)

    def forget(self, process: TaskProcess) -> None:
        """Watch nothing of a task process any more."""
        for fd in (process.link.fileno(), process.stdout, process.stderr):
            if self._owners.pop(fd, None):
                self._waiter.forget(fd)

    # ---- one turn ----

    def turn(self, ready: list[int]) -> bool:
        """Take all that arrived, decide, send. True if there was anything to do."""
        now_s = time.monotonic()
        traffic = self._from_manager(now_s)
        for fd in ready:
            owner = self._owners.get(fd)
            if owner is None:
                continue
            port, what = owner
            if what == "link":
                traffic |= self._from_slot(port, now_s)
            else:
                self._pass_on(port, fd, what)
        self._from_template(now_s)
        if now_s >= self._next_tick:
            self._next_tick = now_s + TICK_S
            state.on_tick(self.state, now_s)
        if self._inline and self.state.queue:
            traffic |= self._run_inline(now_s + INLINE_S)
        state.fill(self.state, now_s)
        done = self.state.take_done()
        if done is not None:
            self._send(done)
        for port in self._ports:
            if port.process is not None:
                traffic |= port.process.link.progress()
        return traffic | self._link.progress()

    def next_s(self) -> float:
        """How long the loop may sleep."""
        held = any(slot.held for slot in self.state.slots)
        return max(0.0, self._next_tick - time.monotonic()) if held else 1.0

    def _from_manager(self, now_s: float) -> bool:
        traffic = False
        for _ in range(_MESSAGES_A_TURN):
            arrived = self._link.receive()
            if arrived is None:
                break
            traffic = True
            if arrived[1] is GONE:
                raise StartError("the manager is gone")
            message = self._calls.decode(arrived[1])
            if type(message) is Assign:
                state.on_assign(self.state, message)
            elif type(message) is Drop:
                state.on_drop(self.state, message, now_s)
            elif type(message) is Stop:
                self._stop()
                break
        return traffic

    def _from_slot(self, port: ProcessPort, now_s: float) -> bool:
        process = port.process
        if process is None:
            return False
        slot = self.state.slots[port.number]
        traffic = False
        while (arrived := process.link.receive()) is not None:
            if arrived[1] is GONE:
                self._waiter.forget(process.link.fileno())
                self._owners.pop(process.link.fileno(), None)
                break  # how it died comes from the template
            state.on_slot_done(self.state, slot, self._results.decode(arrived[1]), now_s)
            traffic = True
        return traffic

    def _pass_on(self, port: ProcessPort, fd: int, what: str) -> None:
        """What a task printed: to our own stdout or stderr, and the end of stderr to mind."""
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        if not data:
            self._owners.pop(fd, None)
            self._waiter.forget(fd)
            return
        if what == "stderr":
            port.tail = (port.tail + data)[-_TAIL_BYTES:]
        view, target = memoryview(data), 1 if what == "stdout" else 2
        while view:
            view = view[os.write(target, view) :]

    def _from_template(self, now_s: float) -> None:
        for event in self.template.events():
            if isinstance(event, Died):
                port = self._ports[event.slot]
                if port.process is None:
                    continue
                self._from_slot(port, now_s)
                for fd, what in ((port.process.stdout, "stdout"), (port.process.stderr, "stderr")):
                    if fd in self._owners:
                        self._pass_on(port, fd, what)
                tail = port.tail.decode(errors="replace")
                slot = self.state.slots[event.slot]
                state.on_slot_died(self.state, slot, event.status, tail, now_s)
                port.stop()

    def _run_inline(self, until_s: float) -> bool:
        """Run queued Python calls here until the time is up."""
        queue, ran = self.state.queue, False
        place = self.state.place()
        while queue and queue[0].spec.kind != Kind.BASH and queue[0].spec.walltime_s is None:
            call = queue.popleft()
            ran = True
            function = self._inline_functions.get(call.spec.function)
            began = time.perf_counter()
            if function is None:
                function = execute.open_function(self.state.functions[call.spec.function])
                self._inline_functions[call.spec.function] = function
            values = [payloads.writable(value) for value in call.values] if call.values else None
            outcome, result = execute.execute(
                call.spec, function, payloads.writable(call.payload), values, call.task, call.attempt, place
            )
            self.state.report(call, outcome, result, time.perf_counter() - began)
            if time.monotonic() >= until_s:
                break
        return ran

    # ---- end ----

    def _stop(self) -> None:
        self.template.end()
        for port in self._ports:
            port.stop()
        self._send(Bye(tasks_run=self.state.tasks_run))
        self.finished = True

    def _send(self, message: object) -> None:
        self._link.send(0, self.encoder.encode(message))


def run(loop: WorkerLoop, link: Link, waiter: Waiter) -> None:
    """Turn until the manager says Stop and our Bye has left."""
    ready: list[int] = []
    while not loop.finished:
        traffic = loop.turn(ready)
        ready = waiter.wait(traffic, loop.next_s())
    while link.progress():
        waiter.wait(False)


__all__ = ["ProcessPort", "StreamLink", "WorkerLoop", "run"]
