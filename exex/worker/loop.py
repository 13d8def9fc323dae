"""The worker rank's loop: all its I/O. Decisions are in `state`, task processes behind `processes`."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from exex.errors import ProtocolError, StartError
from exex.protocol import codec
from exex.protocol import payload as payloads
from exex.protocol.messages import Assign, Beat, Bye, Drop, Grant, Hello, Join, Leave, Outcome, Part, Retract, Stop, ToTasks
from exex.protocol.payload import Payload
from exex.store.exchange import Exchange
from exex.transport.base import GONE, Link
from exex.transport.wait import Waiter
from exex.worker import execute, filling, state, waiting
from exex.worker.context import Place
from exex.worker.giving_back import on_retract
from exex.worker.needs import Needs
from exex.worker.output import Outlet
from exex.worker.printed import Printed
from exex.worker.processes import Died, Failed, Measured, Ready, TaskProcess, Template
from exex.worker.relay import Relay
from exex.worker.stored import StoredValues
from exex.worker.together import Head, Together, make_head

if TYPE_CHECKING:
    from exex.store.task_output import TaskOutput

TICK_S = 0.02
INLINE_S = 0.001
_MESSAGES_A_TURN = 256
_TAIL_BYTES = 4096
_MOST_READS = 64
_DRAIN_S = 3.0

FORK_AGAIN_S = 1.0
"""Pause after a task process could not be forked."""


class ProcessPort:
    """A task process: started when first needed, replaced when it has died. Implements `SlotPort`.

    Attributes:
        number: for the template.
        client: number of this very process, as a client; no other one of this rank ever has it.
        slot: what it holds.
        is_client: it has said something as a client.
    """

    slot: state.Slot

    def __init__(self, number: int, loop: WorkerLoop) -> None:
        self.number = number
        self.client = -1
        self.is_client = False
        self.process: TaskProcess | None = None
        self.tail = b""
        self._loop = loop
        self._apps: set[int] = set()
        self._functions: set[bytes] = set()

    def give(self, calls: list[state.Call]) -> None:
        """See `SlotPort.give`."""
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
            grants={
                i: Grant(call.grant.slots, call.cores, call.grant.shares)
                for i, call in enumerate(calls)
                if call.grant is not None
            },
        )
        process.give(len(calls), self._loop.encoder.encode(message))
        self._loop.sending.add(self)

    def take_back(self) -> int:
        """See `SlotPort.take_back`."""
        return self.process.take_back() if self.process else 0

    def kill(self, gently: bool) -> None:
        """See `SlotPort.kill`."""
        if self.process:
            self._loop.template.kill(self.process, signal.SIGTERM if gently else signal.SIGKILL)

    def measure(self, limit_bytes: int) -> None:
        """See `SlotPort.measure`."""
        if self.process:
            self._loop.template.measure(self.process, limit_bytes)

    def go_on(self, home: list[int], cores: list[int]) -> None:
        """See `SlotPort.go_on`."""
        if self.process:
            self.process.go_on(home, cores)

    def _start(self) -> TaskProcess:
        cores = self._loop.state.slot_cores
        self.process = self._loop.template.fork(self.number, cores[self.slot.number] if cores else [])
        self.client = self._loop.new_client(self)
        self._loop.watch(self, self.process)
        self._apps.clear()
        self._functions.clear()
        self.tail = b""
        return self.process

    def stop(self) -> None:
        """Let go of a process that has died."""
        if self.process:
            self._loop.forget(self.process)
            del self._loop.clients[self.client]
            self.process.close()
            self.process = None
            self.is_client = False


class Equipment(NamedTuple):
    """What the tasks of a worker may use of its node.

    Attributes:
        slot_cores: CPU numbers to which each slot is bound; empty if they are not.
        memory_bytes: of the node; 0 if it is not known.
        gpus: names of accelerators.
    """

    slot_cores: Sequence[list[int]] = ()
    memory_bytes: int = 0
    gpus: Sequence[str] = ()


NOTHING_SPECIAL = Equipment()


class DataPlane(NamedTuple):
    """What becomes of large values.

    Attributes:
        exchange: of this rank.
        keep_bytes: values of at least so many bytes stay in the store of this node.
        limit_bytes: a value larger than that does not go into memory.
        is_shared: the manager has the same exchange, and turns it.
    """

    exchange: Exchange
    keep_bytes: int
    limit_bytes: int
    is_shared: bool = False

    def for_template(self) -> tuple[str, int, int]:
        """As task processes are told it."""
        return self.exchange.store_dir, self.keep_bytes, self.limit_bytes


class WorkerLoop:
    """One worker rank.

    Args:
        link: to the manager, whose number there is 0.
        template: not yet begun.
        equipment: what its tasks may use of its node.
        take_part: makes what runs functions on communicators here; None where that cannot be. It is called when it is needed.
        inline: run Python tasks in this process (`--isolation none`).
        tasks_per_process: after so many a task process is replaced; 0: never.
        output: where what tasks print is kept; None: it is passed on to our own stdout and stderr.
        data: what becomes of large values; None: they travel with the messages.
        beat_s: after so long without a message to the manager, send a Beat; 0 for never.
        limit_s: silence of the manager after which this rank gives up; 0 for never.

    Attributes:
        stopped: the manager has said Stop, and our Bye is on its way.
        together: it has said that all ranks can leave MPI in order.
        at_once: there is more to do.
        sending: ports to whose process there may be something unsent.
        clients: ports with a process, by its number as a client.
    """

    def __init__(
        self,
        place: Place,
        slots: int,
        link: Link,
        template: Template,
        waiter: Waiter,
        *,
        equipment: Equipment = NOTHING_SPECIAL,
        take_part: Callable[[], Together] | None = None,
        grace_s: float,
        inline: bool,
        beat_s: float = 0.0,
        limit_s: float = 0.0,
        tasks_per_process: int = 0,
        output: TaskOutput | None = None,
        data: DataPlane | None = None,
    ) -> None:
        self.encoder = codec.Encoder()
        self.template = template
        self.stopped = False
        self.together = False
        self.at_once = False
        self.sending: set[ProcessPort] = set()
        self.clients: dict[int, ProcessPort] = {}
        self._client_numbers = itertools.count()
        self._beat_s = beat_s
        self._limit_s = limit_s
        self._said_s = self._heard_s = self._turned_s = time.monotonic()
        self._link = link
        self._waiter = waiter
        self._inline = inline
        self._calls = codec.to_worker()
        self._results = codec.from_worker()
        self._ports = {number: ProcessPort(number, self) for number in range(slots)}
        self._slots = slots
        self.state = state.WorkerState(place.rank, place.node, list(self._ports.values()), grace_s, inline, tasks_per_process)
        for port, slot in zip(self._ports.values(), self.state.slots):
            port.slot = slot
        self.state.new_place = self._new_place
        self._relay = Relay(self.state)
        self.state.slot_cores = list(equipment.slot_cores)
        self._equipment = equipment
        self._make_together = take_part
        self._together: Together | None = None
        self._owners: dict[int, tuple[ProcessPort, str]] = {}
        self._outlets = {"stdout": Outlet(1), "stderr": Outlet(2)}
        self._printed = Printed(output) if output is not None else None
        self._paused: set[int] = set()  # pipes that are not read, because our own stdout or stderr is full
        self._inline_functions: dict[bytes, Any] = {}
        self._needs: Needs | None = None
        self._values = StoredValues("", 0, 0)
        if data is not None:
            self._needs = Needs(data.exchange, int(data.is_shared), not data.is_shared, self._send)
            self._values = StoredValues(*data.for_template())
        self._place = place
        self._next_tick = 0.0
        self._resume_s = 0.0  # no task process is forked before
        self._prepared = False
        waiter.watch(template.fileno())

    # ---- start ----

    def replace_template(self, template: Template) -> None:
        """Go on with a new template, already begun; the old one has ended."""
        self._from_template(time.monotonic())
        self.template.close()
        self.template = template
        self._waiter.watch(template.fileno())

    def await_template(self, most_s: float) -> str:
        """Wait until the template has imported what it must; "" or what is wrong."""
        until = time.monotonic() + most_s
        while time.monotonic() < until:
            for event in self.template.events():
                if isinstance(event, Ready):
                    self._prepared = True
                    return ""
                if isinstance(event, Failed):
                    return event.error
            if self.template.gone:
                return "the template ended while it imported what it must"
            self._waiter.wait(False, False, most_s=0.05)
        return f"the template did not come up within {most_s:g} s"

    def hello(self, version: str, python: str, error: str, times_s: list[float]) -> None:
        """Tell the manager that this rank is up, or why it cannot work."""
        self._send(
            Hello(
                version=version,
                python=python,
                node=self.state.node,
                pid=os.getpid(),
                slots=self._slots,
                error=error,
                times_s=times_s,
                cores=[core for cores in self._equipment.slot_cores for core in cores],
                memory_bytes=self._equipment.memory_bytes,
                gpus=list(self._equipment.gpus),
                store=self._needs.exchange.key if self._needs is not None else "",
            )
        )

    # ---- descriptors ----

    def watch(self, port: ProcessPort, process: TaskProcess) -> None:
        """Watch all that comes from a new task process."""
        own = (process.link.fileno(), "link"), (process.client.fileno(), "client"), (process.seat.fileno(), "seat")
        for fd, what in (*own, (process.stdout, "stdout"), (process.stderr, "stderr")):
            self._owners[fd] = (port, what)
            self._waiter.watch(fd)

    def forget(self, process: TaskProcess) -> None:
        """Watch nothing of a task process any more."""
        links = (process.link.fileno(), process.client.fileno(), process.seat.fileno())
        for fd in (*links, process.stdout, process.stderr):
            self._unwatch(fd)

    def _new_place(self, number: int) -> state.Slot:
        """Another task process for a slot."""
        own = next(free for free in itertools.count(self._slots) if free not in self._ports)
        port = self._ports[own] = ProcessPort(own, self)
        port.slot = state.Slot(number, port)
        return port.slot

    def new_client(self, port: ProcessPort) -> int:
        """A number for a new task process."""
        number = next(self._client_numbers)
        self.clients[number] = port
        return number

    def _unwatch(self, fd: int) -> None:
        owner = self._owners.pop(fd, None)
        if owner is None:
            return
        if fd in self._paused:
            self._paused.discard(fd)
            self._outlets[owner[1]].ended(fd)
        else:
            self._waiter.forget(fd)

    # ---- one turn ----

    def turn(self, ready: list[int]) -> bool:
        """Take all that arrived, decide, send. True if there was anything to do; `at_once` if there is more."""
        now_s = time.monotonic()
        traffic = self._from_manager(now_s)
        for fd in ready:
            traffic |= self._from_descriptor(fd, now_s)
        if self._needs is not None:
            traffic |= self._needs.turn(self.state)
        if now_s >= self._next_tick:
            self._next_tick = now_s + TICK_S
            state.on_tick(self.state, now_s)
            if self.state.spare:
                waiting.end_spares(self.state, now_s)
            if self._printed is not None:
                self._printed.flush_if_due(now_s)
            self._keep_in_touch(now_s)
            if self._needs is not None:
                self._needs.tick(now_s)
        if self._inline and self.state.queue:
            traffic |= self._run_inline(now_s + INLINE_S)
        if self._prepared and now_s >= self._resume_s:
            filling.fill(self.state, now_s)
        traffic |= self._report(now_s)
        queue = self.state.queue
        self.at_once = bool(self._inline and queue and filling.may_run_inline(queue[0].spec))
        unsent = self._link.progress()
        if self.state.parts and not unsent and not self.stopped:
            self._take_part()
            traffic = self.at_once = True
        if self.sending:
            self._send_the_rest()
        return traffic

    def _report(self, now_s: float) -> bool:
        """Tell the manager what is to be told: what a task has said comes before its end."""
        traffic = False
        for message in (self._relay.take(), self.state.take_done(), self.state.take_returned()):
            if message is not None:
                self._said_s = now_s
                self._send(message)
                traffic = True
        return traffic

    def _send_the_rest(self) -> None:
        """To task processes that did not take all at once. Not a look at every slot: a turn is for a single message, too."""
        for port in list(self.sending):
            is_unsent = False
            for stream in (port.process.link, port.process.client) if port.process is not None else ():
                is_stuck = stream.progress() and not stream.gone
                self._waiter.watch_output(stream.fileno(), is_stuck)
                is_unsent |= is_stuck
            if not is_unsent:
                self.sending.discard(port)

    def _keep_in_touch(self, now_s: float) -> None:
        """Beat if there was nothing to say for long; give up if the manager has been silent for too long.

        Raises:
            StartError: it has.
        """
        if self._beat_s and now_s - self._said_s >= self._beat_s:
            self._said_s = now_s
            self._send(Beat())
        if now_s - self._turned_s > self._limit_s / 4:
            self._heard_s = now_s  # it was this process that stood still
        self._turned_s = now_s
        if self._limit_s and now_s - self._heard_s > self._limit_s:
            raise StartError(f"the manager was not heard of for {self._limit_s:g} s")

    def _take_part(self) -> None:
        """Run a function on a communicator in this process. Until it returns, nothing else is done here."""
        if self._together is None:
            if self._make_together is None:
                raise ProtocolError(f"{self._place} is to take part in a call on a communicator, and has no MPI")
            self._together = self._make_together()
        join, call = self.state.parts.popleft()
        head = None if call is None else self._head(call)
        outcome, payload, seconds = self._together.run(join, head)
        self._turned_s = self._heard_s = self._said_s = time.monotonic()
        if call is None:
            self.state.tasks_run += 1
            self._send(Part(task=join.task, outcome=outcome, payload=payload, seconds=seconds))
        else:
            self.state.report(call, outcome, payload, seconds)
            self._send(self.state.take_done())
        self._link.progress()

    def _head(self, call: state.Call) -> Head | None:
        """What the lead of a call on a communicator hands round; None, so that nobody runs it, if something is missing."""
        try:
            payload, values = self._mapped(call)
        except FileNotFoundError:
            return None
        return make_head(call.spec, self.state.functions[call.spec.function], payload, values, call.attempt)

    def _mapped(
        self, call: state.Call, other: Callable[[Payload], Payload] = lambda payload: payload
    ) -> tuple[Payload, list[Payload] | None]:
        """A call and its values, with what is stored mapped, and the `other` of what is not.

        Raises:
            FileNotFoundError: something is not in the store of this node.
        """

        def mapped(payload: Payload) -> Payload:
            if type(payload) is not payloads.Stored:
                return other(payload)
            if self._needs is None:
                raise FileNotFoundError(payload.name)
            return self._needs.exchange.payload(payload)

        return mapped(call.payload), None if call.values is None else [mapped(value) for value in call.values]

    def _from_descriptor(self, fd: int, now_s: float) -> bool:
        if fd == self.template.fileno():
            self._from_template(now_s)
            return True
        for outlet in self._outlets.values():
            if outlet.full and fd == outlet.fileno():
                self._resume(outlet)
                return False
        port, what = self._owners.get(fd, (None, ""))
        if port is None:
            return False
        return self._from_process(port, fd, what, now_s)

    def _from_process(self, port: ProcessPort, fd: int, what: str, now_s: float) -> bool:
        """One of the descriptors of a task process is readable."""
        if what == "link":
            return self._from_slot(port, now_s)
        if what == "client":
            return self._from_client(port)
        if what == "seat":
            return self._from_seat(port, now_s)
        self._pass_on(port, fd, what)
        return False

    def eager(self) -> bool:
        """Whether what comes next is waited for: no slot has more than it can run."""
        return not self.state.queue and not self.state.big and all(len(slot.held) <= 1 for slot in self.state.slots)

    def next_s(self) -> float:
        """How long the loop may sleep."""
        held = any(slot.held for slot in self.state.places())
        return max(0.0, self._next_tick - time.monotonic()) if held else 1.0

    def _from_manager(self, now_s: float) -> bool:
        traffic = False
        for _ in range(_MESSAGES_A_TURN):
            arrived = self._link.receive()
            if arrived is None:
                break
            if arrived[1] is GONE:
                if arrived[0] == 0:
                    raise StartError("the manager is gone")
                if self._needs is not None:  # another worker, as MPI reports; the manager says what else that means
                    self._needs.exchange.on_gone(arrived[0])
                continue
            traffic = True
            message = self._calls.decode(arrived[1])
            if arrived[0]:
                if self._needs is not None:
                    self._needs.on_message(arrived[0], message)
                continue
            self._heard_s = now_s
            if type(message) is Stop:
                self._stop()
                break
            self._on_message(message, now_s)
        return traffic

    def _on_message(self, message: object, now_s: float) -> None:
        """What the manager says. A Beat needs no answer."""
        if type(message) is Assign:
            if message.sources and self._needs is not None:
                state.on_assign(self.state, message, self._needs.lacking(message))
            else:
                state.on_assign(self.state, message)
        elif type(message) is Drop:
            state.on_drop(self.state, message, now_s)
            if self._together is not None:
                self._together.revoke(message.tasks)
        elif type(message) is Retract:
            on_retract(self.state, message)
        elif type(message) is ToTasks:
            self._to_tasks(message)
        elif type(message) is Join:
            state.on_join(self.state, message)
        elif self._needs is not None and type(message) is not Beat:
            self._needs.on_message(0, message)

    def await_leave(self, most_s: float) -> None:
        """After our Bye: wait until every other worker has said it, too, or until the manager gives up on them."""
        until = time.monotonic() + most_s
        while (left_s := until - time.monotonic()) > 0:
            self._link.progress()
            arrived = self._link.receive()
            if arrived is None:
                self._waiter.wait(False, False, most_s=left_s)
            elif arrived[1] is GONE:
                return
            elif type(message := self._calls.decode(arrived[1])) is Leave:
                self.together = message.together
                return

    def _from_slot(self, port: ProcessPort, now_s: float) -> bool:
        process = port.process
        if process is None:
            return False
        slot = port.slot
        traffic = self._from_client(port) if port.is_client else False
        while (frames := process.receive()) is not None:
            if frames is GONE:
                self._unwatch(process.link.fileno())
                break  # how it died comes from the template
            done = self._results.decode(frames)
            if self._results.stored and self._needs is not None:
                self._needs.adopt(self._results.stored)
            if self._printed is not None:
                self._pass_on_all(port)  # what was printed until then
                self._printed.ended(slot, len(done.tasks), now_s)
            state.on_slot_done(self.state, slot, done, now_s)
            traffic = True
        self.sending.add(port)  # what was held back until it has dropped what was taken back is sent now
        return traffic

    def _from_client(self, port: ProcessPort) -> bool:
        """What its task says as a client. Always before its results: it says nothing of a task after that has ended."""
        process, traffic = port.process, False
        while process is not None and (said := process.said()) is not None:
            port.is_client = traffic = True
            self._relay.said(port.client, *said)
        if process is not None and process.client.gone:
            self._unwatch(process.client.fileno())
        return traffic

    def _from_seat(self, port: ProcessPort, now_s: float) -> bool:
        """Whether its task waits. What it has reported before comes first."""
        if port.process is None:
            return False
        moves = port.process.moves()
        if moves:
            self._from_slot(port, now_s)
        for task in moves or ():
            if task is None:
                waiting.on_back(self.state, port.slot)
            else:
                waiting.on_left(self.state, port.slot, task, now_s)
        if moves is None:
            self._unwatch(port.process.seat.fileno())
        return bool(moves)

    def _to_tasks(self, message: ToTasks) -> None:
        for task in message.seats:
            waiting.on_seat(self.state, task)
        for number, said in zip(message.processes, message.messages):
            port = self.clients.get(number)
            if port is not None and port.process is not None:
                port.process.tell(said)
                self.sending.add(port)

    def _pass_on_all(self, port: ProcessPort) -> None:
        """All that a task process that has ended has printed."""
        assert port.process is not None
        for fd, what in ((port.process.stdout, "stdout"), (port.process.stderr, "stderr")):
            for _ in range(_MOST_READS):
                if fd not in self._owners or not self._pass_on(port, fd, what):
                    break

    def _pass_on(self, port: ProcessPort, fd: int, what: str) -> bool:
        """What a task printed: to our own stdout or stderr, and the end of stderr to mind. False if nothing is there."""
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return False
        if not data:
            self._unwatch(fd)
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

    def _resume(self, outlet: Outlet) -> None:
        """Somebody reads our stdout or stderr again."""
        for fd in outlet.resume():
            self._paused.discard(fd)
            self._waiter.watch(fd)
        if not outlet.full:
            self._waiter.forget(outlet.fileno())

    def _from_template(self, now_s: float) -> None:
        for event in self.template.events():
            if isinstance(event, Died):
                self._on_died(event, now_s)
            elif isinstance(event, Measured):
                self._on_measured(event, now_s)
            elif isinstance(event, Ready):
                self._prepared = True
            elif isinstance(event, Failed):
                raise StartError(event.error)
        if self.template.gone and self.template.fileno() >= 0:
            self._prepared = False  # the guard sends another
            self._waiter.forget(self.template.fileno())
            self.template.close()

    def _on_died(self, event: Died, now_s: float) -> None:
        """Take what the process has still reported and printed, then tell the state."""
        port = self._ports.get(event.slot)
        if port is None or port.process is None:
            return
        self._from_seat(port, now_s)
        self._from_slot(port, now_s)
        self._pass_on_all(port)
        if self._printed is not None:
            self._printed.died(port.slot, now_s)
        if not event.pid:
            self._resume_s = now_s + FORK_AGAIN_S
        tail = port.tail.decode(errors="replace")
        blameless = event.error if event.blameless else ""
        if self._needs is not None:
            self._needs.on_died(port.slot.held)
        if port.is_client:
            self._relay.gone.append(port.client)
        state.on_slot_died(self.state, port.slot, event.status, tail, now_s, blameless)
        port.stop()
        if self.state.slots[port.slot.number] is not port.slot:
            waiting.forget(self.state, port.slot)
            del self._ports[port.number]

    def _on_measured(self, event: Measured, now_s: float) -> None:
        port = self._ports.get(event.slot)
        if port is not None and port.process is not None and port.process.pid == event.pid:
            self._from_slot(port, now_s)  # it may have ended meanwhile
            state.on_measured(self.state, port.slot, event.used_bytes, event.seconds, now_s)

    def _run_inline(self, until_s: float) -> bool:
        """Run queued Python calls here until the time is up. Bash, and what has a limit, goes to task processes."""
        queue, ran = self.state.queue, False
        while queue and filling.may_run_inline(queue[0].spec):
            call = queue.popleft()
            ran = True
            digest = call.spec.function
            function = self._inline_functions.get(digest)
            if function is None:
                function = self._inline_functions[digest] = execute.open_function(self.state.functions[digest])
            try:
                payload, values = self._mapped(call, payloads.writable)
            except FileNotFoundError:
                self.state.report(call, Outcome.STARVED, b"")
                continue
            outcome, result, seconds = execute.execute(
                call.spec, function, payload, values, call.task, call.attempt, self._place
            )
            if type(result) is payloads.Large:
                result = self._keep(call, outcome, result)
            self.state.report(call, outcome, result, seconds)
            if type(result) is payloads.Large:
                break  # over memory that the next call may write to: send it first
            if time.monotonic() >= until_s:
                break
        return ran

    def _keep(self, call: state.Call, outcome: int, value: payloads.Large) -> Payload:
        """The value of a call that has run here, in the store if it belongs there."""
        kept = self._values.kept(call.spec, outcome, value, call.task, call.attempt)
        if type(kept) is payloads.Stored and self._needs is not None:
            self._needs.adopt([kept])
        return kept

    # ---- end ----

    def _stop(self) -> None:
        self.template.end()
        for port in self._ports.values():
            if port.process is not None:
                self._pass_on_all(port)
            port.stop()
        if self._printed is not None:
            self._printed.close()
        for name, outlet in self._outlets.items():
            outlet.drain(_DRAIN_S)
            if outlet.dropped_bytes:
                print(
                    f"exex: {self._place} lost {outlet.dropped_bytes} bytes that tasks wrote to {name}: nobody read them in time",
                    file=sys.stderr,
                    flush=True,
                )
            outlet.close()
        self._send(Bye(tasks_run=self.state.tasks_run))
        self.stopped = True

    def _send(self, message: object) -> None:
        try:
            self._link.send(0, self.encoder.encode(message))
        except ConnectionError:
            raise StartError("the manager is gone") from None


def run(loop: WorkerLoop, waiter: Waiter, on_guard: Callable[[list[int]], object], stop_timeout_s: float) -> None:
    """Turn until the manager says Stop, then wait for its Leave. `on_guard` takes what the guard has to say."""
    ready: list[int] = []
    while not loop.stopped:
        on_guard(ready)
        traffic = loop.turn(ready)
        ready = waiter.wait(traffic, loop.at_once, loop.eager(), loop.next_s())
    loop.await_leave(stop_timeout_s)
