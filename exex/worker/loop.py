"""The worker rank's loop: all its I/O. Decisions are in `assigned`, `filling` and `running`."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from exex.errors import StartError
from exex.files import arrivals
from exex.protocol import codec
from exex.protocol.messages import Assign, Beat, Bye, Drop, Hello, Join, Leave, Retract, Stop, ToTasks
from exex.store.exchange import Exchange
from exex.transport.base import GONE, Link
from exex.transport.wait import Waiter
from exex.worker import assigned, filling, running, waiting
from exex.worker.context import Place
from exex.worker.giving_back import on_retract
from exex.worker.inline import Inline
from exex.worker.needs import Needs
from exex.worker.port import ProcessPort
from exex.worker.processes import Died, Failed, Measured, Ready, Template
from exex.worker.relay import Relay
from exex.worker.slot import Slot
from exex.worker.state import WorkerState
from exex.worker.stored import StoredValues
from exex.worker.streams import Streams
from exex.worker.taking_part import TakingPart
from exex.worker.together import Together

if TYPE_CHECKING:
    from exex.store.task_output import TaskOutput

TICK_S = 0.02
INLINE_S = 0.001
_MESSAGES_A_TURN = 256

FORK_AGAIN_S = 1.0
"""Pause after a task process could not be forked."""


class Equipment(NamedTuple):
    """What the tasks of a worker may use of its node.

    Attributes:
        slot_cores: CPU numbers to which each slot is bound; empty if they are not.
        memory_bytes: of the node; 0 if it is not known.
        gpus: names of accelerators.
        most_parents: tasks that may wait for tasks of their own, each with a process; 0: any number.
    """

    slot_cores: Sequence[list[int]] = ()
    memory_bytes: int = 0
    gpus: Sequence[str] = ()
    most_parents: int = 0


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
        streams: of its task processes.
        relay: between these and the manager.
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
        self._beat_s = beat_s
        self._limit_s = limit_s
        self._said_s = self._heard_s = self._turned_s = time.monotonic()
        self._link = link
        self._waiter = waiter
        self._calls = codec.to_worker()
        self._results = codec.from_worker()
        self._ports = {number: ProcessPort(number, self) for number in range(slots)}
        self._slots = slots
        self.state = WorkerState(place.rank, place.node, list(self._ports.values()), grace_s, inline, tasks_per_process)
        for port, slot in zip(self._ports.values(), self.state.slots):
            port.slot = slot
        self.state.new_place, self.state.most_parents = self._new_place, equipment.most_parents
        self.state.slot_cores = list(equipment.slot_cores)
        self._equipment = equipment
        self.streams = Streams(waiter, output)
        self.relay = Relay(self.state, self.streams.unwatch, self.sending, self._nest)
        self._needs: Needs | None = None
        if data is not None:
            self._needs = Needs(data.exchange, int(data.is_shared), not data.is_shared, self._send)
        values = StoredValues(*data.for_template()) if data is not None else StoredValues("", 0, 0)
        arrivals.directory = values.files_directory()  # for what runs in this process
        self._inline = Inline(self.state, place, self._needs, values) if inline else None
        self._parts = TakingPart(self.state, place, self._needs, take_part)
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

    def _nest(self) -> None:
        self.template.nest()

    def _new_place(self, number: int) -> Slot:
        """Another task process for a slot."""
        own = next(free for free in itertools.count(self._slots) if free not in self._ports)
        port = self._ports[own] = ProcessPort(own, self)
        port.slot = Slot(number, port)
        return port.slot

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
            running.on_tick(self.state, now_s)
            if self.state.spare:
                waiting.end_spares(self.state, now_s)
            self.streams.flush_if_due(now_s)
            self._keep_in_touch(now_s)
            if self._needs is not None:
                self._needs.tick(now_s)
        if self._inline is not None and self.state.queue:
            traffic |= self._inline.run(now_s + INLINE_S)
        if self._prepared and now_s >= self._resume_s:
            filling.fill(self.state, now_s)
        traffic |= self._report(now_s)
        self.at_once = self._inline is not None and self._inline.has_more()
        unsent = self._link.progress()
        if self.state.parts and not unsent and not self.stopped:
            self._send(self._parts.run_next())
            self._turned_s = self._heard_s = self._said_s = time.monotonic()
            self._link.progress()
            traffic = self.at_once = True
        if self.sending:
            self._send_the_rest()
        return traffic

    def _report(self, now_s: float) -> bool:
        """Tell the manager what is to be told: what a task has said comes before its end."""
        traffic = False
        for message in (self.relay.take(), self.state.take_done(), self.state.take_returned()):
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

    def _from_descriptor(self, fd: int, now_s: float) -> bool:
        if fd == self.template.fileno():
            self._from_template(now_s)
            return True
        if self.streams.is_read_again(fd):
            return False
        port, what = self.streams.owner(fd)
        return port is not None and self._from_process(port, fd, what, now_s)

    def _from_process(self, port: ProcessPort, fd: int, what: str, now_s: float) -> bool:
        """One of the descriptors of a task process is readable."""
        if what == "link":
            return self._from_slot(port, now_s)
        if what == "client":
            return self.relay.from_client(port)
        if what == "seat":
            return self.relay.from_seat(port, self._from_slot, now_s)
        self.streams.pass_on(port, fd, what)
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
                assigned.on_assign(self.state, message, self._needs.lacking(message))
            else:
                assigned.on_assign(self.state, message)
        elif type(message) is Drop:
            assigned.on_drop(self.state, message, now_s)
            self._parts.revoke(message.tasks)
        elif type(message) is Retract:
            on_retract(self.state, message)
        elif type(message) is ToTasks:
            self.relay.on_message(message)
        elif type(message) is Join:
            assigned.on_join(self.state, message)
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
        traffic = self.relay.from_client(port) if port.is_client else False
        while (frames := process.receive()) is not None:
            if frames is GONE:
                self.streams.unwatch(process.link.fileno())
                break  # how it died comes from the template
            done = self._results.decode(frames)
            if self._results.stored and self._needs is not None:
                self._needs.adopt(self._results.stored)
            self.streams.results_come(port, len(done.tasks), now_s)
            running.on_slot_done(self.state, port.slot, done, now_s)
            traffic = True
        self.sending.add(port)  # what was held back until it has dropped what was taken back is sent now
        return traffic

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
        self.relay.from_seat(port, self._from_slot, now_s)
        self._from_slot(port, now_s)
        self.streams.died(port, now_s)
        if not event.pid:
            self._resume_s = now_s + FORK_AGAIN_S
        tail = port.tail.decode(errors="replace")
        blameless = event.error if event.blameless else ""
        if self._needs is not None:
            self._needs.on_died(port.slot.held)
        self.relay.died(port)
        running.on_slot_died(self.state, port.slot, event.status, tail, now_s, blameless)
        port.stop()
        if self.state.slots[port.slot.number] is not port.slot:
            waiting.forget(self.state, port.slot)
            del self._ports[port.number]

    def _on_measured(self, event: Measured, now_s: float) -> None:
        port = self._ports.get(event.slot)
        if port is not None and port.process is not None and port.process.pid == event.pid:
            self._from_slot(port, now_s)  # it may have ended meanwhile
            running.on_measured(self.state, port.slot, event.used_bytes, event.seconds, now_s)

    # ---- end ----

    def _stop(self) -> None:
        self.template.end()
        for port in self._ports.values():
            if port.process is not None:
                self.streams.pass_on_all(port)
            port.stop()
        self.streams.close(self._place)
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
