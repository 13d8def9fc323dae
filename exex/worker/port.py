"""What the worker's loop tells the task process of a slot."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from exex.protocol.messages import Assign, Grant
from exex.worker.slot import Call, Slot
from exex.worker.task_streams import TaskProcess

if TYPE_CHECKING:
    from exex.worker.loop import WorkerLoop


class ProcessPort:
    """A task process: started when first needed, replaced when it has died. Implements `SlotPort`.

    Attributes:
        number: for the template.
        client: number of this very process, as a client; no other one of this rank ever has it.
        is_client: it has said something as a client.
        slot: what it holds.
        tail: the end of what it has printed to stderr.
    """

    slot: Slot

    def __init__(self, number: int, loop: WorkerLoop) -> None:
        self.number = number
        self.client = -1
        self.is_client = False
        self.process: TaskProcess | None = None
        self.tail = b""
        self._loop = loop
        self._apps: set[int] = set()
        self._functions: set[bytes] = set()

    def give(self, calls: list[Call]) -> None:
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
        self.client = self._loop.relay.new_client(self)
        self._loop.streams.watch(self, self.process)
        self._apps.clear()
        self._functions.clear()
        self.tail = b""
        return self.process

    def stop(self) -> None:
        """Let go of a process that has died."""
        if self.process:
            self._loop.streams.forget(self.process)
            self._loop.relay.forget(self)
            self.process.close()
            self.process = None
            self.is_client = False
